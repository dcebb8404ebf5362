"""`relayd migrate-state`: copy the state from SQLite into PostgreSQL, for several machines to share."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from contextlib import closing
from pathlib import Path

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from relayd.commands.console import EXIT_FAILED, EXIT_USAGE, Console
from relayd.commands.effective_settings import load_effective
from relayd.config import ConfigError
from relayd.files import DATABASE, database_path, socket_path
from relayd.printable import plural
from relayd.state.copy_state import Copied, Progress, copy_state
from relayd.state.errors import StateError
from relayd.state.postgres import Postgres

_LARGE = 100_000
"""Tables with at least this many rows report their progress."""
_COUNTED = {"clients": "client", "keys": "key", "requests": "request"}


def run(args: Namespace) -> int:
    """Copy the database of a daemon that does not run; returns the exit status."""
    console = Console(os.environ, sys.stdout, sys.stderr)
    if args.url != "-" and _has_password(args.url):
        console.note(
            "relayd: The URL has a password, which all users of this machine can see while the command runs. "
            "Leave it out (~/.pgpass or $PGPASSFILE can have it), or pass - and the URL on stdin."
        )
        return EXIT_USAGE
    try:
        database = _database(args, console)
        with closing(Postgres(sys.stdin.readline().strip() if args.url == "-" else args.url)) as target:
            console.note(f"Copying {database} to the database {target.where} ...")
            copied = copy_state(database, target, lambda progress: _show(console, progress))
    except (ConfigError, StateError) as error:
        console.note(f"relayd: {error}")
        return EXIT_FAILED
    if args.json:
        console.json(copied)
    else:
        _say(console, copied)
    return 0


def _has_password(url: str) -> bool:
    try:
        return "password" in conninfo_to_dict(url)
    except ProgrammingError:  # `Postgres` says what is wrong with it
        return False


def _database(args: Namespace, console: Console) -> Path:
    """Return the file of the daemon: in its configured directory; with `--socket`, beside that."""
    if args.socket is None:
        configured = load_effective(args.config).settings.state_dir / DATABASE
        if configured.exists():
            return configured
    return database_path(console.env, socket_path(console.env, args.socket))


def _show(console: Console, progress: Progress) -> None:
    if progress.of >= _LARGE and progress.rows % _LARGE == 0:
        console.note(f"{progress.table}: {progress.rows:,} of {progress.of:,} {progress.step}")


def _say(console: Console, copied: Copied) -> None:
    counts = [plural(copied.rows[table], noun) for table, noun in _COUNTED.items()]
    begun = "Continued an interrupted copy. " if copied.is_continued else ""
    console.tell(
        f"{begun}Copied and verified {', '.join(counts)} and all else, {sum(copied.rows.values()):,} rows. "
        "Set state.url (or state.url_file) and start relayd; its SQLite file is not used any more."
    )
