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
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relayd.admin.link import Link
    from tui.app import RelaydApp
    from tui.history import Reader
    from tui.settings import SettingsFile
    from tui.terminal_app import Options

_LEAVE_WITHIN_S = 2.0
_COLLECT_AFTER = 10_000


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    arguments = argparse.ArgumentParser(
        prog="relayd-tui", description="The operator's app of relayd: see every request, change keys."
    )
    arguments.add_argument("--socket", metavar="PATH", help="the daemon's admin socket")
    arguments.add_argument("--demo", action="store_true", help="a simulated daemon; nothing real is touched")
    arguments.add_argument("--readonly", action="store_true", help="look, change nothing")
    arguments.add_argument("--plain", action="store_true", help="lines of text instead of a screen")
    arguments.add_argument("--seed", type=int, help="make --demo play the same traffic again")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit status is 0, or 1 with a sentence on stderr, or 2 for wrong usage."""
    options = parser().parse_args(argv)
    env = dict(os.environ)
    if options.plain or env.get("TERM") == "dumb":
        from tui.plain import run_plain  # noqa: PLC0415 - no Textual in line mode

        return run_plain(_link(options, env), sys.stdout)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        sys.stderr.write("relayd-tui needs a terminal; --plain writes lines instead.\n")
        return 1
    return _run_app(options, env)


def _link(options: argparse.Namespace, env: dict[str, str]) -> Link:
    if options.demo:
        from tui.demo.link import DemoLink  # noqa: PLC0415 - only the demo needs it

        return DemoLink(seed=options.seed)
    from relayd.admin.client import AdminClient  # noqa: PLC0415 - the demo needs no HTTP client
    from relayd.admin.paths import socket_path  # noqa: PLC0415 - as above

    return AdminClient(socket_path(env, options.socket))


def _archive(options: argparse.Namespace, env: dict[str, str]) -> Reader | None:
    from relayd.admin.archive import Archive  # noqa: PLC0415 - only when the daemon is down
    from relayd.admin.paths import database_path, socket_path  # noqa: PLC0415 - as above

    path = database_path(env, socket_path(env, options.socket))
    return Archive(path) if path.exists() else None


def _run_app(options: argparse.Namespace, env: dict[str, str]) -> int:
    from tui.settings import SettingsFile, config_dir  # noqa: PLC0415 - as above
    from tui.terminal_app import Options  # noqa: PLC0415 - line mode does without Textual

    place = "demo" if options.demo else socket.gethostname().split(".")[0][:20]
    settings = SettingsFile(config_dir(env) / "tui.json")

    archive = None if options.demo else lambda: _archive(options, env)

    async def run() -> int:
        link = _link(options, env)
        return await run_app(link, Options(place, options.readonly, env), settings, open_archive=archive)

    return asyncio.run(run())


async def run_app(
    link: Link,
    options: Options,
    settings: SettingsFile,
    *,
    open_archive: Callable[[], Reader | None] | None = None,
) -> int:
    """Run the app on this terminal until the operator leaves; returns the exit status."""
    from tui.app import RelaydApp  # noqa: PLC0415 - line mode does without Textual

    app = RelaydApp(link, options, settings, open_archive=open_archive)
    _leave_on_signals(app)
    _calm_the_collector()
    result = await app.run_async(mouse=settings.settings.mouse)
    return app.return_code or 0 if result is None else result


def _calm_the_collector() -> None:
    """What was imported stays: without this, looking through it stops the app for 30 ms now and then."""
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)


def _leave_on_signals(app: RelaydApp) -> None:
    """A closed terminal or a `kill` ends the app in order; two seconds later, in any case."""

    def leave(number: int) -> None:
        watchdog = threading.Timer(_LEAVE_WITHIN_S, os._exit, (128 + number,))
        watchdog.daemon = True
        watchdog.start()
        app.exit(128 + number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGHUP, signal.SIGTERM):
        loop.add_signal_handler(number, leave, number)


if __name__ == "__main__":
    sys.exit(main())
