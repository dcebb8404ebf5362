"""A daemon that was started at a terminal, and the end of that terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.daemon import KEY, Daemon, command, environment
from tests.wire import Wire, ask, body, post, until

_SLOW = body("demo:text=words,deltas=8,interval_ms=100")
_QUICK = body("demo:text=words,deltas=1,interval_ms=0,first_ms=0")


# The first terminal that a session opens becomes its own (tty(4)).
_LAUNCH = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.Handlers[sys.argv[1]])
os.dup2(os.open(sys.argv[2], os.O_RDWR), 0)
os.execv(sys.argv[3], sys.argv[3:])
"""


class _AtTerminal(Daemon):
    """A daemon whose session has a terminal of its own; `close_terminal` is what closing the window does."""

    hangup = signal.SIG_DFL

    def launch(self) -> None:
        """Start it in a new session."""
        self.configure({})
        ours, its = pty.openpty()
        self._terminal, name = os.fdopen(ours, "rb"), os.ttyname(its)
        with self._stderr.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, self.hangup.name, name, *command("serve")],
                cwd=self.home,
                env=environment(self.home, self._env),
                stderr=stderr,
                start_new_session=True,
            )
        os.close(its)

    def close_terminal(self) -> None:
        """Close the window."""
        self._terminal.close()


async def test_closing_the_terminal_stops_the_daemon_as_a_signal_does(tmp_path: Path) -> None:
    """The open stream ends whole, then the port is free."""
    with _AtTerminal(tmp_path) as daemon:
        async with await Wire.open(daemon.port) as wire:
            reply = await wire.begin(post(KEY, _SLOW))
            daemon.close_terminal()
            await wire.rest(reply)
            assert (reply.error, reply.cut) == (None, False)
        assert await asyncio.to_thread(daemon.wait) == 0
        assert "the terminal was closed" in daemon.stderr


async def test_a_hangup_signal_reloads_while_the_terminal_is_there(tmp_path: Path) -> None:
    """`kill -HUP` from another window."""
    with _AtTerminal(tmp_path) as daemon:
        daemon.configure({"server.max_streams": 7})
        daemon.signal(signal.SIGHUP)
        await until(lambda: "server.max_streams is now 7" in daemon.stderr)
        assert (await ask(daemon.port, KEY, _QUICK)).status == 200
        daemon.close_terminal()


class _UnderNohup(_AtTerminal):
    hangup = signal.SIG_IGN


async def test_under_nohup_the_daemon_outlives_its_terminal(tmp_path: Path) -> None:
    """As it was asked to; a hangup still reloads."""
    with _UnderNohup(tmp_path) as daemon:
        daemon.close_terminal()
        daemon.configure({"server.max_streams": 7})
        daemon.signal(signal.SIGHUP)
        await until(lambda: "server.max_streams is now 7" in daemon.stderr)
        assert (await ask(daemon.port, KEY, _QUICK)).status == 200
