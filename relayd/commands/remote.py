"""Runs a command that asks the daemon, and renders whatever keeps it from an answer."""

from __future__ import annotations

import asyncio
import os
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable
from importlib import import_module
from io import TextIOWrapper

from relayd.admin.client import AdminClientError, NoDaemon
from relayd.admin.schema import FilterError
from relayd.commands.console import Console

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_DAEMON = 3

# Module and function, so that a command imports only its own.
_COMMANDS = {
    "status": ("status", "run"),
    "log": ("log", "run"),
    "cancel": ("control", "cancel"),
    "pause": ("control", "pause"),
    "resume": ("control", "resume"),
    "drain": ("control", "drain"),
    "keys list": ("keys", "list_keys"),
    "keys add": ("keys", "add"),
    "keys rotate": ("keys", "rotate"),
    "keys extend": ("keys", "extend"),
    "keys undo": ("keys", "undo"),
    "keys revoke": ("keys", "revoke"),
}


def run(args: Namespace) -> int:
    """Run the command that `args` names; returns the exit status."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal without UTF-8 shows escapes; it does not end the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(os.environ, sys.stdout, sys.stderr)
    name = f"keys {args.action}" if args.command == "keys" else args.command
    module, function = _COMMANDS[name]
    command: Callable[[Namespace, Console], Awaitable[int]] = getattr(
        import_module(f"relayd.commands.{module}"), function
    )

    async def answer() -> int:
        return await command(args, console)

    try:
        return asyncio.run(answer())
    except FilterError as error:
        console.note(f"relayd: {error}")
        for line in error.pointer().splitlines():
            console.note(f"  {line}")
        return EXIT_USAGE
    except NoDaemon as error:
        console.note(f"relayd: {error}")
        return EXIT_NO_DAEMON
    except AdminClientError as error:
        console.note(f"relayd: {error}")
        return EXIT_FAILED
