"""One stream: its lines, its clocks, its record, and every cause of its end. Its times are exact."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.relay.errors import ClientGone, ClientStalled, ErrorCode, RelayError
from relayd.relay.ndjson import DONE_LINE, HEARTBEAT_LINE, delta_line
from relayd.relay.stream import StreamLimits
from relayd.state.records import Outcome, Phase, RecordedError
from tests.relay.harness import (
    FINISH,
    STREAM_DONE,
    USAGE,
    Break,
    KeptResponse,
    Running,
    ScriptedUpstream,
    Step,
    cut,
    delta,
    event,
    relayed,
)
from tests.support.loop import VirtualClockLoop

pytestmark = [pytest.mark.virtual_clock, pytest.mark.timeout(seconds=10_000)]

_PING = b": ping\n\n"
_THOUGHT = event({"choices": [{"delta": {"reasoning": "Hm"}}]})
_CANCELLED = RelayError(ErrorCode.CANCELLED, "Stopped.")
_QUIET = StreamLimits(heartbeat_s=100_000)


# A whole answer.


@pytest.mark.parametrize("include_usage", [False, True])
async def test_a_whole_answer_completes_its_record(include_usage: bool) -> None:  # noqa: FBT001 - the example
    """Lines byte for byte; deltas, bytes, times, usage, the provider's id and the reason in the record."""
    steps: list[Step] = [0.05, delta("hi "), 0.1, delta("there"), FINISH, USAGE + STREAM_DONE]
    running = Running(
        ScriptedUpstream(*steps, connect_s=0.01, head_s=0.02), _QUIET, include_usage=include_usage
    )
    record = await running.ended()
    usage = b',"finish_reason":"stop","usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n'
    done = DONE_LINE.replace(b"}\n", usage) if include_usage else DONE_LINE
    assert running.response.sent == delta_line("hi ") + delta_line("there") + done
    assert (record.outcome, record.phase, record.status) == (Outcome.COMPLETED, Phase.DONE, 200)
    assert (record.deltas, record.bytes_out, record.error) == (2, len(running.response.sent), None)
    assert (record.connect_ms, record.first_token_ms, record.duration_ms) == (10, 80, 180)
    assert record.stalled_ms == 0
    assert (record.prompt_tokens, record.completion_tokens, record.finish_reason) == (7, 2, "stop")
    assert (record.cached_tokens, record.usage_source) == (0, "provider")
    assert record.upstream_request_id == "req_7"


@pytest.mark.parametrize(
    "after",
    [
        [],
        [Break.CLOSE],
        [b"data: {broken\n\n", Break.CLOSE],
        [STREAM_DONE, Break.WAIT],
        [STREAM_DONE, _PING, delta("never")],
    ],
    ids=["no [DONE]", "a break", "garbage", "no end", "more"],
)
async def test_a_finish_makes_an_answer_whole_whatever_comes_after_it(after: list[Step]) -> None:
    """It ends at once, and the end of its body has half a second, so that its connection serves again."""
    upstream = ScriptedUpstream(delta("a") + FINISH, *after)
    running = Running(upstream)
    record = await running.ended()
    assert running.response.sent == delta_line("a") + DONE_LINE
    assert (record.outcome, record.error, record.duration_ms) == (Outcome.COMPLETED, None, 0)
    assert upstream.linger_s == 0.5


async def test_an_answer_without_a_word_has_only_its_last_line() -> None:
    """A filter or tool calls alone: the reason is in the record, and there is no first word."""
    record, response = await relayed(event({"choices": [{"delta": {}, "finish_reason": "content_filter"}]}))
    assert response.sent == DONE_LINE
    assert (record.finish_reason, record.first_token_ms, record.deltas) == ("content_filter", None, 0)
    assert record.bytes_out == len(DONE_LINE)


