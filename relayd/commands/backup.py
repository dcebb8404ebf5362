"""`relayd backup`: copy the state into one file."""

from __future__ import annotations

from argparse import Namespace

from relayd.admin.client import NoDaemon, VersionMismatch
from relayd.commands.console import Console, size
from relayd.commands.effective_settings import load_effective
from relayd.config import ConfigError
from relayd.files import database_path
from relayd.state.backup import back_up
from relayd.state.errors import StateError


async def run(args: Namespace, console: Console) -> int:
    """Copy the database of the daemon at the socket, also while the daemon is down."""
    client = console.client(args.socket)
    try:
        database = (await client.status()).database
    except (NoDaemon, VersionMismatch):
        database = None if _is_configured_to_share() else database_path(console.env, client.socket)
    if database is None:
        console.note(
            "relayd: The state is in PostgreSQL, and not in the state directory any more. Back it up there: "
            "pg_dump --format=custom --file=FILE NAME"
        )
        return 1
    try:
        backup = back_up(database, args.file.absolute())
    except StateError as error:
        console.note(f"relayd: {error}")
        return 1
    if args.json:
        console.json(backup)
    else:
        console.say(
            f"Copied clients, keys, usage, audit and log from {backup.database} to {backup.file} "
            f"({size(backup.bytes)})."
        )
    return 0


def _is_configured_to_share() -> bool:
    """Return whether the daemon, which does not run, would use PostgreSQL."""
    try:
        effective = load_effective(None)
    except ConfigError:
        return False
    return effective.settings.state.is_on_server or "state.url" in effective.hidden
