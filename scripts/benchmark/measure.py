"""One relay in one round: started fresh, put under each load, and what it cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmark.loads import HELD, HELD_INTERVAL_MS, Load, held
from benchmark.peers import ROOT, Peer, Start, environment
from benchmark.process import Cores, DidNotStart, Program, free_port, go_ahead

Figures = dict[str, float]
_SETTLE_S = 1.0
_AFTER_S = 3.0
_POLL_S = 0.1
_STALL_FACTOR = 10


class Bench:
    """The upstream and the load generator on their core; `measure` runs one relay against them."""

    def __init__(self, cores: Cores, folder: Path) -> None:
        self._cores = cores
        self._folder = folder
        self.upstream_port = free_port()
        command = [sys.executable, "-m", "benchmark.upstream", str(self.upstream_port)]
        self._upstream = Program(command, core=cores.load, env=_own_env(), folder=self._room("upstream"))
        try:
            self._upstream.wait_listening(self.upstream_port, 30)
        except DidNotStart:
            self._upstream.stop()
            raise
        self._load = subprocess.Popen(
            ["taskset", "-c", str(cores.load), sys.executable, "-m", "benchmark.load"],
            env=_own_env(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        go_ahead(self._load.pid)

    def _room(self, name: str) -> Path:
        """A new folder that any user may enter: nginx's worker is not root."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))
        folder.chmod(0o755)
        return folder

    def close(self) -> None:
        """Stop both."""
        self._load.terminate()
        self._load.wait()
        self._upstream.stop()

    def play(
        self, start: Start, port: int, groups: Sequence[dict[str, Any]], while_playing: Callable[[], None]
    ) -> list[dict[str, Any]]:
        """Put the load on a port; `while_playing` is called every 0.1 s."""
        assert self._load.stdin is not None and self._load.stdout is not None  # noqa: S101, PT018 - pipes
        target = {
            "host": "127.0.0.1",
            "port": port,
            "path": start.path,
            "headers": start.headers,
            "body": start.body,
        }
        self._load.stdin.write(json.dumps({"target": target, "groups": list(groups)}) + "\n")
        self._load.stdin.flush()
        lines: list[str] = []
        stdout = self._load.stdout
        reader = threading.Thread(target=lambda: lines.append(stdout.readline()), name="load's result")
        reader.start()
        while reader.is_alive():
            while_playing()
            reader.join(_POLL_S)
        results: list[dict[str, Any]] = json.loads(lines[0])
        return results

    def direct(self, loads: Sequence[Load]) -> Figures:
        """The same loads without any relay."""
        figures: Figures = {}
        for load in loads:
            results = self.play(Start([]), self.upstream_port, load.plan(1.0), lambda: None)
            figures |= {f"{load.name}.{name}": value for name, value in _times(load, results).items()}
        return figures

    def measure(
        self, peer: Peer, loads: Sequence[Load], direct: Figures, *, hold: bool
    ) -> tuple[Figures, list[str]]:
        """Every figure of one relay in one round, and what went wrong in it.

        Raises:
            DidNotStart: the relay did not.
        """
        with self.running(peer) as run:
            program = run.program
            figures: Figures = {"memory.idle": program.resident_mib(), "start.cpu_s": program.cpu_s()}
            for load in loads:
                figures |= run.load(load, peer.share, direct)
            if hold:
                figures |= run.hold(figures["memory.idle"])
            time.sleep(_AFTER_S)
            figures["memory.after"] = program.resident_mib()
        return figures, run.notes

    @contextmanager
    def running(self, peer: Peer) -> Iterator[Run]:
        """One relay, started fresh and stopped on leaving.

        Raises:
            DidNotStart: the relay did not.
        """
        port, folder = free_port(), self._room(peer.name)
        start = peer.start(folder, port, self.upstream_port)
        program = Program(start.command, core=self._cores.relay, env=environment(start), folder=folder)
        try:
            program.wait_listening(port, peer.start_timeout_s)
            time.sleep(_SETTLE_S)
            yield Run(self, program, start, port)
        finally:
            program.stop()


