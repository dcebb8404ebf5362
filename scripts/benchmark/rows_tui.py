"""The operator's app at 80x24 in a real pseudo-terminal: paint, lag, CPU, bytes, backlog.

A simulated daemon (`benchmark.desk`) feeds it from a process and a core of its own, so that only the
app's own time is counted.
"""

from __future__ import annotations

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
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmark.peers import ROOT
from benchmark.process import Cores, Program, go_ahead

_SIZE = (24, 80)
# The app, its imports first; the file tells when they were done, on the clock that all processes share.
_START = """
import pathlib, sys, time
import tui.__main__, tui.app, tui.settings, tui.screens.requests, relayd.admin.client, relayd.admin.paths
pathlib.Path(sys.argv.pop(1)).write_text(repr(time.monotonic()))
sys.exit(tui.__main__.main())
"""
_TRUECOLOR = {"COLORTERM": "truecolor"}
_STARTS = 5
_WATCH_S = 10.0
_SETTLE_S = 4.0
_WAIT_S = 60.0
_PRESSES = 200
_CURSOR = "▶".encode()
_BACKLOG = 100_000
_BUSY_EVENTS_PER_S = 2000


class _Screen:
    """The app in a pseudo-terminal; counts the bytes that it writes."""

    def __init__(self, socket: Path, home: Path, core: int, colours: Mapping[str, str]) -> None:
        self._imported = home / "imported"
        self._master, slave = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", *_SIZE, 0, 0))
        self.began_s = time.monotonic()
        self.process = subprocess.Popen(
            ["taskset", "-c", str(core), sys.executable, "-c", _START, self._imported, "--socket", socket],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=_env(home) | dict(colours),
            cwd=ROOT,
            start_new_session=True,
        )
        go_ahead(self.process.pid)
        os.close(slave)
        self.bytes = 0

    @property
    def imported_s(self) -> float:
        """When the imports were done, on the monotonic clock."""
        return float(self._imported.read_text())

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def read(self, within_s: float) -> bytes:
        """What comes next; empty when nothing does."""
        if not select.select([self._master], [], [], max(0.0, within_s))[0]:
            return b""
        data = os.read(self._master, 1 << 16)
        self.bytes += len(data)
        return data

    def until(self, *wanted: bytes) -> float:
        """Read on until all of these came; returns the seconds since now."""
        began, seen = time.monotonic(), b""
        while not all(text in seen for text in wanted):
            if time.monotonic() - began > _WAIT_S:
                raise TimeoutError(f"{wanted} did not come within {_WAIT_S:.0f} s.")
            seen += self.read(0.5)
        return time.monotonic() - began

    def watch(self, seconds: float) -> None:
        """Read for so long."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self.read(left_s)

    def press(self, key: bytes) -> None:
        """Type."""
        os.write(self._master, key)

    def cpu_s(self) -> float:
        """User and system time so far (taskset becomes the app), in steps of 10 ms."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure() -> str:
    """Run the app under each load and say the figures as a table."""
    before = os.getloadavg()[0]
    rows = [*_paint(), *_idle(), *_tail(), *_busy(), *_backlog()]
    head = f"| relayd-tui at 80x24, load average {before:.1f} to {os.getloadavg()[0]:.1f} | |"
    return "\n".join([head, "| --- | --: |", *(f"| {name} | {value} |" for name, value in rows)])


@contextmanager
def _fed(
    requests_per_s: float, backlog: int, colours: Mapping[str, str] = _TRUECOLOR
) -> Iterator[Callable[[], _Screen]]:
    """A simulated daemon; starts apps that follow it and ends what was started."""
    cores = Cores.of_this_machine()
    screens: list[_Screen] = []
    with tempfile.TemporaryDirectory(prefix="relayd-bench-") as name:
        folder = Path(name)
        _remember(folder, backlog)
        socket = folder / "admin.sock"
        command = [sys.executable, "-m", "benchmark.desk", str(socket), str(requests_per_s), str(backlog)]
        env = _env(folder) | {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}
        daemon = Program(command, core=cores.load, env=env, folder=folder)
        try:
            end_s = time.monotonic() + _WAIT_S
            while not socket.exists() and time.monotonic() < end_s:
                time.sleep(0.02)

            def start() -> _Screen:
                screens.append(_Screen(socket, folder, cores.relay, colours))
                return screens[-1]

            yield start
        finally:
            for screen in screens:
                screen.close()
            daemon.stop()


