"""The tables, and how an older database is brought up to date.

Released migrations are never edited, only followed by new ones; the database has their count. The
`requests` table needs none: it has a column for each field of `RequestRecord`, and a file that lacks
some gets them when it is opened. An older relayd can still use such a file.
"""

from __future__ import annotations

import re

from relayd.state.columns import COLUMNS
from relayd.state.engine import Connection
from relayd.state.errors import StateOtherFormat

_FIRST = (
    # Counters that must move in the same transaction as what they count. `seq`: the newest event;
    # `floor_seq`: the newest event that retention removed.
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO meta VALUES ('seq', 0), ('floor_seq', 0)",
    # Not used any more: which processes had the file open.
    """CREATE TABLE boots (
        boot_id TEXT PRIMARY KEY, pid INTEGER NOT NULL, start_ticks INTEGER NOT NULL,
        host_boot TEXT NOT NULL, started_at TEXT NOT NULL, stopped_at TEXT
    )""",
    f"CREATE TABLE requests ({', '.join(f'{name} {declared}' for name, declared in COLUMNS.items())})",
    # One record by its id.
    "CREATE UNIQUE INDEX requests_by_id ON requests (id)",
    # Replay of ends, retention, and what a crash left open (end_seq null).
    "CREATE UNIQUE INDEX requests_by_end ON requests (end_seq)",
    # Filters on `started_at`.
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
        "only" INTEGER PRIMARY KEY CHECK ("only" = 1), generation INTEGER NOT NULL,
        changed_at TEXT, changed_by TEXT, change TEXT
    )""",
    'INSERT INTO ring ("only", generation) VALUES (1, 0)',
    # `reply` is the result, without the secret.
    """CREATE TABLE idempotency (
        key TEXT PRIMARY KEY, change TEXT NOT NULL, reply TEXT NOT NULL, created_at TEXT NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX idempotency_by_time ON idempotency (created_at)",
)

# Named clients and their bounds; lists are JSON. Clients of an older file keep what they had: `/chat`.
_CLIENTS = (
    """CREATE TABLE clients (
        name TEXT PRIMARY KEY, note TEXT NOT NULL DEFAULT '', created_at TEXT NOT NULL, removed_at TEXT,
        models TEXT NOT NULL DEFAULT '[]', endpoints TEXT NOT NULL DEFAULT '[]',
        origins TEXT NOT NULL DEFAULT '[]', max_streams INTEGER, requests_per_minute INTEGER,
        tokens_per_minute INTEGER, tokens_per_day INTEGER, tokens_per_month INTEGER,
        max_output_tokens INTEGER, usd_per_day REAL, usd_per_month REAL, expires_at TEXT
    )""",
    """INSERT INTO clients (name, created_at, endpoints)
        SELECT client, min(created_at), '["/chat"]' FROM keys GROUP BY client""",
    """INSERT INTO clients (name, created_at) VALUES ('default', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
        ON CONFLICT DO NOTHING""",
    # All keys of one client.
    "CREATE INDEX keys_by_client ON keys (client)",
)

_USAGE = (
    # What a client used or reserved in a minute, a day, a month; money in nano-dollars.
    """CREATE TABLE windows (
        "window" TEXT NOT NULL, client TEXT NOT NULL, requests INTEGER NOT NULL, tokens INTEGER NOT NULL,
        nano_usd INTEGER NOT NULL, PRIMARY KEY ("window", client)
    ) WITHOUT ROWID""",
    # Requests that reserved and have not ended; `id` is the request's.
    """CREATE TABLE reservations (
        id TEXT PRIMARY KEY, boot_id TEXT NOT NULL, client TEXT NOT NULL, key_id TEXT NOT NULL,
        model TEXT NOT NULL, day TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL, nano_usd INTEGER NOT NULL
    ) WITHOUT ROWID""",
    # Sums of a day, and again of its month; `estimated`: how many of the requests.
    """CREATE TABLE usage (
        period TEXT NOT NULL, client TEXT NOT NULL, key_id TEXT NOT NULL, model TEXT NOT NULL,
        requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL, nano_usd INTEGER NOT NULL, estimated INTEGER NOT NULL,
        PRIMARY KEY (period, client, key_id, model)
    ) WITHOUT ROWID""",
)

_STORED = (
    # Whose a stored response, conversation or file of the provider is, and which route has it.
    """CREATE TABLE stored_objects (
        id TEXT PRIMARY KEY, client TEXT NOT NULL, route TEXT, kind TEXT NOT NULL, created_at TEXT NOT NULL
    ) WITHOUT ROWID""",
)

