"""One stream: its lines, its clocks, its record, and every cause of its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.relay.errors import ClientGone, ClientStalled, ErrorCode, RelayError
from relayd.relay.ndjson import DONE_LINE, HEARTBEAT_LINE, delta_line
from relayd.relay.redact import Redactor
from relayd.relay.stream import RelayStream, StreamLimits, UpstreamBody
from relayd.state.records import Outcome, Phase, RecordedError, RequestRecord
from tests.relay.harness import (
    CHUNKED_HEAD,
    FINISH,
    PATIENCE_S,
    STREAM_DONE,
    Break,
    KeptResponse,
    PlayedProvider,
    Step,
    answer,
    chunked,
    client_of,
    cut,
    delta,
    error,
    event,
    new_record,
    new_stream,
    relayed,
    running_provider,
    script,
)
from tests.wire import until

_USAGE = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}})


# A whole answer.


@pytest.mark.parametrize("include_usage", [False, True])
async def test_a_whole_answer_completes_its_record(include_usage: bool) -> None:  # noqa: FBT001 - a parameter
    """Lines byte for byte; deltas, bytes, times, usage, the provider's id and the reason in the record."""
    head = CHUNKED_HEAD.replace(b"\r\n\r\n", b"\r\nx-request-id: req_7\r\n\r\n")
    steps: list[Step] = [head, 0.05, *answer(delta("hi "), delta("there"), FINISH, _USAGE + STREAM_DONE)[1:]]
    record, response = await relayed(*steps, include_usage=include_usage)
    done = DONE_LINE
    if include_usage:
        extra = (
            b',"finish_reason":"stop","usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n'
        )
        done = DONE_LINE.replace(b"}\n", extra)
    assert response.sent == delta_line("hi ") + delta_line("there") + done
    assert (record.outcome, record.phase, record.status) == (Outcome.COMPLETED, Phase.DONE, 200)
    assert (record.deltas, record.bytes_out) == (2, len(response.sent))
    assert (record.prompt_tokens, record.completion_tokens, record.finish_reason) == (7, 2, "stop")
    assert record.upstream_request_id == "req_7"
    assert (record.error, record.stalled_ms) == (None, 0)
    assert record.connect_ms is not None
    assert record.first_token_ms is not None
    assert record.duration_ms is not None
    assert record.connect_ms + 40 <= record.first_token_ms <= record.duration_ms < 10_000


@pytest.mark.parametrize(
    "steps",
    [
        answer(delta("a"), FINISH),
        [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + delta("a") + FINISH, Break.CLOSE],
        [CHUNKED_HEAD, chunked(delta("a"), FINISH), Break.RESET],
        [CHUNKED_HEAD, chunked(delta("a"), FINISH, b"data: {broken\n\n"), Break.CLOSE],
        [CHUNKED_HEAD, chunked(delta("a") + FINISH + STREAM_DONE), Break.WAIT],
    ],
    ids=["no [DONE]", "close-delimited", "reset after the finish", "garbage after the finish", "no end"],
)
async def test_a_finish_makes_an_answer_whole_whatever_comes_after_it(steps: list[Step]) -> None:
    """`[DONE]`, an end of the body, a break of the connection: all are success."""
    record, response = await relayed(*steps)
    assert response.sent == delta_line("a") + DONE_LINE
    assert (record.outcome, record.error) == (Outcome.COMPLETED, None)


async def test_an_answer_without_a_word_has_only_its_last_line() -> None:
    """A filter or tool calls alone: the reason is in the record, and there is no first word."""
    record, response = await relayed(
        *answer(event({"choices": [{"delta": {}, "finish_reason": "content_filter"}]}), STREAM_DONE)
    )
    assert response.sent == DONE_LINE
    assert (record.finish_reason, record.first_token_ms, record.deltas) == ("content_filter", None, 0)
    assert record.bytes_out == len(DONE_LINE)


