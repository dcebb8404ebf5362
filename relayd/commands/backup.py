"""`relayd backup`: copy the state into one file."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from relayd.admin.client import NoDaemon, VersionMismatch
from relayd.admin.paths import DATABASE, database_path
from relayd.commands.console import Console, size
from relayd.state.backup import back_up
from relayd.state.errors import StateError


async def run(args: Namespace, console: Console) -> int:
    """Copy the database of the daemon at the socket, also while the daemon is down."""
    client = console.client(args.socket)
    try:
        database = Path((await client.status()).state_dir) / DATABASE
    except (NoDaemon, VersionMismatch):
        database = database_path(console.env, client.socket)
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
