"""One stream: its lines, its clocks, and its one end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from relayd.relay.failure import ClientGone, ClientStalled, Code, Failure
from relayd.relay.lines import DONE, HEARTBEAT
from relayd.relay.stream import RelayStream, StreamLimits
from relayd.relay.upstream import Upstream
from relayd.state.records import Outcome, Phase
from tests.relay.room import PROVIDER_KEY, KeptReply, new_record, new_stream, upstream_of
from tests.support.upstream import FaultUpstream

_ENDLESS = "demo:deltas=100000,interval_ms=5"


@asynccontextmanager
async def _provider() -> AsyncGenerator[tuple[FaultUpstream, Upstream], None]:
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url) as upstream:
        yield demo, upstream


def _errors(reply: KeptReply) -> list[str]:
    lines = [json.loads(line) for line in reply.sent.splitlines()]
    return [line["content"] for line in lines if line["error"]]


async def test_a_whole_answer_completes_its_record() -> None:
    """Deltas, bytes, times, usage, the provider's id and reason: all that an answer leaves behind."""
    async with _provider() as (_, upstream):
        reply = KeptReply()
        stream = new_stream(upstream, reply, "demo:deltas=4,interval_ms=5,prompt_tokens=7")
        await stream.run()
    record = stream.record
    assert (record.outcome, record.phase, record.status) == (Outcome.COMPLETED, Phase.DONE, 200)
    assert (record.deltas, record.bytes_out) == (4, len(reply.sent))
    assert record.connect_ms is not None
    assert record.first_token_ms is not None
    assert record.duration_ms is not None
    assert record.connect_ms <= record.first_token_ms <= record.duration_ms
    assert record.finish_reason == "stop"
    assert record.upstream_request_id == "req_demo00000000"
    assert record.error is None
    assert reply.sent.endswith(DONE)
    assert reply.finished == 1


async def test_the_first_cause_of_an_end_counts() -> None:
    """Two who stop the same stream get one end, the first one's."""
    async with _provider() as (demo, upstream):
        reply = KeptReply()
        stream = new_stream(upstream, reply, _ENDLESS)
        running = asyncio.create_task(stream.run(), name="stream")
        await reply.first.wait()
        stream.stop(Failure(Code.CANCELLED, "First."))
        stream.stop(Failure(Code.KEY_REVOKED, "Second."))
        stream.stop(ClientGone())
        await running
        await demo.wait_closed(0)
    assert _errors(reply) == ["cancelled: First."]
    assert stream.record.outcome is Outcome.CANCELLED


async def test_a_stream_that_is_stopped_before_it_runs_asks_for_nothing() -> None:
    """The provider never hears of it."""
    async with _provider() as (demo, upstream):
        reply = KeptReply()
        stream = new_stream(upstream, reply, _ENDLESS)
        stream.stop(Failure(Code.DRAINING, "The end."))
        await stream.run()
        assert demo.total_requests == 0
    assert _errors(reply) == ["draining: The end."]
    assert reply.status == 503


async def test_nothing_stops_an_answer_that_has_ended() -> None:
    """A cancel that comes a moment late changes neither reply nor record."""
    async with _provider() as (_, upstream):
        reply = KeptReply()
        stream = new_stream(upstream, reply, "demo:deltas=1")
        await stream.run()
        stream.stop(Failure(Code.CANCELLED, "Late."))
    assert _errors(reply) == []
    assert stream.record.outcome is Outcome.COMPLETED


