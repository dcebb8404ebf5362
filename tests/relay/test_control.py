"""Open streams and how they are ended, the switch for new requests, and what is recorded of each."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable

import msgspec
import pytest

from relayd.relay import request_recorder
from relayd.relay.accepting import Accepting, AcceptState
from relayd.relay.active_streams import ActiveStreams
from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.request_recorder import RequestRecorder
from relayd.state.records import Outcome, Phase, RecordedError, RequestRecord
from tests.relay.harness import (
    CHUNKED_HEAD,
    FINISH,
    PATIENCE_S,
    Break,
    KeptResponse,
    Step,
    answer,
    chunked,
    client_of,
    delta,
    new_record,
    new_stream,
    running_provider,
)

_OPEN: list[Step] = [CHUNKED_HEAD + chunked(delta("a")), Break.WAIT]
_THE_END = RelayError(ErrorCode.DRAINING, "The end.")

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
    """The client reads why, the provider is left, and other streams go on."""
    streams = ActiveStreams()
    async with running_provider(_OPEN) as provider, client_of(provider.base_url) as upstream:
        responses = {name: KeptResponse() for name in ("one", "two")}
        tasks: list[asyncio.Task[None]] = []
        for number, (name, response) in enumerate(responses.items(), 1):
            stream = new_stream(upstream, response, record=new_record(name, f"key{number}"))
            streams.add(stream)
            tasks.append(asyncio.create_task(stream.run()))
            await asyncio.wait_for(response.first_line.wait(), PATIENCE_S)
        assert [stream.record.id for stream in streams] == ["one", "two"]
        assert streams.cancel("three") is False
        assert streams.cut_key("key3") == 0
        assert end(streams)
        await asyncio.wait_for(tasks[0], PATIENCE_S)
        await provider.relay_left()
        assert responses["one"].error == said
        assert not tasks[1].done()
        assert streams.stop_all(_THE_END) == 2
        await asyncio.wait_for(tasks[1], PATIENCE_S)
    assert responses["two"].error == "draining: The end."


@pytest.mark.parametrize("end", ["cut_key", "stop_all"])
async def test_a_request_whose_body_comes_after_the_end_asks_for_nothing(end: str) -> None:
    """A revoked key ends what it opened, and a stop ends all that still comes."""
    streams = ActiveStreams()
    response = KeptResponse()
    async with running_provider(_OPEN) as provider, client_of(provider.base_url) as upstream:
        assert (streams.cut_key("key1") if end == "cut_key" else streams.stop_all(_THE_END)) == 0
        stream = new_stream(upstream, response, record=new_record("one", "key1"))
        streams.add(stream)
        await stream.run()
        assert provider.requests == []
        other = new_stream(upstream, KeptResponse(), record=new_record("two", "key2"))
        streams.add(other)
        assert (streams.cancel("two"), len(streams)) == (True, 2)
    assert response.status == (401 if end == "cut_key" else 503)


async def test_deltas_are_counted_over_closed_and_open_streams() -> None:
    """The figure never falls when a stream closes; what is removed cannot be ended."""
    streams = ActiveStreams()
    whole = answer(*(delta("x") for _ in range(7)), FINISH)
    async with running_provider(whole) as provider, client_of(provider.base_url) as upstream:
        for number in (1, 2):
            stream = new_stream(upstream, KeptResponse(), record=new_record("one"))
            streams.add(stream)
            await stream.run()
            assert (streams.deltas, len(streams)) == (7 * number, 1)
            streams.remove(stream)
            assert (streams.deltas, len(streams)) == (7 * number, 0)
    assert streams.cancel("one") is False


# Accepting.


def test_new_requests_are_refused_while_paused_and_for_good_while_draining() -> None:
    """The sentence says which, and when to come back; a drain is final."""
    accepting = Accepting()
    accepting.resume()
    _expect_open(accepting)
    accepting.pause()
    accepting.pause()
    _expect_refusal(accepting, AcceptState.PAUSED, "paused", 30)
    accepting.resume()
    _expect_open(accepting)
    accepting.drain()
    for change in (accepting.pause, accepting.resume, accepting.drain):
        change()
        _expect_refusal(accepting, AcceptState.DRAINING, "stopping", 5)


def _expect_open(accepting: Accepting) -> None:
    assert (accepting.state, accepting.refusal) == (AcceptState.OPEN, None)


def _expect_refusal(accepting: Accepting, state: AcceptState, word: str, retry_after_s: int) -> None:
    refusal = accepting.refusal
    assert refusal is not None
    assert (accepting.state, refusal.code, refusal.status) == (state, ErrorCode.DRAINING, 503)
    assert refusal.retry_after_s == retry_after_s
    assert word in refusal.message


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


def _ended(outcome: Outcome, error: RecordedError | None = None, request_id: str = "abc") -> RequestRecord:
    return msgspec.structs.replace(
        new_record(request_id),
        client="web",
        ip="192.0.2.1",
        phase=Phase.DONE,
        outcome=outcome,
        status=200,
        connect_ms=1,
        first_token_ms=2,
        duration_ms=12,
        stalled_ms=0,
        deltas=3,
        error=error,
    )


def test_a_request_is_one_line_of_the_log_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    """The start is quiet; the end has id, client, model, outcome, status, times and deltas."""
    log, seen = _Log(), list[RequestRecord]()
    recorder = RequestRecorder(log, [seen.append])
    record = _ended(Outcome.COMPLETED)
    with caplog.at_level(logging.INFO, "relayd.request"):
        recorder.open(record)
        assert (caplog.messages, seen) == ([], [])
        recorder.close(record)
    (line,) = caplog.messages
    assert line == (
        "request id=abc client=web ip=192.0.2.1 model=demo outcome=completed status=200 connect_ms=1 "
        "first_token_ms=2 duration_ms=12 deltas=3"
    )
    assert log.calls == [("started", "abc"), ("ended", "abc")]
    assert seen == [record]


@pytest.mark.parametrize("outcome", list(Outcome))
def test_what_went_wrong_is_a_warning(caplog: pytest.LogCaptureFixture, outcome: Outcome) -> None:
    """Success and a client's leaving are information; the rest stands out, with its sentence."""
    record = msgspec.structs.replace(_ended(outcome, RecordedError("busy", "Try later.")), stalled_ms=7)
    with caplog.at_level(logging.INFO, "relayd.request"):
        RequestRecorder(_Log()).close(record)
    quiet = outcome in {Outcome.COMPLETED, Outcome.CLIENT_CLOSED}
    assert [entry.levelno for entry in caplog.records] == [logging.INFO if quiet else logging.WARNING]
    for said in ("error=busy", 'detail="Try later."', "stalled_ms=7"):
        assert said in caplog.messages[0]