async def test_deltas_that_come_together_leave_together() -> None:
    """A burst is one write; those that come with the end of the answer leave with its last line."""
    words = [f"{n} " for n in range(50)]
    record, response = await relayed(b"".join(map(delta, words)), 1.0, delta("last") + FINISH + STREAM_DONE)
    assert response.writes == [b"".join(map(delta_line, words)), delta_line("last") + DONE_LINE]
    assert record.deltas == 51


@given(st.lists(st.integers(0, 10_000), max_size=10), st.sampled_from([b"", _PING, USAGE]))
@settings(max_examples=50)
def test_where_the_providers_bytes_are_cut_changes_no_text(places: list[int], last: bytes) -> None:
    """Every write is whole lines, the text is the same, and there is one last line."""
    events = [_PING, *map(delta, ("a", "é😀", "\u2028", "b" * 300)), FINISH, USAGE]
    pieces = cut(b"".join(events) + STREAM_DONE + last, places)
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        record, response = runner.run(relayed(*pieces, include_usage=True))
    assert response.text == "aé😀\u2028" + "b" * 300
    assert response.lines[-1]["usage"]["total_tokens"] == 9
    assert (record.outcome, record.deltas, record.bytes_out) == (Outcome.COMPLETED, 4, len(response.sent))


# Failures of the provider.

_TRUNCATED = (ErrorCode.UPSTREAM_TRUNCATED, "The provider's answer ended before it was finished.")
_BROKE = (ErrorCode.UPSTREAM_FAILED, "The connection to the provider broke in the middle of its answer.")
_SAID_NO = (
    ErrorCode.UPSTREAM_FAILED,
    "The provider reported an error in the middle of its answer: No.",
)
_NO_CHUNK = (
    ErrorCode.UPSTREAM_FAILED,
    "The provider sent an event that is not a chat completion chunk.",
)
_LIMITED = RelayError(ErrorCode.UPSTREAM_LIMITED, "Slow down.", retry_after_s=7, recorded="Limited.")


@pytest.mark.parametrize(
    ("steps", "code", "said"),
    [
        ([], *_TRUNCATED),
        ([STREAM_DONE], *_TRUNCATED),
        ([Break.CLOSE], *_BROKE),
        ([event({"error": "No."}), Break.WAIT], *_SAID_NO),
        ([b"data: {broken\n\n", Break.WAIT], *_NO_CHUNK),
    ],
)
@pytest.mark.parametrize("words", [b"", delta("word "), FINISH + delta("word ")])
async def test_a_failure_keeps_the_words_before_it(
    steps: list[Step], code: ErrorCode, said: str, words: bytes
) -> None:
    """Without any it has its status; behind some it is a line. One line tells, the last line follows."""
    upstream = ScriptedUpstream(*([words] if words else []), *steps)
    running = Running(upstream, include_usage=True)
    record = await running.ended()
    response = running.response
    assert (response.text, response.error) == ("word " if words else "", f"{code}: {said}")
    assert (response.lines[-1]["finish_reason"], response.lines[-1]["usage"]) == (None, None)
    assert (record.outcome, record.error) == (Outcome.UPSTREAM_ERROR, RecordedError(code, said))
    assert record.status == response.status == (200 if words else 502)
    assert (record.bytes_out, upstream.linger_s) == (len(response.sent), 0.0)


async def test_words_that_come_with_an_error_are_sent_before_it() -> None:
    """In one read."""
    _, response = await relayed(delta("word ") + event({"error": "No."}))
    assert response.text == "word "
    assert response.error is not None


@pytest.mark.parametrize(("head_s", "status"), [(0.0, 429), (20.0, 200)])
async def test_a_refusal_is_told_in_full_and_recorded_as_far_as_it_may_be(head_s: float, status: int) -> None:
    """With its own status, or in its line behind a heartbeat; the sentence may quote the conversation."""
    running = Running(ScriptedUpstream(refusal=_LIMITED, head_s=head_s))
    record = await running.ended()
    assert running.response.error == "upstream_limited: Slow down."
    assert (record.outcome, record.error) == (
        Outcome.UPSTREAM_ERROR,
        RecordedError("upstream_limited", "Limited."),
    )
    assert (record.status, running.response.status, record.first_token_ms) == (status, status, None)
    assert record.bytes_out == len(running.response.sent)
    assert running.response.sent.startswith(HEARTBEAT_LINE) == (status == 200)