# Several processes on one database. Times that are compared between them are Unix seconds by its clock.
_INSTANCES = (
    # The generation of the last change: another process loads only what is newer than what it has. `cut`: the
    # open streams of the key end.
    "ALTER TABLE keys ADD COLUMN generation INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE keys ADD COLUMN cut INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE clients ADD COLUMN generation INTEGER NOT NULL DEFAULT 0",
    """CREATE TABLE instances (
        boot_id TEXT PRIMARY KEY, name TEXT NOT NULL, worker INTEGER, address TEXT NOT NULL,
        pid INTEGER NOT NULL, version TEXT NOT NULL, started_at TEXT NOT NULL, heartbeat_at REAL NOT NULL,
        ended_at REAL, generation INTEGER NOT NULL, intake TEXT NOT NULL, streams INTEGER NOT NULL
    ) WITHOUT ROWID""",
    # What one instance asks of the others, and what they answer; kept for a minute. `target` null: of all.
    """CREATE TABLE commands (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, sender TEXT NOT NULL, target TEXT, kind TEXT NOT NULL,
        argument TEXT NOT NULL
    )""",
    """CREATE TABLE replies (
        command_id INTEGER NOT NULL, boot_id TEXT NOT NULL, reply TEXT NOT NULL,
        PRIMARY KEY (command_id, boot_id)
    ) WITHOUT ROWID""",
    # The newest command's id: given under the lock of this row, so that ids are in the order of commits.
    "INSERT INTO meta VALUES ('command', 0)",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, (*_CLIENTS, *_USAGE, *_STORED), _INSTANCES)

TABLES = re.findall(r"CREATE TABLE (\w+)", " ".join(statement for step in MIGRATIONS for statement in step))
"""The names of all tables."""
UNFINISHED_COPY = "unfinished_copy"
"""A table that is there while `relayd migrate-state` copies into the database."""
OLDEST_READER = 3
"""How many of them a relayd has to know to use a database that has seen all of them, beside newer ones.

A migration that an older relayd would not survive raises it."""


def check_version(connection: Connection) -> int:
    """Return how many migrations the database has seen, of those that this relayd knows.

    Raises:
        StateOtherFormat: a newer relayd wrote it, or `relayd migrate-state` has not finished.
        StateDamaged: it is the database of some other program.
    """
    version = connection.version()
    if version > len(MIGRATIONS) >= connection.oldest_reader():
        return len(MIGRATIONS)
    if not 0 <= version <= len(MIGRATIONS):
        raise StateOtherFormat(
            f"The database {connection.where} has format {version}, this relayd knows up to "
            f"{len(MIGRATIONS)}: a newer relayd wrote it. Start that version, or restore the backup from "
            "before the upgrade."
        )
    return version


def is_current(connection: Connection) -> bool:
    """Return whether the database has every table and column that this relayd reads.

    Raises:
        StateOtherFormat, StateDamaged: as `check_version`.
    """
    return check_version(connection) == len(MIGRATIONS) and not _missing_columns(connection)


def require_current(connection: Connection) -> None:
    """Do nothing if the database has every table and column that this relayd reads.

    Raises:
        StateOtherFormat, StateDamaged: it has not, or as `check_version`.
    """
    if not is_current(connection):
        raise StateOtherFormat(
            f"The database {connection.where} has an old format; start this relayd once to bring it up to "
            "date."
        )


def migrate(connection: Connection) -> None:
    """Bring the database up to date, all of it in one transaction.

    Raises:
        StateOtherFormat, StateDamaged: as `check_version`.
        EngineError: nothing has changed once the connection is closed.
    """
    if is_current(connection):
        return
    connection.begin_migration()
    bring_up_to_date(connection)
    connection.end_migration()


def bring_up_to_date(connection: Connection) -> None:
    """Make what is missing, within `begin_migration` and `end_migration`."""
    for step in MIGRATIONS[check_version(connection) :]:
        for statement in step:
            connection.define(statement)
    for column in _missing_columns(connection):
        connection.define(f"ALTER TABLE requests ADD COLUMN {column} {COLUMNS[column]}")
    connection.set_version(len(MIGRATIONS), OLDEST_READER)


def _missing_columns(connection: Connection) -> list[str]:
    found = connection.columns("requests")
    return [column for column in COLUMNS if column not in found]
