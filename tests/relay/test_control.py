"""Open streams and how they are ended, the switch for new requests, and what is recorded of each."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.accepting import Accepting
from relayd.relay.active_streams import ActiveStreams
from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.request_recorder import RequestRecorder, logfmt
from relayd.state.records import Outcome, Phase, RecordedError, RequestRecord
from tests.relay.harness import FINISH, Break, Running, ScriptedUpstream, delta

pytestmark = [pytest.mark.virtual_clock, pytest.mark.timeout(seconds=10_000)]

_THE_END = RelayError(ErrorCode.DRAINING, "The end.")
_DENIED = RelayError(ErrorCode.UNAUTHORIZED, "No.")

# Open streams.


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (
            lambda streams: streams.cancel("one"),
            "cancelled: The operator of this relay cancelled the request.",
        ),
        (lambda streams: streams.cut_key("key1"), "key_revoked: The key of this request was revoked."),
    ],
)
async def test_a_stream_is_ended_by_its_id_or_its_key(
    end: Callable[[ActiveStreams], object], said: str
) -> None:
    """The client reads why, other streams go on, and all can be ended together."""
    streams = ActiveStreams()
    one, two = (
        Running(ScriptedUpstream(delta("a"), Break.WAIT), request_id=name, key_id=key)
        for name, key in (("one", "key1"), ("two", "key2"))
    )
    for running in (one, two):
        streams.add(running.stream)
        assert not running.task.done()
    await asyncio.sleep(1)
    assert [stream.record.id for stream in streams] == ["one", "two"]
    assert (streams.cancel("three"), streams.cut_key("key3")) == (False, 0)
    assert end(streams)
    await one.ended()
    assert one.response.error == said
    assert not two.task.done()
    assert streams.stop_all(_THE_END) == 2
    await two.ended()
    assert two.response.error == "draining: The end."


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda streams: streams.cut_key("key1"), 401),
        (lambda streams: streams.stop_all(_THE_END), 503),
    ],
)
async def test_a_request_whose_body_comes_after_the_end_asks_for_nothing(
    end: Callable[[ActiveStreams], int], status: int
) -> None:
    """A revoked key ends what it opened, and a stop ends all that still comes."""
    streams, upstream = ActiveStreams(), ScriptedUpstream(FINISH)
    running = Running(upstream, key_id="key1")
    assert end(streams) == 0
    streams.add(running.stream)
    await running.ended()
    assert (running.response.status, upstream.is_asked) == (status, False)
    other = Running(ScriptedUpstream(FINISH), request_id="two", key_id="key2")
    streams.add(other.stream)
    await other.ended()
    assert other.response.status == (200 if status == 401 else 503)


async def test_deltas_are_counted_over_closed_and_open_streams() -> None:
    """The figure never falls when a stream closes; what is removed cannot be ended."""
    streams = ActiveStreams()
    for number in (1, 2):
        running = Running(ScriptedUpstream(*[delta("x")] * 7, FINISH), request_id="one")
        streams.add(running.stream)
        await running.ended()
        assert (streams.deltas, len(streams)) == (7 * number, 1)
        streams.remove(running.stream)
        assert (streams.deltas, len(streams)) == (7 * number, 0)
    assert streams.cancel("one") is False


def test_new_requests_are_refused_while_paused_and_for_good_while_draining() -> None:
    """The sentence says which, and when to come back; a drain is final."""
    accepting = Accepting()
    seen = []
    for change in ("resume", "pause", "pause", "resume", "drain", "pause", "resume", "drain"):
        getattr(accepting, change)()
        refusal = accepting.refusal
        assert refusal is None or refusal.code is ErrorCode.DRAINING
        seen.append((accepting.state, refusal and refusal.message, refusal and refusal.retry_after_s))
    live = ("live", None, None)
    paused = ("paused", "The operator paused this relay; try again later.", 30)
    draining = ("draining", "This relay is stopping; try again shortly.", 5)
    assert seen == [live, paused, paused, live, *[draining] * 4]


# Recording.


class _Log:
    """A request log in memory."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.ends: list[RequestRecord] = []

    def started(self, record: RequestRecord) -> None:
        """Keep the start."""
        self.calls.append(("started", record.id))

    def ended(self, record: RequestRecord) -> None:
        """Keep the end."""
        self.calls.append(("ended", record.id))
        self.ends.append(record)


