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
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from relayd import __version__
from tui.hosts import HERE, Host, HostError, remembered, shortened
from tui.model.glyphs import TERMINAL

if TYPE_CHECKING:
    from relayd.admin.archive import Archive
    from relayd.admin.client import AdminClient
    from relayd.admin.schema import Status
    from tui.app import RelaydApp
    from tui.settings import SettingsFile

_LEAVE_WITHIN_S = 2.0
_COLLECT_AFTER = 10_000


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    arguments = argparse.ArgumentParser(
        prog="relayd-tui", description="The operator's app of relayd: see every request, and change keys."
    )
    arguments.add_argument("--version", action="version", version=f"relayd-tui {__version__}")
    arguments.add_argument(
        "--host",
        metavar="[USER@]SERVER[:PORT]",
        type=_host,
        action="append",
        default=[],
        help="the daemon of a server, by ssh; repeated: more servers to switch to (H)",
    )
    arguments.add_argument(
        "--socket", metavar="PATH", help="the daemon's admin socket; with --host, its path on the server"
    )
    arguments.add_argument(
        "--demo", action="store_true", help="start a daemon with made-up traffic, apart from any real one"
    )
    arguments.add_argument("--readonly", action="store_true", help="show everything, but change nothing")
    arguments.add_argument("--plain", action="store_true", help="print lines of text instead of a screen")
    return arguments


def _host(text: str) -> Host:
    try:
        return Host.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit status: 0, or 1 with a sentence on stderr, or 2 for wrong usage."""
    arguments = parser()
    options = arguments.parse_args(argv)
    env = dict(os.environ)
    if options.plain and sys.stdout is None:
        sys.stderr.write("relayd-tui --plain has no standard output to write to.\n")
        return 1
    _open_missing_streams()
    try:
        if not options.demo:
            return _run(options, env)
        if options.host:
            arguments.error("--demo starts a daemon of its own: it has no --host")
        from tui.demo import demo_daemon  # noqa: PLC0415 - only the demo needs it

        with demo_daemon() as socket_path:
            options.socket = str(socket_path)
            return _run(options, env)
    except HostError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except asyncio.CancelledError:
        # A signal ended it before the app was there.
        return 128 + signal.SIGTERM


def _open_missing_streams() -> None:
    """Give a standard stream that is closed the null device, so that nothing else gets its descriptor."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", encoding="utf-8"))  # noqa: SIM115, PTH123 - stays open


def _run(options: argparse.Namespace, env: dict[str, str]) -> int:
    TERMINAL.adapt(env, sys.stdout.encoding)
    if options.plain or env.get("TERM") == "dumb":
        from tui.plain import run_plain  # noqa: PLC0415 - line mode does without Textual

        return run_plain(_daemon(_first(options), options, env), sys.stdout)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        sys.stderr.write("relayd-tui needs a terminal; --plain writes lines instead.\n")
        return 1
    return asyncio.run(_run_app(options, env))


def _first(options: argparse.Namespace) -> Host:
    hosts: list[Host] = options.host
    return hosts[0] if hosts else HERE


@asynccontextmanager
async def _daemon(host: Host, options: argparse.Namespace, env: dict[str, str]) -> AsyncIterator[AdminClient]:
    """Yield a client of the daemon of this machine or of a server. Raises HostError."""
    if host.is_here:
        from relayd.admin.client import AdminClient  # noqa: PLC0415 - the help needs no HTTP client

        yield AdminClient(_socket(options, env))
        return
    from tui.host_link import connected  # noqa: PLC0415 - only a server needs it

    named = options.socket if options.host else None
    async with connected(host, named or "", env) as client:
        yield client


def _socket(options: argparse.Namespace, env: dict[str, str]) -> Path:
    from relayd.files import socket_path  # noqa: PLC0415 - the help does without

    return socket_path(env, None if options.host else options.socket)


async def _run_app(options: argparse.Namespace, env: dict[str, str]) -> int:
    """Run the app on one daemon after the other, until the operator leaves."""
    from tui.settings import SettingsFile, config_dir  # noqa: PLC0415 - line mode does without

    settings_file = SettingsFile(config_dir(env) / "tui.json")
    way, host, trouble = AsyncExitStack(), _first(options), ""
    try:
        client = await _enter(way, host, options, env)
        while True:
            if not host.is_here:
                settings_file.settings.hosts = remembered(host, settings_file.settings.hosts)
            app = _app(client, host, options, env, settings_file, trouble)
            status = await run_app(app)
            if app.next_host is None:
                return status
            next_way, trouble = AsyncExitStack(), app.next_reason
            try:
                client = await _enter(next_way, app.next_host, options, env)
            except HostError as error:
                trouble = str(error)
                continue
            await way.aclose()
            way, host = next_way, app.next_host
    finally:
        await way.aclose()


async def _enter(
    way: AsyncExitStack, host: Host, options: argparse.Namespace, env: dict[str, str]
) -> AdminClient:
    """Connect while no app has the terminal: ssh may ask on it, and Ctrl-C ends ssh alone."""
    if host.is_here:
        return await way.enter_async_context(_daemon(host, options, env))
    sys.stderr.write(f"Connecting to {host} by ssh ...\n")
    connecting = asyncio.ensure_future(way.enter_async_context(_daemon(host, options, env)))
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with _leaving_on_signals(lambda _: connecting.cancel()):
            return await connecting
    finally:
        signal.signal(signal.SIGINT, before)


def _app(
    client: AdminClient,
    host: Host,
    options: argparse.Namespace,
    env: dict[str, str],
    settings_file: SettingsFile,
    trouble: str,
) -> RelaydApp:
    from tui.app import Options, RelaydApp  # noqa: PLC0415 - line mode does without Textual

    def open_archive(status: Status | None) -> Archive | None:
        from relayd.admin.archive import Archive  # noqa: PLC0415 - only when the daemon is down
        from relayd.files import database_path  # noqa: PLC0415 - as above

        path = database_path(env, _socket(options, env)) if status is None else status.database
        return None if path is None or not path.exists() else Archive(path)

    here = "demo" if options.demo else socket.gethostname().split(".")[0]
    return RelaydApp(
        client,
        Options(
            place=shortened(here if host.is_here else host.server),
            readonly=options.readonly,
            env=env,
            host=host,
            hosts=None if options.demo else options.host,
            trouble=trouble,
        ),
        settings_file,
        open_archive=open_archive if host.is_here and not options.demo else None,
    )


async def run_app(app: RelaydApp) -> int:
    """Run the app on this terminal until the operator leaves; returns the exit status."""
    # What was imported stays: without this, looking through it stops the app for 30 ms now and then.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
    with _leaving_on_signals(app.exit):
        result = await app.run_async(mouse=app.context.settings_file.settings.mouse)
    return app.return_code or 0 if result is None else result


@contextmanager
def _leaving_on_signals(leave: Callable[[int], object]) -> Iterator[None]:
    """Leave in order when the terminal is closed or on `kill`; two seconds later, in any case."""

    def begin(number: int) -> None:
        watchdog = threading.Timer(_LEAVE_WITHIN_S, os._exit, (128 + number,))
        watchdog.daemon = True
        watchdog.start()
        leave(128 + number)

    loop, numbers = asyncio.get_running_loop(), (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, begin, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


if __name__ == "__main__":
    sys.exit(main())
