"""The rows of the table: each puts one load on a running relay and returns its figures by title."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import httpx2

from benchmark.programs import Cores, Program, free_port, on_core
from benchmark.relays import ROOT, Relay, Start, environment, with_workers

Figures = dict[str, float]
Group = dict[str, Any]
ADDED = "added"
"""Figures whose title begins with this are compared with the same load without a relay."""
COST = "CPU µs"
"""Figures whose title begins with this are compared between relays, round by round."""

HOST = "127.0.0.1"
_START_TIMEOUT_S = 30
_SETTLE_S = 0.5
_POLL_S = 0.1
_HELD = 4096
_HELD_INTERVAL_MS = 500
_GROWTH_FROM, _GROWTH_TO = 10_000, 100_000
_ROTATIONS = 100
_ROTATE_EVERY_S = 0.1
_GRACE_S = 1.0
_EXPIRY_TOLERANCE_S = 0.1
_CALLERS = 4
_A_WORKERS_STREAMS = 80
_WORKER_ROUNDS = 5


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
        upstream = Program(command, core=self.cores.load, env=self._env, folder=self.folder("upstream"))
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

    def folder(self, name: str) -> Path:
        """Return a new folder that any user may enter (nginx's worker is not root)."""
        folder = Path(tempfile.mkdtemp(prefix=re.sub(r"\W+", "-", name), dir=self._root))
        folder.chmod(0o755)
        return folder

    @contextmanager
    def running(self, relay: Relay, core: int | None = None) -> Iterator[Run]:
        """Start one relay, on the core for what is measured unless another is named; stop it on leaving.

        Raises:
            CannotRunError: it did not start.
        """
        port, folder = free_port(), self.folder(relay.name)
        start = relay.start(folder, port, self._upstream_port)
        core = self.cores.measured if core is None else core
        with ExitStack() as stack:
            stack.enter_context(relay.database(folder, self.cores.load))
            program = Program(start.command, core=core, env=environment(start), folder=folder)
            stack.callback(program.stop)
            program.wait_listening(port, _START_TIMEOUT_S)
            run = Run(self, relay, program, start, port, folder)
            if relay.setup:
                subprocess.run(
                    [*start.command[:-1], *relay.setup, "--socket", str(run.admin_socket)],
                    env=environment(start),
                    stdout=subprocess.DEVNULL,
                    check=True,
                    timeout=_START_TIMEOUT_S,
                )
            time.sleep(_SETTLE_S)
            yield run

    def direct(self) -> Run:
        """Return a run without a relay: its clients ask the upstream."""
        relay = Relay("direct", "", lambda _folder, _port, _upstream: Start([]))
        return Run(self, relay, None, Start([]), self._upstream_port, self._root)

    def play(self, target: dict[str, Any], group: Group, while_playing: Callable[[], None]) -> dict[str, Any]:
        """Put one group of clients on a target; `while_playing` is called again and again."""
        assert self._load.stdin is not None  # noqa: S101 - it is a pipe
        assert self._load.stdout is not None  # noqa: S101 - it is a pipe
        self._load.stdin.write(json.dumps({"target": target, "group": group}) + "\n")
        self._load.stdin.flush()
        with ThreadPoolExecutor(1) as pool:
            line = pool.submit(self._load.stdout.readline)
            while not line.done():
                while_playing()
        result: dict[str, Any] = json.loads(line.result())
        return result


class Run:
    """One running relay (None: the upstream itself), and what went wrong with it."""

    def __init__(
        self, bench: Bench, relay: Relay, program: Program | None, start: Start, port: int, folder: Path
    ) -> None:
        self.bench = bench
        self.relay = relay
        self.start = start
        self.target: dict[str, Any] = {
            "port": port,
            "path": start.path,
            "headers": start.headers,
            "body": start.body,
        }
        self.admin_socket = folder / "state/admin.sock"
        self.notes: list[str] = []
        self.peak_mib = 0.0
        """The most memory that was resident during the last load."""
        self._program = program

    def resident_mib(self) -> float:
        """Return what is resident now."""
        return self._program.resident_mib() if self._program else 0.0

    def play(
        self, group: Group, while_playing: Callable[[], None] | None = None
    ) -> tuple[dict[str, Any], float]:
        """Put one group of clients on it; return what they saw, and the CPU seconds that it cost."""
        self.peak_mib = 0.0
        before_s = self._cpu_s()
        result = self.bench.play(self.target, group, while_playing or self._watch)
        # Records and log lines that follow the last byte belong to the load.
        time.sleep(_SETTLE_S)
        if result["errors"]:
            self.notes.append(f"{group}: {result['errors']}")
        return result, self._cpu_s() - before_s

    def rate(self, group: Group) -> float:
        """Return how many deltas a second the relay relays when its busiest worker has a core to itself."""
        assert self._program is not None  # noqa: S101 - only relays have this row
        before_s = self._program.workers_cpu_s()
        result, _ = self.play(group)
        after_s = self._program.workers_cpu_s()
        return float(result["deltas"]) / max(after_s[pid] - before_s[pid] for pid in before_s)

    def use_both_cores(self) -> None:
        """Share the load's core as well."""
        assert self._program is not None  # noqa: S101 - as above
        self._program.run_on({self.bench.cores.measured, self.bench.cores.load})

    def _cpu_s(self) -> float:
        return self._program.cpu_s() if self._program else 0.0

    def _watch(self) -> None:
        self.peak_mib = max(self.peak_mib, self.resident_mib())
        time.sleep(_POLL_S)


def _streams(number: int, deltas: int, interval_ms: float, ramp_s: float) -> Group:
    return {"streams": number, "deltas": deltas, "interval_ms": interval_ms, "ramp_s": ramp_s}


def _requests(for_s: float) -> Group:
    """Return clients that ask for one delta after the other, on connections that they keep."""
    return {"workers": 32, "deltas": 1, "interval_ms": 0, "for_s": for_s}


def _idle(run: Run) -> Figures:
    return {"resident MiB, idle": run.resident_mib()}


def _paced(run: Run) -> Figures:
    """Measure on a relay that has answered nothing yet: a cold start is in its first deltas."""
    figures, result = _relayed(run, "150 x 100 at 50 ms", _streams(150, 100, 50, 1.0))
    figures[f"{ADDED} to the first delta, ms p99"] = result["first_ms"]["p99"]
    return figures


def _long(run: Run) -> Figures:
    return _relayed(run, "60 x 1,000 at 20 ms", _streams(60, 1000, 20, 1.0))[0]


def _relayed(run: Run, title: str, group: Group) -> tuple[Figures, dict[str, Any]]:
    result, cpu_s = run.play(group)
    figures = {
        f"{COST} a delta, {title}": cpu_s * 1e6 / max(1, result["deltas"]),
        f"{ADDED} ms p50, {title}": result["age_ms"]["p50"],
        f"{ADDED} ms p99, {title}": result["age_ms"]["p99"],
    }
    return figures, result


def _churn(run: Run) -> Figures:
    result, cpu_s = run.play(_requests(4))
    return {
        f"{COST} a one-delta request": cpu_s * 1e6 / max(1, result["complete"]),
        "one-delta requests/s": result["complete"] / result["seconds"],
    }


def _first(run: Run) -> Figures:
    """Measure what a person waits for: about a hundred requests a second, on a relay that is warm by now."""
    result, _ = run.play({"workers": 16, "deltas": 1, "interval_ms": 0, "wait_ms": 150, "for_s": 8})
    return {
        f"{ADDED} to the first delta, warm, ms p50": result["first_ms"]["p50"],
        f"{ADDED} to the first delta, warm, ms p99": result["first_ms"]["p99"],
    }


def _held(run: Run) -> Figures:
    """Hold many streams open at once, for at least half of their time."""
    idle_mib = run.resident_mib()
    result, _ = run.play(_streams(_HELD, 32, _HELD_INTERVAL_MS, _HELD / 512))
    return {
        f"streams complete, of {_HELD:,} at once": result["complete"],
        f"longest pause of one, ms (a delta every {_HELD_INTERVAL_MS})": result["longest_gap_ms"],
        "resident KiB an open stream": (run.peak_mib - idle_mib) * 1024 / _HELD,
    }


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


def _workers(run: Run) -> Figures:
    """Compare two workers with one, each worker with the same load; the CPU of the load does not count."""
    one_rates: list[float] = []
    two_rates: list[float] = []
    one_ms: list[float] = []
    two_ms: list[float] = []
    with run.bench.running(with_workers(run.relay, 2)) as two:
        for each in (run, two):
            each.use_both_cores()
            each.play(_streams(_A_WORKERS_STREAMS, 100, 10, 1.0))
        for _ in range(_WORKER_ROUNDS):
            one_rates.append(run.rate(_streams(_A_WORKERS_STREAMS, 300, 10, 1.0)))
            two_rates.append(two.rate(_streams(2 * _A_WORKERS_STREAMS, 300, 10, 1.0)))
            for each, found in ((run, one_ms), (two, two_ms)):
                result, _ = each.play(_streams(_A_WORKERS_STREAMS, 300, 10, 1.0))
                found.append(result["age_ms"]["p99"])
        run.notes += two.notes
    ratios = [two_rate / one_rate for one_rate, two_rate in zip(one_rates, two_rates, strict=True)]
    return {
        "deltas/s of 1 worker, with a core of its own": statistics.median(one_rates),
        "deltas/s of 2 workers, each with a core": statistics.median(two_rates),
        "deltas/s of 2 workers by those of 1": statistics.median(ratios),
        "ms p99 of a delta, 1 worker, load included": statistics.median(one_ms),
        "ms p99 of a delta, 2 workers, load included": statistics.median(two_ms),
    }


class _Callers:
    """Clients that ask with a valid key without a pause, and with expired ones; they count wrong answers."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self.valid = key
        self.expired: list[tuple[float, str]] = []
        """Wall-clock seconds of the expiry, and the key."""
        self.refused = self.accepted = 0
        self._lock = threading.Lock()

    def run(self, over: threading.Event) -> None:
        """Ask until it is over."""
        with httpx2.Client(base_url=f"http://{HOST}:{self._port}") as http:
            while not over.is_set():
                refused = not is_served(http, self.valid)
                now_s = time.time()
                expired = [key for at_s, key in self.expired if at_s + _EXPIRY_TOLERANCE_S < now_s][-1:]
                accepted = [key for key in expired if is_served(http, key)]
                with self._lock:
                    self.refused += refused
                    self.accepted += len(accepted)
                time.sleep(0.01)


def is_served(http: httpx2.Client, key: str) -> bool:
    """Return whether a request with this key is answered."""
    question = {"messages": [{"role": "user", "content": "bench:1,0,0"}]}
    return http.post("/chat", json=question, headers={"Authorization": key}).status_code == httpx2.codes.OK


def ring(socket: Path) -> tuple[int, str]:
    """Return the generation of the keys, and the id of the first one."""
    with _admin(socket) as admin:
        found = admin.get("/keys").json()
        return found["generation"], found["keys"][0]["id"]


def _admin(socket: Path) -> httpx2.Client:
    return httpx2.Client(transport=httpx2.HTTPTransport(uds=str(socket)), base_url="http://relayd")


def rotate(socket: Path, generation: int, key_id: str, grace_s: float) -> tuple[float, dict[str, Any]]:
    """Make a new key in the place of this one; return the milliseconds that it took, and the answer."""
    headers = {"If-Match": f'"{generation}"', "Idempotency-Key": f"bench-{generation}"}
    with _admin(socket) as admin:
        admin.get("/keys")  # a connection in use is measured, as an operator has it
        began_s = time.perf_counter()
        answer = admin.post(f"/keys/{key_id}/rotate", json={"grace_s": grace_s}, headers=headers)
        return (time.perf_counter() - began_s) * 1000, answer.raise_for_status().json()


def _rotation(run: Run) -> Figures:
    """Rotate under load: no valid key is refused, and no key is accepted after its expiry."""
    callers = _Callers(run.target["port"], run.target["headers"]["Authorization"].removeprefix("Bearer "))
    over, times_ms = threading.Event(), []
    generation, key_id = ring(run.admin_socket)
    with (
        on_core(run.bench.cores.load),
        # A process of its own: in this one it would wait for the callers' threads, 5 ms for each turn.
        ProcessPoolExecutor(1, get_context("spawn")) as operator,
        ThreadPoolExecutor(_CALLERS) as pool,
    ):
        running = [pool.submit(callers.run, over) for _ in range(_CALLERS)]
        for _ in range(_ROTATIONS):
            took_ms, change = operator.submit(rotate, run.admin_socket, generation, key_id, _GRACE_S).result()
            times_ms.append(took_ms)
            expires_at = datetime.fromisoformat(change["old"]["expires_at"]).timestamp()
            callers.expired.append((expires_at, callers.valid))
            callers.valid = change["secret"]
            generation, key_id = change["generation"], change["key"]["id"]
            time.sleep(_ROTATE_EVERY_S)
        over.set()
        for future in running:
            future.result()
    return {
        "valid keys refused, under rotation": callers.refused,
        "expired keys accepted, under rotation": callers.accepted,
        "ms a rotation, p50": statistics.median(times_ms),
        "ms a rotation, p99": statistics.quantiles(times_ms, n=100, method="inclusive")[98],
    }


SHARED_ROWS = {"idle": _idle, "paced": _paced, "long": _long, "churn": _churn, "first": _first}
"""Measured in every round, one after the other on one start of each relay."""
OWN_ROWS = {"held": _held, "growth": _growth, "rotation": _rotation, "workers": _workers}
"""Measured once, each on a relayd of its own, and only for this tree: they have goals of their own."""