async def test_deltas_that_come_together_leave_together() -> None:
    """A burst is one write; those that come with the end of the answer leave with its last line."""
    go = asyncio.Event()
    burst = b"".join(delta(f"{n} ") for n in range(50))
    steps: list[Step] = [
        CHUNKED_HEAD + chunked(burst),
        go,
        chunked(delta("last") + FINISH + STREAM_DONE) + b"0\r\n\r\n",
    ]
    async with _running(steps) as (_, stream, response, running):
        await response.first_line.wait()
        go.set()
        await running
    assert response.writes == [
        b"".join(delta_line(f"{n} ") for n in range(50)),
        delta_line("last") + DONE_LINE,
    ]
    assert stream.record.deltas == 51


@given(st.lists(st.integers(0, 10_000), max_size=10), st.sampled_from([b"", b": ping\n\n", _USAGE]))
@settings(max_examples=50)
def test_where_the_providers_bytes_are_cut_changes_no_text(places: list[int], last: bytes) -> None:
    """Every write is whole lines, the text is the same, and there is one last line."""
    events = [b": hello\n\n", *(delta(text) for text in ("a", "é😀", "\u2028", "b" * 300)), FINISH, _USAGE]
    response = KeptResponse()

    async def run() -> RequestRecord:
        body = _PushedBody(*cut(b"".join(events) + STREAM_DONE + last, places))
        stream = new_stream(_Pushing(body), response, include_usage=True)
        await asyncio.wait_for(stream.run(), PATIENCE_S)
        return stream.record

    record = asyncio.run(run())
    assert response.text == "aé😀\u2028" + "b" * 300
    assert response.lines[-1]["usage"]["total_tokens"] == 9
    assert (record.outcome, record.deltas, record.bytes_out) == (Outcome.COMPLETED, 4, len(response.sent))


class _PushedBody:
    """An answer whose pieces are pushed all at once, before anybody can react."""

    def __init__(self, *pieces: bytes, end: Exception | None = None) -> None:
        self._pieces = pieces
        self._end = end
        self.closed = False
        self.on_chunk: Callable[[bytes], None] = lambda _data: None

    def start(self, on_chunk: Callable[[bytes], None], on_end: Callable[[Exception | None], None]) -> None:
        """Push everything."""
        self.on_chunk = on_chunk
        for piece in self._pieces:
            on_chunk(piece)
        on_end(self._end)

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""

    def close(self, *, linger_s: float = 0.0) -> None:
        """Note it."""
        del linger_s
        self.closed = True


class _Pushing:
    """An upstream that answers with one body, or with a bug."""

    def __init__(self, body: UpstreamBody | None) -> None:
        self.redact = Redactor("")
        self._body = body

    async def open(self, body: bytes, on_connected: Callable[[], None]) -> tuple[None, UpstreamBody]:
        """Begin at once."""
        del body
        on_connected()
        if self._body is None:
            raise ZeroDivisionError("secret details")
        return None, self._body


async def test_what_comes_with_or_after_the_end_takes_no_word_away() -> None:
    """A second read in the same turn of the loop, as TLS and full buffers bring it."""
    response = KeptResponse()
    body = _PushedBody(delta("all") + FINISH + STREAM_DONE, b": bye\n\n", delta("never"), end=None)
    stream = new_stream(_Pushing(body), response)
    await stream.run()
    assert response.sent == delta_line("all") + DONE_LINE
    assert (stream.record.deltas, body.closed) == (1, True)


# Failures of the provider.