def _new_record(request_id: str = "abc") -> RequestRecord:
    return RequestRecord(
        id=request_id, boot_id="boot", started_at="2026-01-01T00:00:00.000Z", client="web", ip="192.0.2.1"
    )


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("stalled_ms", [0, 7])
def test_a_request_is_one_line_of_the_log_when_it_ends(
    caplog: pytest.LogCaptureFixture, outcome: Outcome, stalled_ms: int
) -> None:
    """The start is quiet; success and a client's leaving are information, the rest stands out."""
    log, seen = _Log(), list[RequestRecord]()
    recorder = RequestRecorder(log, [seen.append])
    record = msgspec.structs.replace(
        _new_record(),
        model="demo",
        outcome=outcome,
        status=200,
        connect_ms=1,
        first_token_ms=2,
        duration_ms=12,
        stalled_ms=stalled_ms,
        deltas=3,
        error=RecordedError("busy", "Try later.") if stalled_ms else None,
    )
    with caplog.at_level(logging.INFO, "relayd.request"):
        recorder.open(record)
        assert (caplog.messages, seen) == ([], [])
        recorder.close(record)
    (line,) = caplog.records
    quiet = outcome in {Outcome.COMPLETED, Outcome.CLIENT_CLOSED}
    assert line.levelno == (logging.INFO if quiet else logging.WARNING)
    assert line.getMessage() == (
        f"request id=abc client=web ip=192.0.2.1 model=demo outcome={outcome} status=200 "
        + ("error=busy " if stalled_ms else "")
        + "connect_ms=1 first_token_ms=2 duration_ms=12 "
        + ('stalled_ms=7 deltas=3 detail="Try later."' if stalled_ms else "deltas=3")
    )
    assert (log.calls, seen) == ([("started", "abc"), ("ended", "abc")], [record])


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (RelayError(ErrorCode.BUSY, "Told.", recorded="Kept."), Outcome.REJECTED),
        (_THE_END, Outcome.REJECTED),
        (None, Outcome.CLIENT_CLOSED),
    ],
)
def test_a_request_that_never_became_a_stream_is_recorded_whole(
    error: RelayError | None, recorded: Outcome
) -> None:
    """One that was refused while draining never ran, so it was not shut down."""
    log, seen = _Log(), list[RequestRecord]()
    record = _new_record()
    RequestRecorder(log, [seen.append]).refuse(record, error, "192.0.2.1")
    assert (record.phase, record.outcome) == (Phase.DONE, recorded)
    assert (record.status, record.error) == (
        (None, None) if error is None else (error.status, RecordedError(error.code, error.recorded))
    )
    assert (log.calls, seen) == ([("started", "abc"), ("ended", "abc")], [record])


def _deny(recorder: RequestRecorder, numbers: range, network: str) -> None:
    for number in numbers:
        recorder.refuse(_new_record(f"request{number}"), _DENIED, network)


def _stands_for(record: RequestRecord) -> int:
    assert record.error is not None
    found = re.search(
        r"^No\. This stands for (\d+) such requests of .+ within a minute\.$", record.error.message
    )
    return int(found[1]) if found else 1


async def test_a_flood_of_keys_that_cannot_be_judged_is_bounded_too() -> None:
    """While a shared database is down they get 503: they must not fill the memory where records wait."""
    log = _Log()
    recorder = RequestRecorder(log)
    error = RelayError(ErrorCode.STATE_UNAVAILABLE, "Down.")
    for number in range(1000):
        recorder.refuse(_new_record(f"request{number}"), error, "203.0.113.9")
    recorder.flush()
    assert [(record.outcome, record.status) for record in log.ends] == [(Outcome.REJECTED, 503)] * 61


async def test_a_flood_of_denials_leaves_sixty_records_and_one_that_counts_the_rest() -> None:
    """Every one reaches the observers, and the counts add up; another network has sixty of its own."""
    log, seen = _Log(), list[str]()
    recorder = RequestRecorder(log, [lambda record: seen.append(record.id)])
    _deny(recorder, range(1000), "203.0.113.9")
    _deny(recorder, range(1000, 1061), "203.0.113.10")
    assert (len(log.ends), len(seen)) == (120, 1061)
    recorder.flush()
    last, other = log.ends[120:]
    assert log.calls[-4:-2] == [("started", "request999"), ("ended", "request999")]
    assert (_stands_for(last), "of 203.0.113.9 within" in str(last.error)) == (940, True)
    assert (other.id, other.error) == ("request1060", RecordedError("unauthorized", "No."))
    recorder.flush()
    assert len(log.ends) == 122


async def test_a_minute_after_the_first_denial_the_rest_is_summed_up() -> None:
    """Without another request, and again in the next minute."""
    log = _Log()
    recorder = RequestRecorder(log)
    for minute in (0, 1):
        _deny(recorder, range(30), "a")
        await asyncio.sleep(59)
        _deny(recorder, range(40), "a")
        assert len(log.ends) == 61 * minute + 60
        await asyncio.sleep(2)
        assert (len(log.ends), _stands_for(log.ends[-1])) == (61 * minute + 61, 10)


async def test_a_flood_from_everywhere_is_bounded_as_well() -> None:
    """A thousand records and a thousand sums; the networks beyond are summed up together. And so again."""
    for_window: list[int] = []
    log = _Log()
    recorder = RequestRecorder(log)
    for _ in range(2):
        log.ends.clear()
        for number in range(6000):
            _deny(recorder, range(number, number + 1), f"network {number % 3000}")
        for_window.append(len(log.ends))
        recorder.flush()
        assert len(log.ends) <= 2001
        assert sum(map(_stands_for, log.ends)) == 6000
        assert any("of other addresses within" in str(record.error) for record in log.ends)
    assert for_window == [1000, 1000]


def test_a_line_of_the_log_has_pairs_in_order() -> None:
    """Plain values stand as they are, others are quoted; what is unknown is left out."""
    line = logfmt(id="abc", model=None, ip="::1", ms=7, detail='Say "hi" now.', empty="")
    assert line == r'id=abc ip=::1 ms=7 detail="Say \"hi\" now." empty=""'
    assert logfmt(model="a\nx=1\x1b[2J\u202e\u009b") == r'model="a\nx=1\u001b[2J\u202e\u009b"'


@given(st.text())
def test_any_value_is_printable_ascii(value: str) -> None:
    """Even one with halves of surrogate pairs: it can neither end a line nor steer a terminal."""
    line = logfmt(value=value, next=1)
    assert line.isascii()
    assert line.isprintable()
    assert re.fullmatch(r'value=(?:[A-Za-z0-9_.:/@+-]+|".*") next=1', line)
