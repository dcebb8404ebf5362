"""How one process's cost grows: with streams, with deltas a second, with requests a second."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmark.loads import HELD, HELD_INTERVAL_MS, Group, held, streams
from benchmark.measure import Bench
from benchmark.peers import RELAYD, Start, environment
from benchmark.process import Cores, Program, free_port

_WARM_UP = [streams(20, 20, 10, 0.5)]
_PACE_STREAMS = 100
_PACES_MS = (200, 100, 50, 20, 10, 5)
_PACE_FOR_S = 8
_REQUESTS_A_SECOND = (50, 100, 200, 400, 800)
_REQUESTS_FOR_S = 8
_BAR_CHARS = 20
_SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Point:
    cpu_s: float
    took_s: float
    deltas: int
    complete: int
    peak_mib: float
    longest_gap_ms: float


class _Relay:
    """One relayd under loads, one after the other."""

    def __init__(self, bench: Bench, program: Program, start: Start, port: int) -> None:
        self._bench, self._program, self._start, self._port = bench, program, start, port

    def resident_mib(self) -> float:
        """Now."""
        return self._program.resident_mib()

    def play(self, groups: list[Group]) -> _Point:
        """Play a load; what it cost."""
        peak_mib = 0.0

        def watch() -> None:
            nonlocal peak_mib
            peak_mib = max(peak_mib, self._program.resident_mib())

        cpu_s, began = self._program.cpu_s(), time.monotonic()
        (result,) = self._bench.play(self._start, self._port, groups, watch)
        took_s = time.monotonic() - began
        time.sleep(_SETTLE_S)
        return _Point(
            self._program.cpu_s() - cpu_s,
            took_s,
            result["deltas"],
            result["complete"],
            peak_mib,
            result["longest_gap_ms"],
        )


def measure() -> str:
    """Three tables, each with its curve."""
    with _relay() as relay:
        relay.play(_WARM_UP)
        idle_mib = relay.resident_mib()
        deltas = [(_PACE_STREAMS * 1000 // ms, relay.play([_paced(ms)])) for ms in _PACES_MS]
        requests = [
            (rate, relay.play([streams(rate * _REQUESTS_FOR_S, 1, 0, _REQUESTS_FOR_S)]))
            for rate in _REQUESTS_A_SECOND
        ]
        open_ = [(number, relay.play(held(number))) for number in HELD]
    load = f"load average {os.getloadavg()[0]:.1f}"
    return "\n".join(
        [
            f"Deltas a second, over {_PACE_STREAMS} streams; one process, {load}:",
            "",
            "| deltas/s | % of a core | µs a delta | |",
            "| --: | --: | --: | --- |",
            *_curve([(rate, _share(at), 1e6 * at.cpu_s / at.deltas) for rate, at in deltas]),
            "",
            "Requests a second, of one delta each, on connections of their own:",
            "",
            "| requests/s | % of a core | µs a request | |",
            "| --: | --: | --: | --- |",
            *_curve([(rate, _share(at), 1e6 * at.cpu_s / max(1, at.complete)) for rate, at in requests]),
            "",
            f"Streams open at once, a delta each {HELD_INTERVAL_MS} ms:",
            "",
            "| streams | whole | µs a delta | longest wait, s | resident MiB | KiB a stream |",
            "| --: | --: | --: | --: | --: | --: |",
            *(
                f"| {number:,} | {at.complete:,} | {1e6 * at.cpu_s / max(1, at.deltas):.0f} "
                f"| {at.longest_gap_ms / 1000:.1f} | {at.peak_mib:.0f} "
                f"| {(at.peak_mib - idle_mib) * 1024 / number:.0f} |"
                for number, at in open_
            ),
        ]
    )


def _paced(interval_ms: int) -> Group:
    return streams(_PACE_STREAMS, _PACE_FOR_S * 1000 // interval_ms, interval_ms, 1.0)


def _share(point: _Point) -> float:
    return 100 * point.cpu_s / point.took_s


def _curve(points: list[tuple[int, float, float]]) -> Iterator[str]:
    most = max(cost for _, _, cost in points)
    for rate, share, cost in points:
        yield f"| {rate:,} | {share:.0f} | {cost:.0f} | {'▇' * round(_BAR_CHARS * cost / most)} |"


@contextmanager
def _relay() -> Iterator[_Relay]:
    cores = Cores.of_this_machine()
    with tempfile.TemporaryDirectory(prefix="relayd-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        bench = Bench(cores, folder)
        try:
            port = free_port()
            start = RELAYD.start(folder, port, bench.upstream_port)
            program = Program(start.command, core=cores.relay, env=environment(start), folder=folder)
            try:
                program.wait_listening(port, RELAYD.start_timeout_s)
                time.sleep(_SETTLE_S)
                yield _Relay(bench, program, start, port)
            finally:
                program.stop()
        finally:
            bench.close()