@pytest.mark.parametrize(
    ("steps", "code", "said"),
    [
        (
            [error(429, "Slow down.", "Retry-After: 7")],
            ErrorCode.UPSTREAM_LIMITED,
            "The provider's rate or quota limit is reached: Slow down.",
        ),
        (
            answer(),
            ErrorCode.UPSTREAM_TRUNCATED,
            "The provider's answer ended before it was finished.",
        ),
        (
            [CHUNKED_HEAD, Break.CLOSE],
            ErrorCode.UPSTREAM_FAILED,
            "The connection to the provider broke in the middle of its answer.",
        ),
        (
            answer(event({"error": {"message": "No."}})),
            ErrorCode.UPSTREAM_FAILED,
            "The provider reported an error in the middle of its answer: No.",
        ),
    ],
)
async def test_a_failure_before_the_first_word_has_its_status(
    steps: list[Step], code: ErrorCode, said: str
) -> None:
    """And the same two lines; the record has both."""
    record, response = await relayed(*steps)
    assert response.error == f"{code}: {said}"
    assert response.sent.endswith(DONE_LINE)
    assert (record.outcome, record.status) == (Outcome.UPSTREAM_ERROR, RelayError(code, "").status)
    assert record.error == RecordedError(code, said)
    assert response.status == record.status
    assert record.bytes_out == len(response.sent)


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        ([b"0\r\n\r\n"], ErrorCode.UPSTREAM_TRUNCATED),
        ([chunked(STREAM_DONE) + b"0\r\n\r\n"], ErrorCode.UPSTREAM_TRUNCATED),
        ([Break.RESET], ErrorCode.UPSTREAM_FAILED),
        ([Break.CLOSE], ErrorCode.UPSTREAM_FAILED),
        ([b"not a chunk\r\n"], ErrorCode.UPSTREAM_FAILED),
        ([chunked(event({"error": "No."})), Break.WAIT], ErrorCode.UPSTREAM_FAILED),
        ([chunked(b"data: {broken\n\n"), Break.WAIT], ErrorCode.UPSTREAM_FAILED),
        ([chunked(FINISH + delta("more")), b"0\r\n\r\n"], ErrorCode.UPSTREAM_TRUNCATED),
    ],
)
async def test_a_failure_behind_words_keeps_them(rest: list[Step], code: ErrorCode) -> None:
    """The words, one line that says what happened, the last line; the status was sent long ago."""
    record, response = await relayed(CHUNKED_HEAD, chunked(delta("word ")), *rest, include_usage=True)
    assert response.text.startswith("word ")
    assert response.error is not None
    assert response.error.startswith(f"{code}: ")
    assert response.lines[-1]["finish_reason"] is None
    assert (record.outcome, record.status) == (Outcome.UPSTREAM_ERROR, 200)
    assert record.error is not None
    assert record.error.code == code


async def test_words_that_come_with_an_error_are_sent_before_it() -> None:
    """In one read."""
    _, response = await relayed(*answer(delta("word ") + event({"error": "No."})))
    assert response.lines[0]["content"] == "word "
    assert response.error is not None


async def test_a_refusal_of_the_request_is_recorded_without_its_sentence() -> None:
    """The client reads it; log and database do not: it may quote the conversation."""
    record, response = await relayed(
        error(400, "Bad: my secret", type="invalid", code="c1", param="messages")
    )
    assert response.error == "upstream_rejected: The provider refused the request (400): Bad: my secret"
    assert record.error == RecordedError(
        "upstream_rejected", "The provider refused the request (400): invalid, c1, parameter messages"
    )


