"""The operator's app at 80x24 in a pseudo-terminal: first paint, idle CPU, and from a key to the screen.

A real daemon with a load of thousands of events a second would need more than one core. So one request to the
real daemon is recorded, as its admin socket shows it, and replayed at a rate by this module as a process
(`python -m benchmark.terminal SOCKET RECORDING REQUESTS_PER_S`). No schema is repeated here.
"""

from __future__ import annotations

import asyncio
import copy
import fcntl
import json
import os
import pty
import random
import select
import statistics
import struct
import subprocess
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from benchmark.programs import Cores, Program, cpu_s, on_core
from benchmark.relays import ROOT, AdminConnection

_PATHS = ("/status", "/keys", "/audit", "/requests")
_VERSION_HEADER = "Relayd-Admin"
_TICK_S = 0.05
_STARTS = 5
_SETTLE_S = 4.0
_WATCH_S = 10.0
_TIMEOUT_S = 60.0
_PRESSES = 200
_EVENTS_PER_S = 2000
_CURSOR = "▶".encode()
_PAINTED = b"Requests"
_LIVE = b"LIVE"


def measure(
    python: Path, admin_socket: Path, folder: Path, request: Callable[[], object]
) -> dict[str, float]:
    """Run the app of one version of relayd and return the figures of its row.

    Args:
        python: the interpreter that has this version.
        admin_socket: that of a running daemon, of which nothing has been asked yet.
        folder: for this run's files.
        request: makes one request to that daemon, of a few seconds.
    """
    recording = folder / "recording.json"
    recording.write_text(json.dumps(_record(admin_socket, request)))
    to_terminal_ms, to_paint_ms, waits_ms = [], [], []
    with _replayed(folder, recording, 0) as replay:
        for _ in range(_STARTS):
            with _Screen(python, replay, folder) as screen:
                screen.read(_TIMEOUT_S)
                to_terminal_ms.append((time.monotonic() - screen.began_s) * 1000)
                screen.until(_PAINTED)
                to_paint_ms.append((time.monotonic() - screen.began_s) * 1000)
        with _Screen(python, replay, folder) as screen:
            screen.until(_LIVE)
            screen.watch(_SETTLE_S)
            before_s = screen.cpu_s()
            screen.watch(_WATCH_S)
            idle = 100 * (screen.cpu_s() - before_s) / _WATCH_S
    with _replayed(folder, recording, _EVENTS_PER_S / 2) as replay, _Screen(python, replay, folder) as screen:
        screen.until(_LIVE)
        # The list stands still while the cursor is inside it; every press moves the cursor.
        screen.press(b"kkkk")
        screen.watch(_SETTLE_S)
        pauses = random.Random(1)  # noqa: S311 - spreads the key presses, nothing secret
        for number in range(_PRESSES):
            screen.watch(pauses.uniform(0.02, 0.08))
            screen.press(b"kj"[number % 2 : number % 2 + 1])
            waits_ms.append(screen.until(_CURSOR) * 1000)
    return {
        "tui: ms from the start to the first byte (Python, imports)": statistics.median(to_terminal_ms),
        "tui: ms from the start to the first paint": statistics.median(to_paint_ms),
        "tui: % CPU, idle": idle,
        f"tui: ms from a key to the screen at {_EVENTS_PER_S:,} events/s, p50": statistics.median(waits_ms),
        f"tui: ms from a key to the screen at {_EVENTS_PER_S:,} events/s, p99": statistics.quantiles(
            waits_ms, n=100
        )[98],
    }


def _record(admin_socket: Path, request: Callable[[], object]) -> dict[str, Any]:
    """Return the daemon's documents before one request, and its events during that."""
    recording: dict[str, Any] = {}
    with closing(AdminConnection(admin_socket)) as admin:
        for path in _PATHS:
            recording[path] = admin.ask("GET", path)
    with closing(AdminConnection(admin_socket)) as events:
        events.request("GET", "/events")
        response = events.getresponse()
        recording["version"] = response.headers[_VERSION_HEADER]
        request()
        while "ended" not in recording:
            event = json.loads(response.readline())
            recording[event["event"]] = event
    return recording


