"""The shape of `relayd.db`, and how an older file comes to it.

Released migrations are never edited, only followed by new ones; `PRAGMA user_version` counts them.
"""

from __future__ import annotations

import sqlite3

from relayd.state.errors import StateDamaged, StateOtherFormat

_FIRST = (
    # Counters that must move in the same transaction as what they count. `seq`: the newest event;
    # `floor_seq`: the newest event that retention removed.
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO meta VALUES ('seq', 0), ('floor_seq', 0)",
    # `start_ticks` and `host_boot` tell a process from a later one with the same pid.
    """CREATE TABLE boots (
        boot_id TEXT PRIMARY KEY, pid INTEGER NOT NULL, start_ticks INTEGER NOT NULL,
        host_boot TEXT NOT NULL, started_at TEXT NOT NULL, stopped_at TEXT
    )""",
    """CREATE TABLE requests (
        start_seq INTEGER PRIMARY KEY, end_seq INTEGER,
        id TEXT NOT NULL, boot_id TEXT NOT NULL, started_at TEXT NOT NULL,
        client TEXT, key_id TEXT, ip TEXT NOT NULL, origin TEXT, user_agent TEXT, path TEXT NOT NULL,
        model TEXT, phase TEXT NOT NULL, status INTEGER, outcome TEXT,
        error_code TEXT, error_message TEXT,
        connect_ms INTEGER, first_token_ms INTEGER, duration_ms INTEGER, stalled_ms INTEGER NOT NULL,
        deltas INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
        prompt_tokens INTEGER, completion_tokens INTEGER,
        finish_reason TEXT, upstream_request_id TEXT
    )""",
    # One record by its id.
    "CREATE UNIQUE INDEX requests_by_id ON requests (id)",
    # Replay of ends, retention, and what a crash left open (end_seq null).
    "CREATE UNIQUE INDEX requests_by_end ON requests (end_seq)",
    # History since a time.
    "CREATE INDEX requests_by_time ON requests (started_at)",
    """CREATE TABLE audit (
        seq INTEGER PRIMARY KEY, boot_id TEXT NOT NULL, at TEXT NOT NULL, action TEXT NOT NULL,
        result TEXT NOT NULL, uid INTEGER NOT NULL, pid INTEGER NOT NULL, login TEXT NOT NULL,
        client TEXT, key_ids TEXT NOT NULL, generation INTEGER NOT NULL, detail TEXT
    )""",
    """CREATE TABLE lost (
        seq INTEGER PRIMARY KEY, boot_id TEXT NOT NULL, at TEXT NOT NULL, count INTEGER NOT NULL,
        reason TEXT NOT NULL
    )""",
    """CREATE TABLE keys (
        id TEXT PRIMARY KEY, client TEXT NOT NULL, digest BLOB NOT NULL UNIQUE,
        state TEXT NOT NULL CHECK (state IN ('active', 'retiring', 'expired', 'revoked')),
        created_at TEXT NOT NULL, expires_at TEXT, revoked_at TEXT, replaced_by TEXT,
        first_used_at TEXT, first_used_ip TEXT, last_used_at TEXT, last_used_ip TEXT
    )""",
    # The rule itself: a client has at most one active key.
    "CREATE UNIQUE INDEX keys_one_active ON keys (client) WHERE state = 'active'",
    """CREATE TABLE ring (
        only INTEGER PRIMARY KEY CHECK (only = 1), generation INTEGER NOT NULL,
        changed_at TEXT, changed_by TEXT, change TEXT
    )""",
    "INSERT INTO ring (only, generation) VALUES (1, 0)",
    # `reply` is what the caller was told, without the secret.
    """CREATE TABLE idempotency (
        key TEXT PRIMARY KEY, change TEXT NOT NULL, reply TEXT NOT NULL, created_at TEXT NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX idempotency_by_time ON idempotency (created_at)",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST,)


def schema_version(connection: sqlite3.Connection) -> int:
    """How many migrations the file has seen."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def check_version(connection: sqlite3.Connection) -> int:
    """The version of the file, which is ours or older.

    Raises:
        StateOtherFormat: a newer relayd wrote it.
        StateDamaged: it is the database of some other program.
    """
    version, known = schema_version(connection), len(MIGRATIONS)
    if version > known:
        raise StateOtherFormat(
            f"The database has format {version}, this relayd knows up to {known}: a newer relayd wrote it. "
            "Start that version, or restore the backup from before the upgrade."
        )
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        raise StateDamaged("The file is a database, but not one of relayd. Choose another state_dir.")
    return version


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to the newest shape, one transaction for each step.

    Raises:
        StateOtherFormat, StateDamaged: as `check_version`.
        sqlite3.Error: the step was rolled back.
    """
    while check_version(connection) < len(MIGRATIONS):
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Read again under the lock: another process may have taken this step meanwhile.
            version = check_version(connection)
            if version < len(MIGRATIONS):
                for statement in MIGRATIONS[version]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