@pytest.mark.parametrize("where", ["open", "body", "write"])
async def test_a_bug_ends_one_request_and_is_told_as_one(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client learns the request's id and no more; the log has the traceback."""
    response = KeptResponse()
    body = _PushedBody(delta("a"), end=ZeroDivisionError("secret details") if where == "body" else None)
    if where == "write":

        def fail(_lines: bytes) -> None:
            raise ZeroDivisionError("secret details")

        response.on_write = fail
        async with (
            running_provider(answer(delta("a"), delta("b"), FINISH)) as provider,
            client_of(provider.base_url) as upstream,
        ):
            stream = new_stream(upstream, response)
            await asyncio.wait_for(stream.run(), PATIENCE_S)
    else:
        stream = new_stream(_Pushing(None if where == "open" else body), response)
        await stream.run()
    assert response.error is not None
    assert response.error.startswith("internal: ")
    assert "under request request." in response.error
    assert "secret" not in response.error
    assert "secret details" in caplog.text
    assert stream.record.outcome is Outcome.CRASHED


# Causes of an end from outside.


@asynccontextmanager
async def _running(
    steps: list[Step], limits: StreamLimits | None = None
) -> AsyncIterator[tuple[PlayedProvider, RelayStream, KeptResponse, asyncio.Task[None]]]:
    """Relay one played reply in a task that the test ends."""
    response = KeptResponse()
    async with running_provider(steps) as provider, client_of(provider.base_url) as upstream:
        stream = new_stream(upstream, response, limits=limits)
        running = asyncio.create_task(stream.run(), name="stream")
        async with asyncio.timeout(PATIENCE_S):
            yield provider, stream, response, running
        await asyncio.wait((running,), timeout=PATIENCE_S)
        assert running.done()
        running.result()
        assert running.cancelling() == 0


_STOPS = [
    (RelayError(ErrorCode.CANCELLED, "Stopped."), Outcome.CANCELLED, 503),
    (RelayError(ErrorCode.KEY_REVOKED, "Stopped."), Outcome.CANCELLED, 401),
    (RelayError(ErrorCode.DRAINING, "Stopped."), Outcome.SHUTDOWN, 503),
    (ClientGone(), Outcome.CLIENT_CLOSED, None),
]


@pytest.mark.parametrize(("cause", "outcome", "status"), _STOPS, ids=lambda value: str(value)[:9])
@pytest.mark.parametrize("phase", ["head", "first word", "words", "finish"])
async def test_every_stop_ends_the_stream_and_the_providers_request(
    cause: RelayError | ClientGone, outcome: Outcome, status: int | None, phase: str
) -> None:
    """In every phase: the client that is still there reads why, and the record says it."""
    scripts: dict[str, list[Step]] = {
        "head": [Break.WAIT],
        "first word": [CHUNKED_HEAD, Break.WAIT],
        "words": [CHUNKED_HEAD + chunked(delta("word ")), Break.WAIT],
        "finish": [CHUNKED_HEAD + chunked(delta("word ") + FINISH + _USAGE), Break.WAIT],
    }
    async with _running(scripts[phase]) as (provider, stream, response, running):
        await until(lambda: provider.requests)
        if phase in {"words", "finish"}:
            await response.first_line.wait()
        await asyncio.sleep(0.02)
        stream.stop(cause)
        stream.stop(RelayError(ErrorCode.INTERNAL, "Later."))
        await running
        await provider.relay_left()
    record = stream.record
    had_words = phase in {"words", "finish"}
    assert response.text == ("word " if had_words else "")
    assert (record.outcome, record.phase) == (outcome, Phase.DONE)
    assert record.prompt_tokens == (7 if phase == "finish" else None)
    if isinstance(cause, RelayError):
        assert response.error == f"{cause.code}: Stopped."
        assert record.error == RecordedError(cause.code, "Stopped.")
        assert (record.status, response.ends) == (200 if had_words else status, 1)
    else:
        assert (record.error, response.ends) == (None, 0)


async def test_a_stream_that_is_stopped_before_it_runs_asks_for_nothing() -> None:
    """The provider never hears of it."""
    response = KeptResponse()
    async with running_provider(answer(FINISH)) as provider, client_of(provider.base_url) as upstream:
        stream = new_stream(upstream, response)
        stream.stop(RelayError(ErrorCode.DRAINING, "The end."))
        await stream.run()
        assert provider.requests == []
    assert (response.error, response.status) == ("draining: The end.", 503)
    assert stream.record.outcome is Outcome.SHUTDOWN


async def test_nothing_stops_an_answer_that_has_ended() -> None:
    """A cancel that comes a moment late changes neither lines nor record."""
    async with _running(answer(delta("a"), FINISH)) as (_, stream, response, running):
        await running
        stream.stop(RelayError(ErrorCode.CANCELLED, "Late."))
    assert (response.error, stream.record.outcome) == (None, Outcome.COMPLETED)


@pytest.mark.parametrize("rest", [[], [FINISH + STREAM_DONE]])
async def test_a_stop_from_within_a_write_ends_the_stream_as_any(rest: list[bytes]) -> None:
    """Nothing is left of it for a later wait of the same task, also where the whole answer is there."""
    response = KeptResponse()
    stream = new_stream(_Pushing(_PushedBody(delta("a"), *rest)), response)
    response.on_write = lambda _lines: stream.stop(RelayError(ErrorCode.CANCELLED, "Stopped."))
    running = asyncio.create_task(stream.run())
    await asyncio.wait_for(running, PATIENCE_S)
    assert (response.error, response.text) == ("cancelled: Stopped.", "a")
    assert stream.record.outcome is Outcome.CANCELLED
    assert running.cancelling() == 0


async def test_a_task_that_is_cancelled_by_others_ends_without_a_word() -> None:
    """It is no end that the stream knows; the provider's request is closed."""
    response = KeptResponse()
    async with (
        running_provider([CHUNKED_HEAD + chunked(delta("a")), Break.WAIT]) as provider,
        client_of(provider.base_url) as upstream,
    ):
        running = asyncio.create_task(new_stream(upstream, response).run())
        await response.first_line.wait()
        running.cancel()
        await asyncio.wait((running,))
        assert running.cancelled()
        await provider.relay_left()
    assert response.ends == 0


@pytest.mark.parametrize("trouble", [ClientGone(), ClientStalled()])
@pytest.mark.parametrize("met_by", ["delta", "last line", "heartbeat"])
async def test_a_client_that_is_not_there_ends_the_stream(
    trouble: ClientGone | ClientStalled, met_by: str
) -> None:
    """Whichever write meets it; nothing more is written, and the provider's request is closed."""
    if isinstance(trouble, ClientStalled) and met_by != "last line":
        return
    go = asyncio.Event()
    rest: dict[str, list[Step]] = {
        "delta": [chunked(delta("b")), Break.WAIT],
        "last line": [chunked(FINISH + STREAM_DONE), Break.WAIT],
        "heartbeat": [Break.WAIT],
    }
    limits = StreamLimits(heartbeat_s=0.05 if met_by == "heartbeat" else 60)
    async with _running([CHUNKED_HEAD + chunked(delta("a")), go, *rest[met_by]], limits) as started:
        provider, stream, response, running = started
        await until(lambda: response.text)
        response.trouble = trouble
        go.set()
        await running
        await provider.relay_left()
    stalled = isinstance(trouble, ClientStalled)
    assert stream.record.outcome is (Outcome.CLIENT_STALLED if stalled else Outcome.CLIENT_CLOSED)
    assert (stream.record.error, response.ends) == (None, 0)


async def test_a_client_that_leaves_an_error_unread_does_not_change_its_cause() -> None:
    """The record says what ended the stream first."""
    async with _running([CHUNKED_HEAD, Break.WAIT]) as (provider, stream, response, running):
        await until(lambda: provider.requests)
        response.trouble = ClientGone()
        stream.stop(RelayError(ErrorCode.KEY_REVOKED, "Cut."))
        await running
    assert stream.record.outcome is Outcome.CANCELLED
    assert stream.record.error == RecordedError("key_revoked", "Cut.")


# Back-pressure.


async def test_a_client_that_does_not_read_stops_the_provider() -> None:
    """What is in flight stays bounded; when it reads again all comes, and the wait is in the record."""
    piece = chunked(delta("x" * 60_000))
    steps: list[Step] = [CHUNKED_HEAD, *[piece] * 400, chunked(FINISH + STREAM_DONE) + b"0\r\n\r\n"]
    async with _running(steps) as (provider, stream, response, running):
        response.blocked = True
        before = -1
        while provider.sent_bytes != before or before < 60_000:
            before = provider.sent_bytes
            await asyncio.sleep(0.05)
        assert stream.blocked
        assert stream.record.deltas < 10
        assert provider.sent_bytes < 400 * 60_000
        assert HEARTBEAT_LINE not in response.writes
        response.blocked = False
        await running
    assert len(response.text) == 400 * 60_000
    assert stream.record.outcome is Outcome.COMPLETED
    assert stream.record.stalled_ms >= 40
    assert stream.stalled_s * 1000 == pytest.approx(stream.record.stalled_ms, abs=1)


@pytest.mark.parametrize("trouble", [ClientGone(), ClientStalled()])
async def test_a_client_that_never_reads_again_ends_the_stream(trouble: ClientGone | ClientStalled) -> None:
    """The wait for it ends with its cause, and the provider's request is closed."""
    async with _running([CHUNKED_HEAD + chunked(delta("a")), Break.WAIT]) as started:
        provider, stream, response, running = started
        response.blocked = True
        await response.first_line.wait()
        response.trouble, response.blocked = trouble, False
        await running
        await provider.relay_left()
    stalled = isinstance(trouble, ClientStalled)
    assert stream.record.outcome is (Outcome.CLIENT_STALLED if stalled else Outcome.CLIENT_CLOSED)


async def test_while_a_client_is_waited_for_the_provider_is_not_silent() -> None:
    """Neither the idle limit nor the grace after a finish runs, nor is there a heartbeat.

    What the provider said meanwhile is in the kernel, and comes whole.
    """
    words: list[Step] = [chunked(delta(f"{n} ", finish_reason="stop")) for n in range(5)]
    limits = StreamLimits(idle_timeout_s=0.5, finish_grace_s=0.5, heartbeat_s=0.2)
    go = asyncio.Event()
    steps: list[Step] = [CHUNKED_HEAD, words[0], go, *words[1:], chunked(STREAM_DONE) + b"0\r\n\r\n"]
    async with _running(steps, limits) as (_, stream, response, running):
        response.blocked = True
        await response.first_line.wait()
        go.set()
        await asyncio.sleep(0.8)
        assert not running.done()
        assert HEARTBEAT_LINE not in response.writes
        response.blocked = False
        await running
    assert response.text == "0 1 2 3 4 "
    assert stream.record.outcome is Outcome.COMPLETED


async def test_after_the_wait_for_a_client_the_grace_runs_again() -> None:
    """A provider that says nothing more does not keep it for longer."""
    limits = StreamLimits(finish_grace_s=0.1, idle_timeout_s=PATIENCE_S * 2)
    async with _running([CHUNKED_HEAD + chunked(delta("a") + FINISH), Break.WAIT], limits) as started:
        _, stream, response, running = started
        response.blocked = True
        await response.first_line.wait()
        await asyncio.sleep(0.3)
        response.blocked = False
        await running
    assert stream.record.outcome is Outcome.COMPLETED


# Clocks.


@pytest.mark.parametrize(
    ("limits", "steps", "said"),
    [
        (StreamLimits(first_token_timeout_s=0.15), [Break.WAIT], "The first word did not come within 0.15 s"),
        (
            StreamLimits(first_token_timeout_s=0.15),
            [CHUNKED_HEAD, chunked(delta("", role="assistant")), Break.WAIT],
            "The first word did not come within 0.15 s",
        ),
        (
            StreamLimits(first_token_timeout_s=0.3, idle_timeout_s=0.2),
            [CHUNKED_HEAD, *[0.05, chunked(b": ping\n\n")] * 20, Break.WAIT],
            "The first word did not come within 0.3 s",
        ),
        (
            StreamLimits(idle_timeout_s=0.15),
            [CHUNKED_HEAD + chunked(delta("word ")), Break.WAIT],
            "The answer fell silent for 0.15 s",
        ),
        (
            StreamLimits(idle_timeout_s=0.15, first_token_timeout_s=60),
            [CHUNKED_HEAD + chunked(event({"choices": [{"delta": {"reasoning": "Hm"}}]})), Break.WAIT],
            "The answer fell silent for 0.15 s",
        ),
        (
            StreamLimits(total_timeout_s=0.3),
            [CHUNKED_HEAD, *[chunked(delta("word ")), 0.02] * 50, Break.WAIT],
            "The whole answer took longer than 0.3 s",
        ),
        (
            StreamLimits(total_timeout_s=0.3),
            [CHUNKED_HEAD, *[chunked(delta("word ") + FINISH), 0.02] * 50, Break.WAIT],
            "The whole answer took longer than 0.3 s",
        ),
    ],
)
async def test_a_time_that_is_over_ends_the_stream(
    limits: StreamLimits, steps: list[Step], said: str
) -> None:
    """The sentence says which limit it was, and the provider's request is closed."""
    async with _running(steps, limits) as (provider, stream, response, running):
        await running
        await provider.relay_left()
    assert response.error == f"upstream_timeout: {said}, the limit of this relay."
    assert stream.record.outcome is Outcome.UPSTREAM_ERROR
    assert stream.record.status == (200 if "word " in response.text else 504)
    limit_s = float(said.rpartition("s")[0].split()[-1])
    assert stream.record.duration_ms is not None
    assert limit_s * 1000 - 2 <= stream.record.duration_ms < limit_s * 1000 + 2000


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_a_model_that_visibly_thinks_is_not_cut(field: str) -> None:
    """Neither by the limit for the first word nor by that of silence."""
    thought = chunked(event({"choices": [{"delta": {field: "Hm"}}]}))
    record, response = await relayed(
        CHUNKED_HEAD,
        *script(thought, 0.15) * 8,
        chunked(delta("Yes.") + FINISH) + b"0\r\n\r\n",
        limits=StreamLimits(first_token_timeout_s=1, idle_timeout_s=1),
    )
    assert (response.text, record.outcome, record.deltas) == ("Yes.", Outcome.COMPLETED, 1)
    assert record.first_token_ms is not None
    assert record.first_token_ms >= 1190


async def test_comments_of_the_provider_are_no_silence() -> None:
    """They show that it is at work."""
    steps: list[Step] = [CHUNKED_HEAD, chunked(delta("a")), *script(0.15, chunked(b": ping\n\n")) * 8]
    record, _ = await relayed(*steps, chunked(FINISH) + b"0\r\n\r\n", limits=StreamLimits(idle_timeout_s=0.2))
    assert record.outcome is Outcome.COMPLETED


@pytest.mark.parametrize("after", [[], [0.1, chunked(b": ping\n\n")] * 30])
async def test_an_answer_without_done_is_whole_after_a_grace(after: list[Step]) -> None:
    """Comments prolong it no more than silence does."""
    steps: list[Step] = [CHUNKED_HEAD, chunked(delta("a") + FINISH), *after, Break.WAIT]
    limits = StreamLimits(finish_grace_s=0.3)
    async with _running(steps, limits) as (provider, stream, response, running):
        await running
        await provider.relay_left()
    assert response.sent == delta_line("a") + DONE_LINE
    assert stream.record.outcome is Outcome.COMPLETED
    assert stream.record.duration_ms is not None
    assert 290 <= stream.record.duration_ms < 2000


async def test_events_behind_the_finish_prolong_the_grace() -> None:
    """Usage, or more text, may be slow to come."""
    more = chunked(delta("b", finish_reason="stop"))
    record, response = await relayed(
        CHUNKED_HEAD,
        chunked(delta("a") + FINISH),
        *script(0.6, more) * 2,
        *script(0.6, chunked(_USAGE), Break.WAIT),
        limits=StreamLimits(finish_grace_s=1, idle_timeout_s=60),
    )
    assert (response.text, record.prompt_tokens) == ("abb", 7)


async def test_text_behind_the_finish_stops_the_grace() -> None:
    """The answer is open again, until its new finish or the limit of silence."""
    steps: list[Step] = [CHUNKED_HEAD, chunked(FINISH + delta("a")), 0.4, chunked(FINISH), b"0\r\n\r\n"]
    record, response = await relayed(*steps, limits=StreamLimits(finish_grace_s=0.1))
    assert (response.text, record.outcome) == ("a", Outcome.COMPLETED)


def test_the_grace_is_five_seconds() -> None:
    """The contract's number; the others are the configuration's."""
    assert StreamLimits().finish_grace_s == 5.0


async def test_heartbeats_fill_the_silence_before_and_between_words() -> None:
    """Each is the empty line of the contract; none is a delta, all are bytes; words put them off."""
    steps: list[Step] = [CHUNKED_HEAD, 1.0, *script(chunked(delta("a")), 0.02) * 5, 1.0]
    record, response = await relayed(
        *steps, chunked(FINISH + STREAM_DONE) + b"0\r\n\r\n", limits=StreamLimits(heartbeat_s=0.3)
    )
    first = response.writes.index(delta_line("a"))
    last = len(response.writes) - 1 - response.writes[::-1].index(delta_line("a"))
    before, between, after = (
        response.writes[:first],
        response.writes[first:last],
        response.writes[last + 1 : -1],
    )
    assert set(before) == set(after) == {HEARTBEAT_LINE}
    assert 2 <= len(before) <= 4
    assert 2 <= len(after) <= 4
    assert HEARTBEAT_LINE not in between
    assert (record.deltas, record.bytes_out, record.status) == (5, len(response.sent), 200)


async def test_a_failure_behind_a_heartbeat_is_told_in_its_line() -> None:
    """The status was sent with the heartbeat."""
    record, response = await relayed(
        0.2, error(500, "No."), limits=StreamLimits(heartbeat_s=0.05, first_token_timeout_s=60)
    )
    assert (response.status, record.status, record.first_token_ms) == (200, 200, None)
    assert response.error == "upstream_failed: The provider failed (500): No."


async def test_limits_that_change_hold_for_open_streams() -> None:
    """All streams share one object, which a reload changes."""
    limits = StreamLimits(idle_timeout_s=0.4)
    async with _running([CHUNKED_HEAD + chunked(delta("a")), Break.WAIT], limits) as started:
        _, _, response, running = started
        await response.first_line.wait()
        limits.update(StreamLimits(idle_timeout_s=0.2, heartbeat_s=3))
        assert limits == StreamLimits(idle_timeout_s=0.2, heartbeat_s=3)
        await running
    assert "fell silent for 0.2 s" in (response.error or "")


# What the operator sees of an open stream, and the provider of its connections.


async def test_an_open_stream_says_where_it_is() -> None:
    """Phase, age, last delta and stalls are there while it runs."""
    head, word = asyncio.Event(), asyncio.Event()
    steps: list[Step] = [head, CHUNKED_HEAD, word, chunked(delta("a")), Break.WAIT]
    async with _running(steps) as (provider, stream, response, _):
        phases = [stream.record.phase]
        await until(lambda: provider.requests)
        phases.append(stream.record.phase)
        assert stream.record.connect_ms is not None
        head.set()
        word.set()
        await response.first_line.wait()
        phases.append(stream.record.phase)
        assert phases == [Phase.CONNECTING, Phase.WAITING, Phase.STREAMING]
        assert stream.last_delta_at is not None
        assert abs(stream.last_delta_at - asyncio.get_running_loop().time()) < 5
        assert 0 < stream.age_s < PATIENCE_S
        assert not stream.blocked
        assert stream.stalled_s == 0
        stream.stop(ClientGone())


async def test_a_whole_answer_frees_its_connection_for_the_next() -> None:
    """Also when the end of its body comes a moment after its last event."""
    late: list[Step] = [CHUNKED_HEAD, chunked(delta("a") + FINISH + STREAM_DONE), 0.1, b"0\r\n\r\n"]
    async with running_provider(late) as provider, client_of(provider.base_url) as upstream:
        for _ in range(3):
            await new_stream(upstream, KeptResponse(), record=new_record()).run()
            await asyncio.sleep(0.2)
        assert (provider.connections, len(provider.requests)) == (1, 3)


async def test_a_provider_whose_body_does_not_end_is_left() -> None:
    """After half a second, which no client waits for."""
    async with _running([CHUNKED_HEAD, chunked(delta("a") + FINISH + STREAM_DONE), Break.WAIT]) as started:
        provider, _, _, running = started
        await running
        assert provider.departures.empty()
        await provider.relay_left()