@contextmanager
def _replayed(folder: Path, recording: Path, requests_per_s: float) -> Iterator[Path]:
    """Replay the recording behind an admin socket; yield its path."""
    path = folder / f"replay-{requests_per_s:g}.sock"
    command = [sys.executable, "-m", "benchmark.terminal", str(path), str(recording), str(requests_per_s)]
    env = dict(os.environ) | {"PYTHONPATH": str(ROOT / "scripts")}
    program = Program(command, core=Cores.of_this_machine().load, env=env, folder=folder)
    try:
        deadline_s = time.monotonic() + _TIMEOUT_S
        while not path.exists() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        yield path
    finally:
        program.stop()


class _Screen:
    """The app in a pseudo-terminal."""

    def __init__(self, python: Path, admin_socket: Path, home: Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
        env |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.began_s = time.monotonic()
        with on_core(Cores.of_this_machine().measured):
            self._process = subprocess.Popen(
                [str(python), "-m", "tui", "--socket", str(admin_socket)],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=env,
                cwd=home,
                start_new_session=True,
            )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def read(self, timeout_s: float) -> bytes:
        """Return what the app writes next, or nothing after the timeout."""
        if not select.select([self._master], [], [], max(0.0, timeout_s))[0]:
            return b""
        return os.read(self._master, 1 << 16)

    def until(self, wanted: bytes) -> float:
        """Read until this was written; return how many seconds that took.

        Raises:
            TimeoutError: it was not written in time.
        """
        began_s, seen = time.monotonic(), b""
        while wanted not in seen:
            if time.monotonic() - began_s > _TIMEOUT_S:
                raise TimeoutError(
                    f"The app did not write {wanted!r} within {_TIMEOUT_S:g} s: {seen[-500:]!r}"
                )
            seen += self.read(0.5)
        return time.monotonic() - began_s

    def watch(self, seconds: float) -> None:
        """Read for so long."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self.read(left_s)

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._master, keys)

    def cpu_s(self) -> float:
        """Return the app's CPU seconds so far."""
        return cpu_s(self._process.pid)


class _Replay:
    """Answer like the recorded daemon; each replayed request ends a second after its start."""

    def __init__(self, recording: dict[str, Any], requests_per_s: float) -> None:
        self._recording = recording
        self._requests_per_s = requests_per_s
        self._seq = recording["/status"]["seq"]
        recording["hello"]["seq"] = self._seq

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; `/events` never ends."""
        head = f"HTTP/1.1 200 OK\r\n{_VERSION_HEADER}: {self._recording['version']}\r\n"
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = request.split(" ")[1].partition("?")[0]
            if path == "/events":
                writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
                await self._events(writer)
                return
            known = path in self._recording
            body = json.dumps(self._recording[path] if known else {}).encode()
            head = head if known else head.replace("200 OK", "404 Not Found")
            writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the app ended
        finally:
            writer.close()

    async def _events(self, writer: asyncio.StreamWriter) -> None:
        _write(writer, self._recording["hello"])
        open_now: deque[tuple[float, dict[str, Any]]] = deque()
        began_s = told_s = time.monotonic()
        started = 0
        while not writer.is_closing():
            now_s = time.monotonic()
            for number in range(started, int((now_s - began_s) * self._requests_per_s)):
                self._seq += 1
                record = {"id": f"{number:016d}", "seq": self._seq, "started_at": _now()}
                open_now.append((now_s + 1, record))
                _write(writer, self._like("started", record))
                started = number + 1
            while open_now and open_now[0][0] <= now_s:
                self._seq += 1
                _write(writer, self._like("ended", open_now.popleft()[1]))
            if open_now and now_s - told_s >= 1:
                told_s = now_s
                progress = copy.copy(self._recording["progress"])
                progress["at"] = _now()
                like = progress["streams"][0]
                progress["streams"] = [like | {"id": record["id"]} for _, record in open_now]
                _write(writer, progress)
            await writer.drain()
            await asyncio.sleep(_TICK_S)

    def _like(self, kind: str, record: dict[str, Any]) -> dict[str, Any]:
        event: dict[str, Any] = self._recording[kind]
        return event | {"seq": self._seq, "record": event["record"] | record}


def _write(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    line = json.dumps(event).encode() + b"\n"
    writer.write(b"%x\r\n%s\r\n" % (len(line), line))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _serve(path: str, replay: _Replay) -> None:
    async with await asyncio.start_unix_server(replay.answer, path) as server:
        await server.serve_forever()


if __name__ == "__main__":
    socket_path, recording_path, rate = sys.argv[1:]
    asyncio.run(_serve(socket_path, _Replay(json.loads(Path(recording_path).read_text()), float(rate))))