@pytest.mark.parametrize(
    ("limits", "model", "said"),
    [
        (
            StreamLimits(first_token_timeout_s=0.1),
            "demo:fault=stall_headers",
            "first word did not come within 0.1",
        ),
        (
            StreamLimits(first_token_timeout_s=0.1),
            "demo:fault=stall_first",
            "first word did not come within 0.1",
        ),
        (StreamLimits(idle_timeout_s=0.1), "demo:interval_ms=0,fault=stall_mid", "fell silent for 0.1"),
        (StreamLimits(total_timeout_s=0.2), _ENDLESS, "whole answer took longer than 0.2"),
    ],
)
async def test_a_time_that_is_over_ends_the_stream(limits: StreamLimits, model: str, said: str) -> None:
    """The sentence says which time it was, and the provider's request is closed."""
    async with _provider() as (demo, upstream):
        reply = KeptReply()
        stream = new_stream(upstream, reply, model, limits=limits)
        await asyncio.wait_for(stream.run(), 30)
        await demo.wait_closed(0)
    assert len(_errors(reply)) == 1
    assert _errors(reply)[0].startswith("upstream_timeout: ")
    assert said in _errors(reply)[0]
    assert reply.sent.count(b'"done":true') == 1


async def test_comments_of_the_provider_are_no_silence_and_no_words() -> None:
    """A line that is kept busy lives on, but the first word must still come in time."""
    limits = StreamLimits(first_token_timeout_s=2, idle_timeout_s=1)
    async with _provider() as (_, upstream):
        reply = KeptReply()
        stream = new_stream(upstream, reply, "demo:fault=stall_first+comments,interval_ms=20", limits=limits)
        await asyncio.wait_for(stream.run(), 30)
    assert "first word" in _errors(reply)[0]


async def test_heartbeats_fill_the_silence_and_are_counted_as_bytes() -> None:
    """Each is the empty line; none is a delta."""
    limits = StreamLimits(heartbeat_s=0.05, first_token_timeout_s=0.5)
    async with _provider() as (_, upstream):
        reply = KeptReply()
        stream = new_stream(upstream, reply, "demo:fault=stall_first", limits=limits)
        await stream.run()
    beats = reply.sent.count(HEARTBEAT)
    assert 1 <= beats <= 10
    assert (stream.record.deltas, stream.record.first_token_ms) == (0, None)
    assert stream.record.bytes_out == len(reply.sent)
    assert reply.status == 200


@pytest.mark.parametrize(
    ("trouble", "outcome"),
    [(ClientGone(), Outcome.CLIENT_CLOSED), (ClientStalled(), Outcome.CLIENT_STALLED)],
)
async def test_a_client_that_fails_ends_the_providers_request(
    trouble: ClientGone | ClientStalled, outcome: Outcome
) -> None:
    """Whatever a write meets is the stream's end; nothing more is written."""
    async with _provider() as (demo, upstream):
        reply = KeptReply()
        stream = new_stream(upstream, reply, _ENDLESS)
        running = asyncio.create_task(stream.run(), name="stream")
        await reply.first.wait()
        reply.trouble = trouble
        await asyncio.wait_for(running, 30)
        await demo.wait_closed(0)
    assert stream.record.outcome is outcome
    assert stream.record.error is None
    assert reply.finished == 0


@pytest.mark.parametrize("fault", ["no_done", "crlf", "one_byte", "coalesced"])
async def test_a_finish_reason_makes_an_answer_whole(fault: str) -> None:
    """`[DONE]` may be absent; what counts is the reason."""
    async with _provider() as (_, upstream):
        reply = KeptReply()
        stream = new_stream(upstream, reply, f"demo:deltas=3,interval_ms=0,finish=length,fault={fault}")
        await stream.run()
    assert stream.record.outcome is Outcome.COMPLETED
    assert stream.record.finish_reason == "length"
    assert stream.record.completion_tokens in {3, None}


async def test_deltas_that_come_together_leave_together() -> None:
    """A burst is one write, not one for each delta."""
    writes: list[bytes] = []

    class Counting(KeptReply):
        def send(self, lines: bytes) -> bool:
            writes.append(lines)
            return super().send(lines)

    async with _provider() as (_, upstream):
        stream = new_stream(upstream, Counting(), "demo:deltas=100,interval_ms=0,fault=coalesced,batch=50")
        await stream.run()
    assert stream.record.deltas == 100
    assert len(writes) < 10


