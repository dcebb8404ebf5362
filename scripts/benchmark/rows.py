"""The rows of the table: each puts one load on a running relay and returns its figures by title."""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from benchmark import terminal
from benchmark.load import request_bytes
from benchmark.programs import Cores, Program, free_port, on_core
from benchmark.relays import ROOT, AdminConnection, Relay, Start, environment

Figures = dict[str, float]
Group = dict[str, Any]
ADDED = "added"
"""Figures whose title begins with this are compared with the same load without a relay."""

_HOST = "127.0.0.1"
_SETTLE_S = 1.0
_POLL_S = 0.1
_HELD = (1024, 4096)
_HELD_INTERVAL_MS = 500
_STALL_FACTOR = 10
_GROWTH_FROM, _GROWTH_TO = 10_000, 100_000
_LEAVE_TIMES = 50
_LEAVE_TIMEOUT_S = 5.0
_ROTATIONS = 20
_ROTATE_EVERY_S = 0.5
_GRACE_S = 1.0
_EXPIRY_TOLERANCE_S = 0.1
_CALLERS = 4


class Bench:
    """The upstream and the load generator on their core, for as many relays as come one after the other.

    Raises:
        CannotRunError: there is only one core, or the upstream did not start.
    """

    def __init__(self) -> None:
        self.cores = Cores.of_this_machine()
        self._stack = ExitStack()
        self._root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="relayd-bench-")))
        self._root.chmod(0o755)
        self._upstream_port = free_port()
        self._env = dict(os.environ) | {"PYTHONPATH": str(ROOT / "scripts")}

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmark.upstream", str(self._upstream_port)]
        upstream = Program(command, core=self.cores.load, env=self._env, folder=self._folder("upstream"))
        self._stack.callback(upstream.stop)
        upstream.wait_listening(self._upstream_port, 30)
        with on_core(self.cores.load):
            self._load = subprocess.Popen(
                [sys.executable, "-m", "benchmark.load"],
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,
            )
        self._stack.callback(self._load.wait)
        self._stack.callback(self._load.terminate)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _folder(self, name: str) -> Path:
        """Return a new folder that any user may enter (nginx's worker is not root)."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._root))
        folder.chmod(0o755)
        return folder

    @contextmanager
    def running(self, relay: Relay) -> Iterator[Run]:
        """Start one relay, and stop it on leaving.

        Raises:
            CannotRunError: it did not start.
        """
        port, folder = free_port(), self._folder(relay.name)
        start = relay.start(folder, port, self._upstream_port)
        program = Program(start.command, core=self.cores.measured, env=environment(start), folder=folder)
        try:
            program.wait_listening(port, relay.start_timeout_s)
            time.sleep(_SETTLE_S)
            yield Run(self, relay, program, start, port, folder)
        finally:
            program.stop()

    def direct(self) -> Run:
        """Return a run without a relay: its clients ask the upstream."""
        relay = Relay("direct", str, lambda _folder, _port, _upstream: Start([]))
        return Run(self, relay, None, Start([]), self._upstream_port, self._root)

    def play(self, target: dict[str, Any], group: Group, while_playing: Callable[[], None]) -> dict[str, Any]:
        """Put one group of clients on a target; `while_playing` is called every 0.1 s."""
        assert self._load.stdin is not None  # noqa: S101 - it is a pipe
        assert self._load.stdout is not None  # noqa: S101 - it is a pipe
        self._load.stdin.write(json.dumps({"target": target, "group": group}) + "\n")
        self._load.stdin.flush()
        with ThreadPoolExecutor(1) as pool:
            line = pool.submit(self._load.stdout.readline)
            while not line.done():
                while_playing()
                time.sleep(_POLL_S)
        result: dict[str, Any] = json.loads(line.result())
        return result

    def streams(self) -> tuple[int, list[int]]:
        """Return how many streams the upstream was asked for, and when unfinished ones were closed (ns)."""
        connection = http.client.HTTPConnection(_HOST, self._upstream_port, timeout=_LEAVE_TIMEOUT_S)
        try:
            connection.request("GET", "/streams")
            asked, abandoned_ns = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return asked, abandoned_ns


class Run:
    """One running relay (None: the upstream itself), and what went wrong with it."""

    def __init__(
        self, bench: Bench, relay: Relay, program: Program | None, start: Start, port: int, folder: Path
    ) -> None:
        self.bench = bench
        self.relay = relay
        self.folder = folder
        self.target: dict[str, Any] = {
            "port": port,
            "path": start.path,
            "headers": start.headers,
            "body": start.body,
        }
        self.notes: list[str] = []
        self.peak_mib = 0.0
        """The most memory that was resident during the last load."""
        self._program = program

    def resident_mib(self) -> float:
        """Return what is resident now."""
        return self._program.resident_mib() if self._program else 0.0

    def play(self, group: Group) -> tuple[dict[str, Any], Figures]:
        """Put one group of clients on it; return what they saw, and the CPU and waiting seconds it cost."""
        self.peak_mib = 0.0
        for share_of in ("streams", "workers"):
            if share_of in group:
                group = group | {share_of: max(1, round(group[share_of] * self.relay.share))}
        before = self._costs()
        result = self.bench.play(self.target, group, self._watch)
        # Records and log lines that follow the last byte belong to the load.
        time.sleep(_SETTLE_S)
        costs = {name: value - before[name] for name, value in self._costs().items()}
        if result["errors"]:
            self.notes.append(f"{group}: {result['errors']}")
        return result, costs

    def _costs(self) -> Figures:
        if self._program is None:
            return {"cpu_s": 0.0, "runnable_s": 0.0}
        return {"cpu_s": self._program.cpu_s(), "runnable_s": self._program.runnable_s()}

    def _watch(self) -> None:
        self.peak_mib = max(self.peak_mib, self.resident_mib())


@dataclass(frozen=True, slots=True)
class Row:
    """One named row.

    Args:
        measure: returns figures by title.
        only_relayd: other relays have no such thing.
        fresh: measured once, on a relay started for it; else every round, on the relay of the round.
    """

    measure: Callable[[Run], Figures]
    only_relayd: bool = False
    fresh: bool = False


def _streams(number: int, deltas: int, interval_ms: float, ramp_s: float) -> Group:
    return {"streams": number, "deltas": deltas, "interval_ms": interval_ms, "ramp_s": ramp_s}


def _requests(for_s: float) -> Group:
    """Return clients that ask for one delta after the other, on connections that they keep."""
    return {"workers": 32, "deltas": 1, "interval_ms": 0, "for_s": for_s}


def _idle(run: Run) -> Figures:
    return {"resident MiB, idle": run.resident_mib()}


def _paced(run: Run) -> Figures:
    """Measure on a relay that has answered nothing yet: a cold start is in its first deltas."""
    figures, result, costs = _relayed(run, "150 x 100 at 50 ms", _streams(150, 100, 50, 1.0))
    figures[f"{ADDED} to the first delta, ms p99"] = result["first_ms"]["p99"]
    figures["% of the time ready but without its core"] = 100 * costs["runnable_s"] / result["seconds"]
    return figures


def _long(run: Run) -> Figures:
    return _relayed(run, "60 x 1,000 at 20 ms", _streams(60, 1000, 20, 1.0))[0]


def _relayed(run: Run, title: str, group: Group) -> tuple[Figures, dict[str, Any], Figures]:
    result, costs = run.play(group)
    return (
        {
            f"CPU µs a delta, {title}": costs["cpu_s"] * 1e6 / max(1, result["deltas"]),
            f"{ADDED} ms p50, {title}": result["age_ms"]["p50"],
            f"{ADDED} ms p99, {title}": result["age_ms"]["p99"],
        },
        result,
        costs,
    )


def _churn(run: Run) -> Figures:
    result, costs = run.play(_requests(4))
    return {
        "CPU µs a one-delta request": costs["cpu_s"] * 1e6 / max(1, result["complete"]),
        "one-delta requests/s": result["complete"] / result["seconds"],
    }


def _held(run: Run) -> Figures:
    """Open more and more streams, as long as each stream has all its deltas without a long pause."""
    idle_mib = run.resident_mib()
    figures: Figures = {"streams held of 4,096": 0}
    for streams in _HELD:
        # All are open at once for at least half of their time.
        result, _ = run.play(_streams(streams, 40, _HELD_INTERVAL_MS, streams / 512))
        figures["resident KiB an open stream"] = (run.peak_mib - idle_mib) * 1024 / streams
        if (
            result["complete"] < streams * run.relay.share
            or result["longest_gap_ms"] > _STALL_FACTOR * _HELD_INTERVAL_MS
        ):
            run.notes.append(f"{streams} streams: the longest pause was {result['longest_gap_ms']:,.0f} ms")
            break
        figures["streams held of 4,096"] = streams
    return figures


def _growth(run: Run) -> Figures:
    """Return how much the memory grows from the 10,000th to the 100,000th stream."""
    streams, early_mib = 0, None
    while streams < _GROWTH_TO:
        result, _ = run.play(_requests(4))
        if not result["complete"]:
            break
        streams += result["complete"]
        if early_mib is None and streams >= _GROWTH_FROM:
            early_mib = run.resident_mib()
    return {"MiB of growth, 10,000th to 100,000th stream": run.resident_mib() - (early_mib or 0.0)}


def _leave(run: Run) -> Figures:
    """Leave before the head, between two deltas far apart, and in a flow; see when the upstream is closed."""
    waiting = {"deltas": 2, "interval_ms": 60_000, "wait_ms": 60_000}
    silent = {"deltas": 2, "interval_ms": 60_000}
    flowing = {"deltas": 100_000, "interval_ms": 5}
    closed_ms = [_left_ms(run, phase) for phase in [waiting, silent, flowing] * _LEAVE_TIMES]
    return {
        "ms from a client's leaving to a closed upstream, p50": statistics.median(closed_ms),
        "ms from a client's leaving to a closed upstream, max": max(closed_ms),
    }


def _left_ms(run: Run, phase: Group) -> float:
    before, _ = run.bench.streams()
    with socket.create_connection((_HOST, run.target["port"]), timeout=_LEAVE_TIMEOUT_S) as client:
        client.sendall(request_bytes(run.target, phase))
        if "wait_ms" not in phase:
            client.recv(1 << 16)
        _wait_for(lambda: run.bench.streams()[0] > before)
        time.sleep(0.01)
        left_ns = time.monotonic_ns()
    if not _wait_for(lambda: run.bench.streams()[1][-1:] >= [left_ns]):
        run.notes.append(f"leave: the upstream stayed open for {_LEAVE_TIMEOUT_S:g} s")
        return _LEAVE_TIMEOUT_S * 1000
    return (run.bench.streams()[1][-1] - left_ns) / 1e6


def _wait_for(holds: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + _LEAVE_TIMEOUT_S
    while not holds():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.005)
    return True


class _Callers:
    """Clients that ask with a valid key without a pause, and with expired ones; they count wrong answers."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self.valid = key
        self.expired: list[tuple[float, str]] = []
        """Wall-clock seconds of the expiry, and the key."""
        self.asked = self.refused = self.accepted = 0
        self._lock = threading.Lock()

    def run(self, over: threading.Event) -> None:
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=10)
        while not over.is_set():
            refused = self._status(connection, self.valid) != http.client.OK
            now_s = time.time()
            expired = [key for expiry_s, key in self.expired if expiry_s + _EXPIRY_TOLERANCE_S < now_s][-1:]
            accepted = [key for key in expired if self._status(connection, key) == http.client.OK]
            with self._lock:
                self.asked += 1
                self.refused += refused
                self.accepted += len(accepted)
            time.sleep(0.01)
        connection.close()

    def _status(self, connection: http.client.HTTPConnection, key: str) -> int:
        order = {"role": "user", "content": "bench:1,0,0"}
        headers = {"Authorization": key, "Content-Type": "application/json"}
        connection.request("POST", "/chat", json.dumps({"messages": [order]}), headers)
        response = connection.getresponse()
        response.read()
        return response.status


