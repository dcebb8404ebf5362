"""Restarts a daemon again and again under one listening socket, as systemd does, with clients at work."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.e2e.daemon import KEY, PROVIDER_KEY, environment
from tests.wire import DONE, HOST, Wire, body, post

# As systemd does it: the socket as descriptor 3, and the process id of who is to take it.
_LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "relayd", "serve", "--demo"])
"""
_MODEL = "demo:text=words,deltas=20,interval_ms=20,first_ms=0"
_CLIENTS = 10
_END_S = 60.0


async def restarted(home: Path, times: int) -> Counter[str]:
    """How the requests ended that clients made all the while: `whole`, an error's code, or what was wrong."""
    ends: Counter[str] = Counter()
    stopping = asyncio.Event()
    with socket.create_server((HOST, 0), backlog=1024) as listening:
        port = listening.getsockname()[1]
        process = await _started(home, listening)
        clients = [asyncio.create_task(_client(port, ends, stopping), name="client") for _ in range(_CLIENTS)]
        try:
            for _ in range(times):
                known = ends.total()
                async with asyncio.timeout(_END_S):
                    while ends.total() < known + _CLIENTS:  # noqa: ASYNC110 - as below
                        await asyncio.sleep(0.02)
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, _END_S) == 0
                process = await _started(home, listening)
            stopping.set()
            await asyncio.gather(*clients)
        finally:
            for client in clients:
                client.cancel()
            process.kill()
            process.wait()
    return ends


async def _client(port: int, ends: Counter[str], stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        try:
            ends[await _asked(port)] += 1
        except ConnectionRefusedError:
            ends["refused"] += 1
        except (EOFError, OSError) as error:
            ends[f"broken: {type(error).__name__}"] += 1


async def _asked(port: int) -> str:
    async with asyncio.timeout(_END_S), await Wire.open(port) as wire:
        wire.send(post(KEY, body(_MODEL)))
        reply = await wire.reply()
        if reply.cut or reply.lines[-1] != DONE:
            return "cut"
        return "whole" if reply.error is None else reply.error.partition(":")[0]


async def _started(home: Path, listening: socket.socket) -> subprocess.Popen[bytes]:
    log = home / "stderr"
    known = log.stat().st_size if log.exists() else 0
    process = _launched(home, log, listening)
    async with asyncio.timeout(_END_S):
        while b"serving on" not in log.read_bytes()[known:]:  # noqa: ASYNC110 - a file announces nothing
            await asyncio.sleep(0.02)
    return process


def _launched(home: Path, log: Path, listening: socket.socket) -> subprocess.Popen[bytes]:
    settings = {"AUTHORIZATION_KEY": KEY, "OPENAI_API_KEY": PROVIDER_KEY, "LISTEN_FDS": "1"}
    with log.open("ab") as stderr:
        return subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(listening.fileno())],
            cwd=home,
            env=environment(home, settings),
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[listening.fileno()],
        )