async def test_a_bug_is_told_as_internal(caplog: pytest.LogCaptureFixture) -> None:
    """The client learns the request's id; the log has the traceback."""

    class Buggy(KeptReply):
        def send(self, lines: bytes) -> bool:
            raise ZeroDivisionError(f"beside {len(lines)} bytes")

    async with _provider() as (demo, upstream):
        reply = Buggy()
        stream = new_stream(upstream, reply, _ENDLESS)
        await stream.run()
        await demo.wait_closed(0)
    assert _errors(reply)[0].startswith("internal: ")
    assert stream.record.id in _errors(reply)[0]
    assert "ZeroDivisionError" in caplog.text
    assert stream.record.outcome is Outcome.CRASHED


async def test_a_stream_tells_how_it_goes() -> None:
    """Age, last delta and phase are there for the operator while it runs."""
    async with _provider() as (_, upstream):
        reply = KeptReply()
        stream: RelayStream = new_stream(upstream, reply, _ENDLESS)
        assert (stream.record.phase, stream.last_delta_at) == (Phase.CONNECTING, None)
        running = asyncio.create_task(stream.run(), name="stream")
        await reply.first.wait()
        assert stream.record.phase is Phase.STREAMING
        assert stream.last_delta_at is not None
        assert stream.age_s > 0
        assert not stream.writing
        stream.stop(ClientGone())
        await running


class _Pinging:
    """A provider that ends its answer, and then only keeps the connection alive."""

    request_id: str | None = None

    def __init__(self) -> None:
        self._answered = False

    def scrub(self, text: str) -> str:
        """There is no secret."""
        return text

    @asynccontextmanager
    async def stream(self, _body: bytes, *, connected: Callable[[], None]) -> AsyncGenerator[_Pinging, None]:
        """Begin at once."""
        connected()
        yield self

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """The answer first, then a comment now and then."""
        if not self._answered:
            self._answered = True
            take(b'data: {"choices":[{"delta":{"content":"all"},"finish_reason":"stop"}]}\n\n')
            return True
        await asyncio.sleep(0.01)
        take(b": ping\n\n")
        return True

    def tidy(self) -> None:
        """Nothing."""


async def test_pings_after_the_end_of_an_answer_keep_nobody() -> None:
    """The grace for what follows a finish reason is one for all of it."""
    reply = KeptReply()
    stream = RelayStream(
        new_record(),
        b"{}",
        tell_usage=False,
        upstream=_Pinging(),
        reply=reply,
        limits=StreamLimits(finish_grace_s=0.2),
    )
    async with asyncio.timeout(30):
        await stream.run()
    assert stream.record.outcome is Outcome.COMPLETED
    assert reply.sent.endswith(DONE)


async def test_a_heartbeat_that_finds_nobody_ends_the_stream() -> None:
    """While the provider is silent nothing else would find out."""
    async with _provider() as (demo, upstream):
        reply = KeptReply()
        reply.trouble = ClientGone()
        stream = new_stream(upstream, reply, "demo:fault=stall_first", limits=StreamLimits(heartbeat_s=0.05))
        async with asyncio.timeout(30):
            await stream.run()
            await demo.wait_closed(0)
    assert stream.record.outcome is Outcome.CLIENT_CLOSED


class _Full(KeptReply):
    """A client that is full after each line; the stream is stopped before it can begin to wait."""

    stream: RelayStream | None = None

    def send(self, lines: bytes) -> bool:
        """Keep the lines, and stop the stream."""
        super().send(lines)
        assert self.stream is not None
        self.stream.stop(Failure(Code.CANCELLED, "Stopped."))
        return False


async def test_a_stop_between_a_full_write_and_its_wait_leaves_nothing_behind() -> None:
    """The wait never begins, nothing is left un-awaited, and the stream ends as ever."""
    async with _provider() as (demo, upstream):
        reply = _Full()
        stream = reply.stream = new_stream(upstream, reply, _ENDLESS)
        async with asyncio.timeout(30):
            await stream.run()
            await demo.wait_closed(0)
    assert stream.record.outcome is Outcome.CANCELLED
    assert _errors(reply) == ["cancelled: Stopped."]