def _denied(number: int) -> RequestRecord:
    return _ended(Outcome.DENIED, RecordedError("unauthorized", "No."), f"request{number}")


def _stands_for(record: RequestRecord) -> int:
    assert record.error is not None
    found = re.search(
        r"^No\. This stands for (\d+) such requests of .+ within a minute\.$", record.error.message
    )
    return int(found[1]) if found else 1


async def test_a_flood_of_denials_leaves_sixty_records_and_one_that_counts_the_rest() -> None:
    """Every one reaches the observers, and the counts add up; another network has sixty of its own."""
    log, seen = _Log(), list[str]()
    recorder = RequestRecorder(log, [lambda record: seen.append(record.id)])
    for number in range(1000):
        recorder.refuse(_denied(number), "203.0.113.9")
    recorder.refuse(_denied(1000), "203.0.113.10")
    assert len(log.ends) == 61
    recorder.flush()
    assert len(seen) == 1001
    assert len(log.ends) == 62
    assert log.calls[-2:] == [("started", "request999"), ("ended", "request999")]
    assert "of 203.0.113.9 within" in str(log.ends[-1].error)
    assert sum(map(_stands_for, log.ends)) == 1001
    recorder.flush()
    assert len(log.ends) == 62


async def test_one_denial_more_than_is_recorded_stands_for_itself() -> None:
    """After the sum each is recorded again: the bound is of a rate."""
    log = _Log()
    recorder = RequestRecorder(log)
    for number in range(61):
        recorder.refuse(_denied(number), "a")
    recorder.flush()
    assert log.ends[-1] == _denied(60)
    recorder.refuse(_denied(61), "a")
    assert log.ends[-1] == _denied(61)
    recorder.flush()


async def test_a_minute_after_the_first_denial_the_rest_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another request, and again in the next minute."""
    monkeypatch.setattr(request_recorder, "_DENIAL_WINDOW_S", 0.05)
    log = _Log()
    recorder = RequestRecorder(log)
    for expected in (61, 122):
        for number in range(70):
            recorder.refuse(_denied(number), "a")
        async with asyncio.timeout(PATIENCE_S):
            while len(log.ends) < expected:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0.01)
    assert [_stands_for(log.ends[60]), _stands_for(log.ends[121])] == [10, 10]


async def test_a_flood_from_everywhere_is_bounded_as_well() -> None:
    """A thousand records and a thousand sums; the networks beyond are summed up together."""
    log = _Log()
    recorder = RequestRecorder(log)
    for number in range(6000):
        recorder.refuse(_denied(number), f"network {number % 3000}")
    assert len(log.ends) == 1000
    recorder.flush()
    assert len(log.ends) <= 2001
    assert sum(map(_stands_for, log.ends)) == 6000
    assert any("of other addresses within" in str(record.error) for record in log.ends)