def _rotation(run: Run) -> Figures:
    """Rotate under load: no valid key is refused, and no key is accepted after its expiry."""
    admin = AdminConnection(run.folder / "state/admin.sock")
    ring = admin.ask("GET", "/keys")
    generation, key_id = ring["generation"], ring["keys"][0]["id"]
    callers = _Callers(run.target["port"], run.target["headers"]["Authorization"].removeprefix("Bearer "))
    over, times_ms = threading.Event(), []
    with ThreadPoolExecutor(_CALLERS) as pool:
        running = [pool.submit(callers.run, over) for _ in range(_CALLERS)]
        for number in range(_ROTATIONS):
            began_s = time.perf_counter()
            change = admin.ask(
                *("POST", f"/keys/{key_id}/rotate", {"grace_s": _GRACE_S}),
                If_Match=f'"{generation}"',
                Idempotency_Key=f"bench-{number}",
            )
            times_ms.append((time.perf_counter() - began_s) * 1000)
            expiry_s = datetime.fromisoformat(change["old"]["expires_at"]).timestamp()
            callers.expired.append((expiry_s, callers.valid))
            callers.valid = change["secret"]
            generation, key_id = change["generation"], change["key"]["id"]
            time.sleep(_ROTATE_EVERY_S)
        over.set()
    for future in running:
        future.result()
    admin.close()
    return {
        "valid keys refused, under rotation": callers.refused,
        "expired keys accepted, under rotation": callers.accepted,
        "ms a rotation, max": max(times_ms),
    }


def _terminal(run: Run) -> Figures:
    assert run.relay.python is not None  # noqa: S101 - only relayd has this row
    few_seconds = _streams(1, 20, 100, 0)
    admin_socket = run.folder / "state/admin.sock"
    return terminal.measure(run.relay.python, admin_socket, run.folder, lambda: run.play(few_seconds))


ROWS = {
    "idle": Row(_idle),
    "paced": Row(_paced),
    "long": Row(_long),
    "churn": Row(_churn),
    "held": Row(_held, fresh=True),
    "growth": Row(_growth, only_relayd=True, fresh=True),
    "leave": Row(_leave, fresh=True),
    "rotation": Row(_rotation, only_relayd=True, fresh=True),
    "tui": Row(_terminal, only_relayd=True, fresh=True),
}