def _remember(home: Path, backlog: int) -> None:
    """Settings that load the whole backlog."""
    folder = home / ".config" / "relayd"
    folder.mkdir(parents=True)
    (folder / "tui.json").write_text(json.dumps({"backlog_records": max(10_000, backlog)}))


def _env(home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
    }


def _paint() -> list[tuple[str, str]]:
    """From the start of the process, and from the end of its imports."""
    times: dict[str, list[float]] = {"Python and the imports": [], "imports to first paint": []}
    times["imports to LIVE with rows"] = []
    with _fed(0, 1000) as start:
        for _ in range(_STARTS):
            screen = start()
            screen.until(b"Requests")
            painted_s = time.monotonic()
            screen.until(b"LIVE")
            live_s = time.monotonic()
            imported_s = screen.imported_s
            took = (imported_s - screen.began_s, painted_s - imported_s, live_s - imported_s)
            for taken, seconds in zip(times.values(), took, strict=True):
                taken.append(seconds)
            screen.process.kill()
            screen.process.wait()
    return [(f"ms: {name}", f"{statistics.median(taken) * 1000:,.0f}") for name, taken in times.items()]


def _watched(screen: _Screen) -> tuple[float, float]:
    """CPU share of one core in percent, and bytes a second to the terminal."""
    cpu_s, size, began = screen.cpu_s(), screen.bytes, time.monotonic()
    screen.watch(_WATCH_S)
    took_s = time.monotonic() - began
    return 100 * (screen.cpu_s() - cpu_s) / took_s, (screen.bytes - size) / took_s


def _idle() -> list[tuple[str, str]]:
    with _fed(0, 1000) as start:
        screen = start()
        screen.until(b"LIVE")
        screen.watch(_SETTLE_S)
        cpu, _ = _watched(screen)
    return [("% CPU, nothing happens", f"{cpu:.1f}")]


def _tail() -> list[tuple[str, str]]:
    rows = []
    for name, colours in (("true colour", _TRUECOLOR), ("256 colours", {})):
        with _fed(100, 1000, colours) as start:
            screen = start()
            screen.until(b"LIVE")
            screen.watch(_SETTLE_S)
            cpu, rate = _watched(screen)
        rows += [
            (f"% CPU, following 100 requests/s, {name}", f"{cpu:.1f}"),
            (f"KB/s to the terminal, following 100 requests/s, {name}", f"{rate / 1000:.1f}"),
        ]
    return rows


def _busy() -> list[tuple[str, str]]:
    """The list stands still, the cursor goes up and down; only a moved cursor draws its mark anew."""
    chance = random.Random(1)  # noqa: S311 - spreads the key presses, nothing secret
    waits = []
    with _fed(_BUSY_EVENTS_PER_S / 2, 1000) as start:
        screen = start()
        screen.until(b"LIVE")
        screen.press(b"kkkk")
        screen.watch(_SETTLE_S)
        cpu_s, began = screen.cpu_s(), time.monotonic()
        for number in range(_PRESSES):
            screen.watch(chance.uniform(0.02, 0.08))
            screen.press(b"kj"[number % 2 : number % 2 + 1])
            waits.append(screen.until(_CURSOR) * 1000)
        cpu = 100 * (screen.cpu_s() - cpu_s) / (time.monotonic() - began)
    ranks = statistics.quantiles(waits, n=100)
    name = f"key to screen at {_BUSY_EVENTS_PER_S:,} events/s"
    return [
        (f"ms: {name}, p50", f"{ranks[49]:.0f}"),
        (f"ms: {name}, p99", f"{ranks[98]:.0f}"),
        (f"% CPU at {_BUSY_EVENTS_PER_S:,} events/s", f"{cpu:.0f}"),
    ]


def _backlog() -> list[tuple[str, str]]:
    with _fed(0, _BACKLOG) as start:
        screen = start()
        screen.until(b"Requests")
        painted = time.monotonic()
        screen.until(b"LIVE")
        screen.press(b"k")
        screen.until(b"FROZEN", _CURSOR)
        browsable_s = time.monotonic() - painted
        screen.until(f"{_BACKLOG:,} records".encode())
        loaded_s = time.monotonic() - painted
    return [
        (f"ms: first paint to browsing, {_BACKLOG:,} records behind", f"{browsable_s * 1000:,.0f}"),
        (f"ms: first paint to all {_BACKLOG:,} in memory", f"{loaded_s * 1000:,.0f}"),
    ]
