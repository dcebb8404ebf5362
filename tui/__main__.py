"""`relayd-tui`: reads its arguments, then starts the app or the line mode."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from relayd import __version__
from tui.glyphs import TERMINAL

if TYPE_CHECKING:
    from relayd.admin.archive import Archive
    from relayd.admin.client import AdminClient
    from relayd.admin.schema import Status
    from tui.app import RelaydApp

_LEAVE_WITHIN_S = 2.0
_COLLECT_AFTER = 10_000


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    arguments = argparse.ArgumentParser(
        prog="relayd-tui", description="The operator's app of relayd: see every request, and change keys."
    )
    arguments.add_argument("--version", action="version", version=f"relayd-tui {__version__}")
    arguments.add_argument("--socket", metavar="PATH", help="the daemon's admin socket")
    arguments.add_argument(
        "--demo", action="store_true", help="start a daemon with made-up traffic, apart from any real one"
    )
    arguments.add_argument("--readonly", action="store_true", help="show everything, but change nothing")
    arguments.add_argument("--plain", action="store_true", help="print lines of text instead of a screen")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit status: 0, or 1 with a sentence on stderr, or 2 for wrong usage."""
    options = parser().parse_args(argv)
    env = dict(os.environ)
    if not options.demo:
        return _run(options, env)
    from tui.demo import demo_daemon  # noqa: PLC0415 - only the demo needs it

    with demo_daemon() as socket_path:
        options.socket = str(socket_path)
        return _run(options, env)


def _run(options: argparse.Namespace, env: dict[str, str]) -> int:
    TERMINAL.adapt(env, sys.stdout.encoding)
    if options.plain or env.get("TERM") == "dumb":
        from tui.plain import run_plain  # noqa: PLC0415 - line mode does without Textual

        return run_plain(_client(options, env), sys.stdout)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        sys.stderr.write("relayd-tui needs a terminal; --plain writes lines instead.\n")
        return 1
    return asyncio.run(_run_app(options, env))


def _client(options: argparse.Namespace, env: dict[str, str]) -> AdminClient:
    from relayd.admin.client import AdminClient  # noqa: PLC0415 - the help needs no HTTP client
    from relayd.admin.paths import socket_path  # noqa: PLC0415 - as above

    return AdminClient(socket_path(env, options.socket))


async def _run_app(options: argparse.Namespace, env: dict[str, str]) -> int:
    from tui.app import Options, RelaydApp  # noqa: PLC0415 - line mode does without Textual
    from tui.settings import SettingsFile, config_dir  # noqa: PLC0415 - as above

    def open_archive(status: Status | None) -> Archive | None:
        from relayd.admin.archive import Archive  # noqa: PLC0415 - only when the daemon is down
        from relayd.admin.paths import database_path, known_database, socket_path  # noqa: PLC0415

        asked = socket_path(env, options.socket)
        path = database_path(env, asked) if status is None else known_database(status)
        return None if path is None or not path.exists() else Archive(path)

    app = RelaydApp(
        _client(options, env),
        Options("demo" if options.demo else socket.gethostname().split(".")[0][:20], options.readonly, env),
        SettingsFile(config_dir(env) / "tui.json"),
        open_archive=None if options.demo else open_archive,
    )
    return await run_app(app)


async def run_app(app: RelaydApp) -> int:
    """Run the app on this terminal until the operator leaves; returns the exit status."""
    _leave_on_signals(app)
    # What was imported stays: without this, looking through it stops the app for 30 ms now and then.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
    result = await app.run_async(mouse=app.context.settings_file.settings.mouse)
    return app.return_code or 0 if result is None else result


def _leave_on_signals(app: RelaydApp) -> None:
    """End the app in order when the terminal is closed or on `kill`; two seconds later, in any case."""

    def leave(number: int) -> None:
        watchdog = threading.Timer(_LEAVE_WITHIN_S, os._exit, (128 + number,))
        watchdog.daemon = True
        watchdog.start()
        app.exit(128 + number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        loop.add_signal_handler(number, leave, number)


if __name__ == "__main__":
    sys.exit(main())