@contextmanager
def bench_of_this_machine() -> Iterator[Bench]:
    """A bench on the last two cores, in a folder of its own; closed on leaving.

    Raises:
        DidNotStart: there is only one core, or the upstream did not start.
    """
    cores = Cores.of_this_machine()
    with tempfile.TemporaryDirectory(prefix="relayd-bench-") as folder:
        Path(folder).chmod(0o755)
        bench = Bench(cores, Path(folder))
        try:
            yield bench
        finally:
            bench.close()


class Run:
    """The loads on one running relay."""

    def __init__(self, bench: Bench, program: Program, start: Start, port: int) -> None:
        self._bench = bench
        self.program = program
        self._start = start
        self._port = port
        self.peak_mib = 0.0
        """The most that was resident during the last load."""
        self.waited_s = 0.0
        self.notes: list[str] = []

    def _watch(self) -> None:
        self.peak_mib = max(self.peak_mib, self.program.resident_mib())

    def play(self, groups: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
        """Put groups of clients on it; a result for each, and the CPU seconds that all of them cost."""
        self.peak_mib = 0.0
        before, waited_before = self.program.cpu_s(), self.program.waited_s()
        results = self._bench.play(self._start, self._port, groups, self._watch)
        self.waited_s = self.program.waited_s() - waited_before
        # Records and log lines that follow the last byte belong to the load.
        time.sleep(_SETTLE_S)
        return results, self.program.cpu_s() - before

    def load(self, load: Load, share: float, direct: Figures) -> Figures:
        """Play one load."""
        results, cpu_s = self.play(load.plan(share))
        for result in results:
            if result["errors"]:
                self.notes.append(f"{load.name}: {result['errors']}")
        figures = {
            name: value - direct.get(f"{load.name}.{name}", 0.0)
            for name, value in _times(load, results).items()
        }
        deltas = sum(result["deltas"] for result in results)
        if deltas:
            figures["cpu_us"] = cpu_s * 1e6 / deltas
            figures["waited_share"] = 100 * self.waited_s / results[0]["seconds"]
        if load.rate is not None:
            figures["rate"] = sum(result[load.rate] for result in results) / results[0]["seconds"]
        return {f"{load.name}.{name}": value for name, value in figures.items()}

    def hold(self, idle_mib: float) -> Figures:
        """Open more and more streams, as long as all of them are held."""
        figures: Figures = {"held.streams": 0}
        for streams in HELD:
            (result,), cpu_s = self.play(held(streams))
            figures[f"held.{streams}.cpu_us"] = cpu_s * 1e6 / max(1, result["deltas"])
            figures[f"held.{streams}.gap_ms"] = result["longest_gap_ms"]
            figures[f"held.{streams}.mib"] = self.peak_mib
            figures["memory.stream_kib"] = (self.peak_mib - idle_mib) * 1024 / streams
            whole = result["complete"] == streams
            if not whole or result["longest_gap_ms"] > _STALL_FACTOR * HELD_INTERVAL_MS:
                gap_s = result["longest_gap_ms"] / 1000
                self.notes.append(
                    f"held {streams}: {result['complete']} whole, "
                    f"longest gap {gap_s:.1f} s {result['errors'] or ''}"
                )
                break
            figures["held.streams"] = streams
        return figures


def _times(load: Load, results: list[dict[str, Any]]) -> Figures:
    """Ages of deltas and waits for the first one, of the load's first group."""
    figures: Figures = {}
    if load.ages and results[0]["age_ms"]:
        figures |= {f"age_{name}": results[0]["age_ms"][name] for name in ("p50", "p99")}
    if load.firsts and results[0]["first_ms"]:
        figures |= {f"first_{name}": results[0]["first_ms"][name] for name in ("p50", "p99", "max")}
        figures["very_first"] = results[0]["very_first_ms"]
    return figures


def _own_env() -> dict[str, str]:
    return dict(os.environ) | {"PYTHONPATH": str(ROOT / "scripts")}
