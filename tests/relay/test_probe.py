"""Probes: requests that the relay answers itself, for `relayd doctor`. Their times are exact."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from relayd import __version__
from relayd.relay.errors import ClientGone, RelayError
from relayd.relay.probe import Probe, ProbeFacts, WatchedProbe, is_probe
from relayd.relay.stream import StreamLimits
from relayd.state.records import Outcome
from tests.relay.harness import Running

pytestmark = [pytest.mark.virtual_clock, pytest.mark.timeout(seconds=10_000)]

_ID = "0123456789abcdef"


async def _answered(probe: Probe, script: str, limits: StreamLimits | None = None) -> Running:
    running = Running(probe.answer(f"relayd-probe{script}", "192.0.2.1"), limits)
    await running.ended()
    assert running.response.error is None
    return running


async def _watched(probe: Probe, watched: str = _ID) -> WatchedProbe:
    return msgspec.json.decode((await _answered(probe, f":ask={watched}")).response.text, type=WatchedProbe)


async def test_a_probe_streams_at_its_pace() -> None:
    """Its lines come one by one behind the first, which says who asks and what to expect."""
    limits = StreamLimits(heartbeat_s=7)
    running = await _answered(Probe(limits), ":lines=4,interval_ms=40", limits)
    first, _, rest = running.response.text.partition("\n")
    assert msgspec.json.decode(first, type=ProbeFacts) == ProbeFacts(__version__, 7, 10.5, "192.0.2.1")
    assert rest == "0 1 2 3 "
    assert running.response.written_at == pytest.approx([0, 0.04, 0.08, 0.12, 0.16, 0.16])
    assert (running.record.outcome, running.record.finish_reason) == (Outcome.COMPLETED, "stop")
    assert (running.record.deltas, running.record.duration_ms) == (5, 160)


@pytest.mark.parametrize(
    ("heartbeat_s", "idle_timeout_s", "silence_s", "heartbeats"),
    [(10, 12, 10.8, [10]), (600, 900, 60.0, []), (15, 60, 22.5, [15])],
)
async def test_its_silence_shows_a_heartbeat_and_breaks_no_limit(
    heartbeat_s: float, idle_timeout_s: float, silence_s: float, heartbeats: list[float]
) -> None:
    """Longer than a heartbeat, shorter than the limit of silence, and never longer than a minute."""
    limits = StreamLimits(heartbeat_s=heartbeat_s, idle_timeout_s=idle_timeout_s)
    running = await _answered(Probe(limits), ":silence=1", limits)
    assert f'"silence_s":{silence_s}' in running.response.text
    assert running.response.written_at == pytest.approx([0, *heartbeats, silence_s, silence_s])
    assert running.response.text.endswith("awake ")


async def test_a_probe_whose_client_does_not_read_waits() -> None:
    """It is paused like a provider, and goes on."""
    running = Running(Probe(StreamLimits()).answer("relayd-probe:lines=3", ""))
    running.response.stall()
    assert not running.task.done()
    await asyncio.sleep(5)
    assert running.record.deltas == 1
    running.response.read_on()
    record = await running.ended()
    assert (record.outcome, record.deltas, record.stalled_ms) == (Outcome.COMPLETED, 4, 5000)


async def test_it_tells_what_became_of_a_watched_client() -> None:
    """Open while it streams, left after the client's leaving, done after its end; else unknown."""
    probe = Probe(StreamLimits())
    assert await _watched(probe) == WatchedProbe("unknown", 0.0)
    leaving = Running(probe.answer(f"relayd-probe:watch={_ID},lines=1000,interval_ms=1000", ""))
    assert not leaving.task.done()
    await asyncio.sleep(3.5)
    assert await _watched(probe) == WatchedProbe("open", 3.5)
    leaving.stream.stop(ClientGone())
    await leaving.ended()
    await asyncio.sleep(2)
    assert await _watched(probe) == WatchedProbe("left", 2.0)
    await _answered(probe, f":watch={_ID}")
    assert await _watched(probe) == WatchedProbe("done", 0.0)


async def test_only_the_latest_256_watched_clients_are_remembered() -> None:
    """One that is watched again is among the latest."""
    probe = Probe(StreamLimits())
    for number in (*range(256), 0, 256):
        await _answered(probe, f":watch={number:08x}")
    states = [(await _watched(probe, f"{number:08x}")).state for number in (0, 1, 2, 256)]
    assert states == ["done", "unknown", "done", "done"]


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        *((part, part) for part in ("lines=-1", "lines=1001", "lines=x", "lines=¹", "interval_ms=1001")),
        *((part, part) for part in ("silence=2", "watch=x", "ask=", "y=1", "lines")),
        ("x" * 100, "x" * 40),
    ],
)
async def test_a_script_that_cannot_be_read_is_refused_by_name(part: str, shown: str) -> None:
    """The sentence says which part is not known, as far as it is short."""
    with pytest.raises(RelayError) as refused:
        Probe(StreamLimits()).answer(f"relayd-probe:lines=1000,interval_ms=1000,{part}", "")
    assert str(refused.value) == f"bad_request: relayd-probe does not know {shown!r}."


@pytest.mark.parametrize(
    ("model", "is_one"),
    [
        ("relayd-probe", True),
        ("relayd-probe:lines=1", True),
        ("relayd-probes", False),
        ("x-relayd-probe", False),
    ],
)
def test_a_probe_is_known_by_its_name(model: str, is_one: bool) -> None:  # noqa: FBT001 - the example
    """No other model's name is taken for one."""
    assert is_probe(model) is is_one
