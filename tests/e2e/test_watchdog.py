"""The signs of life that a real daemon gives its service manager."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.daemon import KEY, PROVIDER_KEY, environment
from tests.test_systemd import Manager
from tests.wire import until

_PERIOD_S = 0.6
# A daemon whose event loop a signal blocks, until somebody opens a pipe and closes it.
_BLOCKABLE = """
import signal, sys
from relayd.cli import main
signal.signal(signal.SIGUSR1, lambda *_: open("pipe", "rb").read())
sys.argv = ["relayd", "serve", "--demo"]
sys.exit(main())
"""


async def test_a_blocked_loop_gives_no_sign_of_life_within_the_period(tmp_path: Path) -> None:
    """Though the process and its other threads are well; as soon as the loop turns again, it does."""
    address = f"@relayd-test-watchdog-{os.getpid()}"
    os.mkfifo(tmp_path / "pipe")
    env = {
        "AUTHORIZATION_KEY": KEY,
        "OPENAI_API_KEY": PROVIDER_KEY,
        "RELAYD_SERVER__PORT": "0",
        "NOTIFY_SOCKET": address,
        "WATCHDOG_USEC": str(round(_PERIOD_S * 1_000_000)),
    }
    with Manager(address) as manager:
        daemon = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _BLOCKABLE),
            cwd=tmp_path,
            env=environment(tmp_path, env),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            await manager.until("WATCHDOG=1")
            daemon.send_signal(signal.SIGUSR1)
            writing = await _opened(tmp_path / "pipe")
            try:
                manager.forget()
                await asyncio.sleep(2 * _PERIOD_S)
                with pytest.raises(BlockingIOError):
                    manager.heard()
            finally:
                os.close(writing)
            assert await manager.message() == ["WATCHDOG=1"]
        finally:
            daemon.kill()
            await daemon.wait()


async def _opened(pipe: Path) -> int:
    """The writing end of a pipe that somebody reads: until then it cannot be opened (fifo(7))."""
    found: list[int] = []

    def is_open() -> bool:
        with suppress(OSError):
            found.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(found)

    await until(is_open)
    return found[0]