def _fail(_lines: bytes) -> None:
    raise ZeroDivisionError("secret details")


@pytest.mark.parametrize("where", ["open", "body", "write"])
async def test_a_bug_ends_one_request_and_is_told_as_one(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client learns the request's id and no more; the log has the traceback."""
    bug = ZeroDivisionError("secret details")
    upstream = ScriptedUpstream(
        delta("a"), bug if where == "body" else Break.WAIT, refusal=bug if where == "open" else None
    )
    running = Running(upstream)
    if where == "write":
        running.response.on_write = _fail
    record = await running.ended()
    assert running.response.error == (
        "internal: This relay has a bug and could not answer; its log has the details under request request."
    )
    assert "request request met a bug" in caplog.text
    assert "secret details" in caplog.text
    assert (record.outcome, record.status) == (Outcome.CRASHED, 500 if where == "open" else 200)


# Causes of an end from outside.


@pytest.mark.parametrize(
    ("cause", "outcome", "status"),
    [
        (_CANCELLED, Outcome.CANCELLED, 503),
        (RelayError(ErrorCode.KEY_REVOKED, "Stopped."), Outcome.CANCELLED, 401),
        (RelayError(ErrorCode.DRAINING, "Stopped."), Outcome.SHUTDOWN, 503),
        (ClientGone(), Outcome.CLIENT_CLOSED, None),
    ],
    ids=lambda value: str(value)[:9],
)
@pytest.mark.parametrize(
    ("steps", "options"),
    [
        ([], {"connect_s": 100.0}),
        ([], {"head_s": None}),
        ([Break.WAIT], {}),
        ([delta("word "), Break.WAIT], {}),
        ([delta("word ") + FINISH + USAGE, Break.WAIT], {}),
    ],
    ids=["connection", "head", "first word", "words", "finish"],
)
async def test_every_stop_ends_the_stream_and_the_providers_request(
    cause: RelayError | ClientGone,
    outcome: Outcome,
    status: int | None,
    steps: list[Step],
    options: dict[str, Any],
) -> None:
    """At once, in every phase: the client that is still there reads why, and the record says it."""
    upstream = ScriptedUpstream(*steps, **options)
    running = Running(upstream)
    assert not running.task.done()
    await asyncio.sleep(1)
    running.stream.stop(cause)
    running.stream.stop(RelayError(ErrorCode.INTERNAL, "Later."))
    record, response = await running.ended(), running.response
    assert upstream.is_let_go.is_set()
    had_words = len(steps) == 2
    assert response.text == ("word " if had_words else "")
    assert (record.outcome, record.phase, record.duration_ms) == (outcome, Phase.DONE, 1000)
    assert record.prompt_tokens == (7 if had_words and USAGE in steps[0] else None)  # type: ignore[operator]
    if isinstance(cause, RelayError):
        assert response.error == f"{cause.code}: Stopped."
        assert record.error == RecordedError(cause.code, "Stopped.")
        assert (record.status, response.ends) == (200 if had_words else status, 1)
    else:
        assert (record.error, response.ends) == (None, 0)


async def test_a_stream_that_is_stopped_before_it_runs_asks_for_nothing() -> None:
    """The provider never hears of it."""
    upstream = ScriptedUpstream(FINISH)
    running = Running(upstream)
    running.stream.stop(RelayError(ErrorCode.DRAINING, "The end."))
    record = await running.ended()
    assert not upstream.is_asked
    assert (running.response.error, running.response.status) == ("draining: The end.", 503)
    assert record.outcome is Outcome.SHUTDOWN


async def test_nothing_stops_an_answer_that_has_ended() -> None:
    """A cancel that comes a moment late changes neither lines nor record."""
    running = Running(ScriptedUpstream(delta("a"), FINISH))
    record = await running.ended()
    running.stream.stop(_CANCELLED)
    assert (running.response.error, record.outcome) == (None, Outcome.COMPLETED)


@pytest.mark.parametrize("rest", [[Break.WAIT], [FINISH + STREAM_DONE]])
async def test_a_stop_from_within_a_write_ends_the_stream_as_any(rest: list[Step]) -> None:
    """Nothing is left of it for a later wait of the same task, also where the whole answer is there."""
    running = Running(ScriptedUpstream(delta("a"), *rest))
    running.response.on_write = lambda _lines: running.stream.stop(_CANCELLED)
    record = await running.ended()
    assert (running.response.error, running.response.text) == ("cancelled: Stopped.", "a")
    assert record.outcome is Outcome.CANCELLED


async def test_a_task_that_is_cancelled_by_others_ends_without_a_word() -> None:
    """It is no end that the stream knows; the provider's request is closed."""
    upstream = ScriptedUpstream(delta("a"), Break.WAIT)
    running = Running(upstream)
    assert not running.task.done()
    await running.response.first_line.wait()
    running.task.cancel()
    await asyncio.wait((running.task,))
    assert running.task.cancelled()
    assert upstream.is_let_go.is_set()
    assert running.response.ends == 0


@pytest.mark.parametrize(
    ("trouble", "next_step"),
    [
        (ClientGone(), [delta("b")]),
        (ClientGone(), [FINISH + STREAM_DONE]),
        (ClientStalled(), [FINISH + STREAM_DONE]),
        (ClientGone(), []),
    ],
    ids=["delta", "last line", "last line stalls", "heartbeat"],
)
async def test_a_client_that_is_not_there_ends_the_stream(
    trouble: ClientGone | ClientStalled, next_step: list[Step]
) -> None:
    """Whichever write meets it; nothing more is written, and the provider's request is closed."""
    upstream = ScriptedUpstream(delta("a"), 1.0, *next_step, Break.WAIT)
    running = Running(upstream, StreamLimits(heartbeat_s=1.5))
    running.response.on_write = lambda _lines: setattr(running.response, "trouble", trouble)
    record = await running.ended()
    stalled = isinstance(trouble, ClientStalled)
    assert record.outcome is (Outcome.CLIENT_STALLED if stalled else Outcome.CLIENT_CLOSED)
    assert (record.error, running.response.ends, running.response.writes) == (None, 0, [delta_line("a")])
    assert (upstream.is_let_go.is_set(), record.duration_ms) == (True, 1000 if next_step else 1500)


async def test_a_client_that_leaves_an_error_unread_does_not_change_its_cause() -> None:
    """The record says what ended the stream first."""
    running = Running(ScriptedUpstream(Break.WAIT))
    running.response.trouble = ClientGone()
    assert not running.task.done()
    await asyncio.sleep(0)
    running.stream.stop(RelayError(ErrorCode.KEY_REVOKED, "Cut."))
    record = await running.ended()
    assert (record.outcome, record.error) == (Outcome.CANCELLED, RecordedError("key_revoked", "Cut."))


# Back-pressure.


def _stalling(response: KeptResponse, *stalls_s: float) -> Callable[[bytes], None]:
    """Return what makes the client stall at its first writes, each time for so long."""
    left = list(stalls_s)

    def stall(_lines: bytes) -> None:
        if left:
            response.stall()
            asyncio.get_running_loop().call_later(left.pop(0), response.read_on)

    return stall


@pytest.mark.parametrize("finish_reason", [None, "stop"])
async def test_while_a_client_is_waited_for_the_provider_is_not_read(finish_reason: str | None) -> None:
    """Its silence does not count: no limit of silence, no grace, no heartbeat; the wait is in the record."""
    words = [delta(f"{n} ", finish_reason=finish_reason) for n in range(5)]
    limits = StreamLimits(idle_timeout_s=2, finish_grace_s=2, heartbeat_s=1)
    running = Running(ScriptedUpstream(*words, FINISH, STREAM_DONE), limits)
    running.response.on_write = _stalling(running.response, 7.6, 1.7)
    assert not running.task.done()
    await asyncio.sleep(5)
    assert (running.record.deltas, running.stream.blocked, running.stream.stalled_s) == (1, True, 0)
    record = await running.ended()
    assert running.response.text == "0 1 2 3 4 "
    assert HEARTBEAT_LINE not in running.response.writes
    assert (record.outcome, record.stalled_ms, record.duration_ms) == (Outcome.COMPLETED, 9300, 9300)
    assert running.stream.stalled_s == pytest.approx(9.3)


@pytest.mark.parametrize("trouble", [ClientGone(), ClientStalled()])
async def test_a_client_that_never_reads_again_ends_the_stream(trouble: ClientGone | ClientStalled) -> None:
    """The wait for it ends with its cause, and the provider's request is closed."""
    upstream = ScriptedUpstream(delta("a"), Break.WAIT)
    running = Running(upstream)

    def stall(lines: bytes) -> None:
        running.response.trouble = trouble
        _stalling(running.response, 3.0)(lines)

    running.response.on_write = stall
    record = await running.ended()
    stalled = isinstance(trouble, ClientStalled)
    assert record.outcome is (Outcome.CLIENT_STALLED if stalled else Outcome.CLIENT_CLOSED)
    assert (record.stalled_ms, upstream.is_let_go.is_set()) == (3000, True)


# Clocks: the defaults are the contract's.


@pytest.mark.parametrize(
    ("steps", "stall_s", "at_s", "said"),
    [
        ([Break.WAIT], 0.0, 300, "The first word did not come within 300 s"),
        ([delta("", role="assistant"), Break.WAIT], 0.0, 300, "The first word did not come within 300 s"),
        ([50.0, _PING] * 20, 0.0, 300, "The first word did not come within 300 s"),
        ([delta("word "), Break.WAIT], 0.0, 60, "The answer fell silent for 60 s"),
        ([30.0, _THOUGHT, Break.WAIT], 0.0, 90, "The answer fell silent for 60 s"),
        ([delta("word "), Break.WAIT], 100.0, 160, "The answer fell silent for 60 s"),
        ([delta("word "), 20.0] * 200, 0.0, 1800, "The whole answer took longer than 1800 s"),
        ([delta("word ") + FINISH, 4.0] * 500, 0.0, 1800, "The whole answer took longer than 1800 s"),
        ([delta("word "), Break.WAIT], 2000.0, 1800, "The whole answer took longer than 1800 s"),
    ],
)
async def test_a_time_that_is_over_ends_the_stream(
    steps: list[Step], stall_s: float, at_s: int, said: str
) -> None:
    """At its second. The sentence says which limit it was, and the provider's request is closed."""
    upstream = ScriptedUpstream(*steps)
    running = Running(upstream, _QUIET)
    if stall_s:
        running.response.on_write = _stalling(running.response, stall_s)
    record = await running.ended()
    assert running.response.error == f"upstream_timeout: {said}, the limit of this relay."
    assert (record.outcome, record.duration_ms) == (Outcome.UPSTREAM_ERROR, at_s * 1000)
    assert record.status == (200 if running.response.text else 504)
    assert upstream.is_let_go.is_set()


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_a_model_that_visibly_thinks_is_not_cut(field: str) -> None:
    """Neither by the limit for the first word nor by that of silence."""
    thought = event({"choices": [{"delta": {field: "Hm"}}]})
    thinking: list[Step] = [thought, 50.0] * 10
    record, response = await relayed(*thinking, delta("Yes.") + FINISH)
    assert (response.text, record.outcome, record.deltas) == ("Yes.", Outcome.COMPLETED, 1)
    assert record.first_token_ms == 500_000


async def test_comments_of_the_provider_are_no_silence() -> None:
    """They show that it is at work."""
    comments: list[Step] = [50.0, _PING] * 5
    record, _ = await relayed(delta("a"), *comments, FINISH)
    assert (record.outcome, record.duration_ms) == (Outcome.COMPLETED, 250_000)


@pytest.mark.parametrize(
    ("after", "text", "at_s"),
    [
        ([Break.WAIT], "a", 5),
        ([1.0, _PING] * 30, "a", 5),
        ([4.0, delta("b", finish_reason="stop"), 4.0, USAGE, Break.WAIT], "ab", 13),
        ([delta("b"), 50.0, FINISH, Break.WAIT], "ab", 55),
    ],
    ids=["silence", "comments", "events", "text"],
)
async def test_an_answer_without_done_is_whole_after_five_seconds(
    after: list[Step], text: str, at_s: int
) -> None:
    """Comments prolong the grace no more than silence; events do, and text needs its own finish."""
    record, response = await relayed(delta("a") + FINISH, *after)
    assert (response.text, response.error, record.outcome) == (text, None, Outcome.COMPLETED)
    assert record.duration_ms == at_s * 1000


async def test_after_the_wait_for_a_client_the_grace_runs_again() -> None:
    """A provider that says nothing more does not keep it for longer."""
    running = Running(ScriptedUpstream(delta("a") + FINISH, Break.WAIT))
    running.response.on_write = _stalling(running.response, 8.0)
    record = await running.ended()
    assert (record.outcome, record.duration_ms, record.stalled_ms) == (Outcome.COMPLETED, 13_000, 8000)


async def test_heartbeats_fill_the_silence_before_and_between_words() -> None:
    """Each is the empty line of the contract; none is a delta, all are bytes; words put them off."""
    words: list[Step] = [delta("a"), 14.0] * 3
    record, response = await relayed(40.0, *words, delta("a"), 40.0, FINISH + STREAM_DONE)
    assert response.written_at == [15, 30, 40, 54, 68, 82, 97, 112, 122]
    heartbeats = [
        at for at, line in zip(response.written_at, response.writes, strict=True) if line == HEARTBEAT_LINE
    ]
    assert heartbeats == [15, 30, 97, 112]
    assert (record.deltas, record.bytes_out, record.status) == (4, len(response.sent), 200)


async def test_limits_that_change_hold_for_open_streams() -> None:
    """All streams share one object, which a reload changes."""
    limits = StreamLimits()
    running = Running(ScriptedUpstream(delta("a"), Break.WAIT), limits)
    assert not running.task.done()
    await asyncio.sleep(10)
    limits.update(StreamLimits(idle_timeout_s=30, heartbeat_s=20))
    assert limits == StreamLimits(idle_timeout_s=30, heartbeat_s=20)
    record = await running.ended()
    assert (record.duration_ms, "fell silent for 30 s" in str(running.response.error)) == (30_000, True)


async def test_an_open_stream_says_where_it_is() -> None:
    """Phase, age and last delta are there while it runs."""
    running = Running(ScriptedUpstream(2.0, delta("a"), Break.WAIT, connect_s=1.0))
    stream, seen = running.stream, list[tuple[Phase, float, float | None, int | None]]()
    for at_s in (0.5, 1.5, 4.0):
        assert not running.task.done()
        await asyncio.sleep(at_s - stream.age_s)
        seen.append((running.record.phase, stream.age_s, stream.last_delta_at, running.record.connect_ms))
    assert seen == [
        (Phase.CONNECTING, 0.5, None, None),
        (Phase.WAITING, 1.5, None, 1000),
        (Phase.STREAMING, 4.0, 3.0, 1000),
    ]
    assert (stream.blocked, stream.stalled_s) == (False, 0)
    stream.stop(ClientGone())
    await running.ended()
