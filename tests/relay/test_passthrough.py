# ruff: noqa: FBT001 - hypothesis and pytest give booleans
"""The answers of `/v1`: the provider's bytes unchanged, and ends that the SDKs take for what they are."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.openai_streams import (
    ChatStream,
    EventStreamAnswer,
    Observation,
    OtherStream,
    ResponsesStream,
)
from relayd.relay.redact import Redactor
from relayd.relay.stream import RelayStream, StreamLimits
from relayd.relay.upstream import OnConnected
from relayd.relay.usage import TokenCounts
from relayd.state.records import RequestRecord
from tests.relay.harness import cut

_DONE = b"data: [DONE]\n\n"
_KEY = "sk-the-providers-key"
_USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
_COUNTS = TokenCounts(7, 2)


def _event(value: object, *, end: str = "\n", before: str = "") -> bytes:
    return f"{before}data: {json.dumps(value)}{end}{end}".encode()


def _chunk(text: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **more,
    }


_USAGE_CHUNK = _event({"object": "chat.completion.chunk", "choices": [], "usage": _USAGE})
_ENDS = st.sampled_from(["\n", "\r\n", "\r"])
_BEFORE = st.sampled_from(["", ": comment\n", "id: 5\n", "event: message\n", "retry: 3\n", ":\n\n"])
_TEXT_EVENTS = st.lists(
    st.builds(
        lambda text, end, before: _event(_chunk(text), end=end, before=before),
        st.text(min_size=1, max_size=5),
        _ENDS,
        _BEFORE,
    ),
    max_size=5,
).map(b"".join)
_CUTS = st.lists(st.integers(0, 3000), max_size=10)


def _answer(kind: type[EventStreamAnswer] = ChatStream, *, strips_usage: bool = False) -> EventStreamAnswer:
    wants = Observation(strips_usage=strips_usage, on_head=lambda _head: None)
    return kind(Redactor(_KEY), wants, None)


def _relayed(
    answer: EventStreamAnswer, pieces: Iterable[bytes], *, is_broken: bool = False
) -> tuple[bytes, RelayError | None]:
    """Return what the client is sent, and the error if there is one."""
    sent = b""
    for piece in pieces:
        sent += answer.relay(piece)
        if answer.done or answer.error is not None:
            break
    error = answer.end(is_broken=is_broken)
    return sent + answer.last_bytes(error), error


def _decoded(data: bytes) -> list[str]:
    """Return the data of every event, as openai-python decodes it."""
    return [event.data for event in SSEDecoder().iter_bytes(iter([data]))]


def _responses(*events: tuple[str, dict[str, Any]]) -> bytes:
    return b"".join(
        f"event: {kind}\n".encode() + _event({"type": kind, "sequence_number": number, **fields})
        for number, (kind, fields) in enumerate(events)
    )


_CREATED = (
    "response.created",
    {"response": {"id": "resp_1", "created_at": 5, "model": "m", "status": "in_progress"}},
)
_DELTA = ("response.output_text.delta", {"delta": "hi"})
_COMPLETED = (
    "response.completed",
    {"response": {"id": "resp_1", "status": "completed", "usage": {"input_tokens": 7, "output_tokens": 2}}},
)


@given(_TEXT_EVENTS, st.booleans(), st.booleans(), _CUTS)
def test_a_whole_chat_stream_passes_byte_by_byte(
    texts: bytes,
    has_usage: bool,
    has_done: bool,
    cuts: list[int],
) -> None:
    """Whatever the events look like, and however they are split."""
    stream = texts + _event(_chunk(finish="stop")) + has_usage * _USAGE_CHUNK + has_done * _DONE
    answer = _answer()
    assert _relayed(answer, cut(stream, cuts)) == (stream, None)
    assert answer.finish_reason == "stop"
    assert answer.tokens == (_COUNTS if has_usage else None)
    assert answer.deltas == texts.count(b'"content"')


@given(_TEXT_EVENTS, st.booleans(), _CUTS)
def test_only_the_chunk_that_was_asked_for_is_taken_out(
    texts: bytes,
    has_done: bool,
    cuts: list[int],
) -> None:
    """Its usage is known all the same, and no part of it leaves at any split."""
    finish, done = _event(_chunk(finish="stop")), has_done * _DONE
    answer = _answer(strips_usage=True)
    sent, error = _relayed(answer, cut(texts + finish + _USAGE_CHUNK + done, cuts))
    assert (sent, error, answer.tokens) == (texts + finish + done, None, _COUNTS)


@pytest.mark.parametrize("strips_usage", [True, False])
def test_a_complete_event_leaves_at_once(strips_usage: bool) -> None:
    """An incomplete one too, unless a chunk is to be taken out."""
    answer = _answer(strips_usage=strips_usage)
    whole, start = _event(_chunk("a")), b'data: {"choices":[{"index'
    assert answer.relay(whole + start) == whole + (b"" if strips_usage else start)
    assert answer.relay(b'":0}]}\n\n') == (start if strips_usage else b"") + b'":0}]}\n\n'


def test_an_empty_choices_list_with_a_null_usage_is_not_the_usage_chunk() -> None:
    """Azure begins with its judgement of the prompt in such a chunk."""
    first = _event({"choices": [], "usage": None, "prompt_filter_results": []})
    assert _answer(strips_usage=True).relay(first) == first


@given(_TEXT_EVENTS, st.integers(0, 10_000), _CUTS, st.booleans(), st.booleans())
def test_a_chat_stream_that_is_cut_ends_with_an_error_and_no_done(
    texts: bytes,
    kept: int,
    cuts: list[int],
    is_broken: bool,
    strips_usage: bool,
) -> None:
    """Wherever it is cut. What it ends with is what the SDKs raise on, and no empty event comes before it."""
    stream = _event(_chunk("word")) + texts
    assume(all(_decoded(stream)))
    stream = stream[: kept % (len(stream) + 1)]
    sent, error = _relayed(_answer(strips_usage=strips_usage), cut(stream, cuts), is_broken=is_broken)
    assert error is not None
    assert error.code is (ErrorCode.UPSTREAM_FAILED if is_broken else ErrorCode.UPSTREAM_TRUNCATED)
    data = _decoded(sent)
    told = json.loads(data[-1])["error"]
    assert (told["message"], told["code"]) == (error.message, error.code)
    assert isinstance(told["message"], str)
    assert all(data)
    if strips_usage:
        assert all("choices" in json.loads(one) for one in data[:-1]), "no half event is sent"


@given(st.sampled_from([b"", _event(_chunk("a"))]), _CUTS, st.booleans())
def test_a_done_without_a_finish_does_not_leave(start: bytes, cuts: list[int], has_space: bool) -> None:
    """Its client would take the answer for whole."""
    done = _DONE if has_space else _DONE.replace(b" ", b"")
    sent, error = _relayed(_answer(), cut(start + done, cuts))
    assert error is not None
    assert error.code is ErrorCode.UPSTREAM_TRUNCATED
    assert b"DONE" not in sent
    assert "error" in json.loads(_decoded(sent)[-1])


@given(
    st.sampled_from([b"id: 5\n", b"event: done\r\n", b"retry: 3\r", b": c\n"]),
    st.sampled_from([_DONE, b"data:[DONE]\r\n\r\n", b"data:  [DONE] \n\n"]),
    _CUTS,
)
def test_a_done_behind_other_lines_does_not_leave_either(before: bytes, done: bytes, cuts: list[int]) -> None:
    """At no split: what follows it would not be read any more."""
    sent, error = _relayed(_answer(), cut(_event(_chunk("a")) + before + done, cuts))
    assert error is not None
    assert b"DONE" not in sent
    assert "error" in json.loads(_decoded(sent)[-1])


@pytest.mark.parametrize("usage_only", [{}, {"choices": None}])
def test_a_usage_chunk_without_choices_is_taken_out_too(usage_only: dict[str, Any]) -> None:
    """Some providers leave the empty list out; what indexes `choices` fails there as well."""
    answer = _answer(strips_usage=True)
    finish = _event(_chunk("a", "stop"))
    assert _relayed(answer, [finish, _event({**usage_only, "usage": _USAGE}), _DONE]) == (
        finish + _DONE,
        None,
    )
    assert answer.tokens == _COUNTS


@given(
    st.sampled_from(
        [
            (ChatStream, _event({"error": {"message": f"No: {_KEY}"}})),
            (ChatStream, _event({"error": f"No: {_KEY}"}, before="event: error\n")),
            (ChatStream, _event(_chunk("a", "stop")) + _event({"error": f"No: {_KEY}"})),
            (ChatStream, b'{"error":{"message":"No: %b"}}\n\n' % _KEY.encode()),
            (ResponsesStream, _responses(("error", {"message": f"No: {_KEY}", "code": None}))),
            (ResponsesStream, _responses(("error", {"error": {"message": f"No: {_KEY}"}}))),
            (
                ResponsesStream,
                _responses(("response.failed", {"response": {"error": {"message": f"No: {_KEY}"}}})),
            ),
            (OtherStream, _event({"type": "error", "error": {"message": f"No: {_KEY}"}})),
        ]
    ),
    _CUTS,
)
def test_no_error_in_a_stream_shows_the_providers_key(
    told: tuple[type[EventStreamAnswer], bytes], cuts: list[int]
) -> None:
    """Wherever it is split; all else of the event passes as it is."""
    kind, stream = told
    sent, _ = _relayed(_answer(kind), cut(stream, cuts))
    assert sent.startswith(stream.replace(_KEY.encode(), b"[key]"))
    assert _KEY.encode() not in sent


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_an_error_without_data_before_it_is_the_reason_of_the_end(end: bytes) -> None:
    """No SDK reads it where it stands, so the error event tells it."""
    sent, error = _relayed(_answer(), [_event(_chunk("a")), b'{"error":{"message":"Overloaded"}}' + end])
    assert error is not None
    assert error.message.endswith("Overloaded")
    assert json.loads(_decoded(sent)[-1])["error"]["message"].endswith("Overloaded")


@given(_CUTS)
def test_an_error_of_the_provider_passes_as_it_is(cuts: list[int]) -> None:
    """Nothing follows it: neither another error nor `[DONE]`."""
    told = _event({"error": {"message": "Overloaded", "type": "server_error", "code": None}})
    start = _event(_chunk("a"))
    sent, error = _relayed(_answer(), cut(start + told + _DONE, cuts))
    assert error is not None
    assert sent == start + told
    assert error.message.endswith("Overloaded")


@pytest.mark.parametrize(
    "event",
    [
        _event(_chunk("a", error={"message": "x"})).replace(
            b'"error": {"message": "x"}', b'"x": {"error": {"message": "Overloaded"}}'
        ),
        b'event: error\ndata: {"message":"Overloaded"}\n\n',
        b'data: {"choices": [{"delta\n\n',
        _event(_chunk(finish="error")),
    ],
)
def test_an_error_that_no_sdk_would_see_is_told_as_one(event: bytes) -> None:
    """The event stays here, and one takes its place on which they raise."""
    sent, error = _relayed(_answer(), [_event(_chunk("a")), event, _DONE])
    assert error is not None
    assert json.loads(_decoded(sent)[-1])["error"]["code"] == "upstream_failed"
    assert len(_decoded(sent)) == 2


def test_what_follows_a_finish_spoils_nothing() -> None:
    """As on /chat: the answer is whole."""
    stream = _event(_chunk("a", "stop")) + _event({"error": {"message": "late"}}) + _DONE
    assert _relayed(_answer(), [stream]) == (stream, None)


def test_tool_calls_reasoning_and_old_completions_count_as_pieces() -> None:
    """A chunk that only opens or ends the answer does not."""
    answer = _answer()
    for choice in (
        {"delta": {"role": "assistant", "content": ""}},
        {"delta": {"tool_calls": [{"index": 0}]}},
        {"delta": {"reasoning_content": "hm"}},
        {"text": "old"},
        {"delta": {"content": [{"type": "text", "text": "parts"}]}},
        {"delta": {}, "finish_reason": "tool_calls"},
    ):
        answer.relay(_event({"choices": [choice]}))
    assert (answer.deltas, answer.finished, answer.finish_reason) == (4, True, "tool_calls")


def test_an_answer_of_several_choices_is_whole_when_each_has_its_finish() -> None:
    """However they are mixed; a choice that is open makes it an answer that broke off."""

    def part(index: int, text: str | None = None, finish: str | None = None) -> bytes:
        delta = {} if text is None else {"content": text}
        return _event({"choices": [{"index": index, "delta": delta, "finish_reason": finish}]})

    start = part(0, "a") + part(1, "b") + part(0, finish="stop")
    answer = _answer()
    answer.relay(start)
    assert not answer.finished
    assert answer.relay(part(1, finish="length")) == part(1, finish="length")
    assert (answer.finished, answer.finish_reason) == (True, "length")
    sent, error = _relayed(_answer(), [start, _DONE])
    assert error is not None
    assert b"DONE" not in sent


@given(_CUTS)
def test_a_whole_responses_stream_passes_byte_by_byte(cuts: list[int]) -> None:
    """It has all that its client waits for when the response is complete, whatever follows."""
    stream = _responses(_CREATED, _DELTA, _DELTA, _COMPLETED)
    created: list[tuple[str, str | None]] = []
    wants = Observation(on_head=lambda _head: None, on_created=lambda *made: created.append(made))
    answer = ResponsesStream(Redactor(""), wants, "route")
    assert _relayed(answer, cut(stream, cuts)) == (stream, None)
    assert (answer.deltas, answer.tokens, answer.finish_reason) == (2, _COUNTS, "completed")
    assert answer.delivered
    assert created == [("resp_1", "route")]


@pytest.mark.parametrize(
    ("response", "reason"),
    [({"incomplete_details": {"reason": "max_output_tokens"}}, "max_output_tokens"), ({}, "incomplete")],
)
def test_an_incomplete_response_is_an_end(response: dict[str, Any], reason: str) -> None:
    """Its reason is recorded."""
    answer = _answer(ResponsesStream)
    stream = _responses(_CREATED, ("response.incomplete", {"response": response}))
    assert _relayed(answer, [stream]) == (stream, None)
    assert answer.finish_reason == reason


@given(st.integers(0, 10_000), _CUTS, st.booleans())
def test_a_responses_stream_that_is_cut_fails_for_every_client(
    kept: int, cuts: list[int], is_broken: bool
) -> None:
    """Python looks for `error` at the top, Codex at the response of `response.failed`."""
    stream = _responses(_CREATED, _DELTA, _DELTA)
    stream = stream[: kept % (len(stream) + 1)]
    sent, error = _relayed(_answer(ResponsesStream), cut(stream, cuts), is_broken=is_broken)
    assert error is not None
    last = list(SSEDecoder().iter_bytes(iter([sent])))[-1]
    failed = json.loads(last.data)
    assert (last.event, failed["type"], failed["response"]["status"]) == (
        "response.failed",
        "response.failed",
        "failed",
    )
    assert failed["error"]["message"] == failed["response"]["error"]["message"] == error.message
    assert failed["error"]["code"] == failed["response"]["error"]["code"] == error.code
    if "response.output_text" in sent.decode():
        assert failed["response"]["id"] == "resp_1"
        assert failed["sequence_number"] >= 1


@pytest.mark.parametrize(
    ("event", "is_told"),
    [
        (
            (
                "response.failed",
                {"response": {"status": "failed", "error": {"code": "x", "message": "Overloaded"}}},
            ),
            True,
        ),
        (("error", {"error": {"message": "Overloaded"}}), True),
        (("error", {"message": "Overloaded", "code": "x"}), False),
    ],
)
def test_a_failure_in_a_responses_stream_passes_as_it_is(
    event: tuple[str, dict[str, Any]], is_told: bool
) -> None:
    """Only where openai-python would not raise, a failed response follows."""
    stream = _responses(_CREATED, event)
    sent, error = _relayed(_answer(ResponsesStream), [stream, _DONE])
    assert error is not None
    assert error.message.endswith("Overloaded")
    assert sent.startswith(stream)
    assert (sent == stream) is is_told


def test_the_usage_of_a_response_with_an_image_is_read_without_keeping_it() -> None:
    """Its last event is as long as the image; it passes in pieces, and little of it is held."""
    image = {"type": "image_generation_call", "result": "A" * 3_000_000, "usage": {"input_tokens": 1}}
    response = {
        "id": "resp_1",
        "output": [image],
        "status": "completed",
        "usage": {"input_tokens": 7, "output_tokens": 2},
    }
    stream = _responses(_CREATED, ("response.completed", {"response": response}))
    answer = _answer(ResponsesStream)
    pieces = [stream[at : at + 16384] for at in range(0, len(stream), 16384)]
    assert _relayed(answer, pieces) == (stream, None)
    assert (answer.tokens, answer.finish_reason) == (_COUNTS, "completed")


@pytest.mark.parametrize(
    "start", [b'data: {"choices":[{"index":0,"delta":{"content":"', b'data: {"error":{"message":"']
)
def test_an_endless_event_is_held_back_and_kept_only_so_far(start: bytes) -> None:
    """Its client is sent the rest as it comes, and at last an error; little memory is needed meanwhile."""
    answer, piece = _answer(strips_usage=True), b"x" * 65_536
    begun = start + 5 * piece
    assert b"".join(map(answer.relay, (start, *5 * [piece]))) == begun
    tracemalloc.start()
    try:
        for _ in range(32):
            assert answer.relay(piece) == piece
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
    error = answer.end(is_broken=True)
    assert error is not None
    data = _decoded(begun + answer.last_bytes(error))
    assert data[:-1] == [begun.removeprefix(b"data: ").decode()]
    assert json.loads(data[-1])["error"]["code"] == "upstream_failed"


@pytest.mark.parametrize("strips_usage", [True, False])
def test_a_chunk_with_all_of_an_answer_may_be_long(strips_usage: bool) -> None:
    """Its finish and its usage are read, and the chunk behind it is still taken out."""
    whole = _event(_chunk("A" * 1_000_000, "stop", usage={"prompt_tokens": 1, "completion_tokens": 1}))
    stream = whole + strips_usage * _USAGE_CHUNK + _DONE
    answer = _answer(strips_usage=strips_usage)
    pieces = [stream[at : at + 16384] for at in range(0, len(stream), 16384)]
    assert _relayed(answer, pieces) == (whole + _DONE, None)
    assert (answer.finish_reason, answer.deltas) == ("stop", 1)
    assert answer.tokens == (_COUNTS if strips_usage else TokenCounts(1, 1))


def test_the_usage_beside_a_streamed_image_is_read() -> None:
    """The event is as long as the image."""
    stream = _event({"b64_json": "A" * 1_000_000, "usage": {"input_tokens": 7, "output_tokens": 2}})
    answer = _answer(OtherStream)
    pieces = [stream[at : at + 16384] for at in range(0, len(stream), 16384)]
    assert _relayed(answer, pieces) == (stream, None)
    assert (answer.tokens, answer.deltas) == (_COUNTS, 1)


def test_other_streams_end_with_their_body() -> None:
    """Their usage is read; a body that is cut is an error, unless `[DONE]` came before."""
    stream = _event({"type": "transcript.text.delta", "delta": "hi"}) + _event(
        {"type": "transcript.text.done", "usage": {"input_tokens": 7, "output_tokens": 2}}
    )
    answer = _answer(OtherStream)
    assert _relayed(answer, [stream]) == (stream, None)
    assert answer.tokens == _COUNTS
    assert _relayed(_answer(OtherStream), [stream + _DONE], is_broken=True) == (stream + _DONE, None)
    sent, error = _relayed(_answer(OtherStream), [stream[:-10]], is_broken=True)
    assert error is not None
    assert sent.startswith(stream[:-10] + b"\n\n" + b'data: {"error":')


def _with_heartbeats(answer: EventStreamAnswer, pieces: list[bytes]) -> Iterator[bytes]:
    yield answer.heartbeat()
    for piece in pieces:
        yield answer.relay(piece)
        yield answer.heartbeat()


@given(_TEXT_EVENTS, _CUTS, st.booleans())
def test_heartbeats_change_no_event(texts: bytes, cuts: list[int], strips_usage: bool) -> None:
    """Between any two reads, behind an `id:` and inside an event, where there is none."""
    stream = texts + _event(_chunk(finish="stop"), before="id: 9\n")
    sent = b"".join(_with_heartbeats(_answer(strips_usage=strips_usage), cut(stream, cuts)))
    assert sent.startswith(b":")
    assert _decoded(sent) == _decoded(stream)


class _Lagging(ResponsesStream):
    """An answer whose last read comes when a heartbeat is due, and the loop has had no time to send it."""

    def __init__(self, *reads: bytes, lag_s: float) -> None:
        super().__init__(Redactor(_KEY), Observation(on_head=lambda _head: None), None)
        self._reads, self._lag_s = reads, lag_s

    async def open(self, on_connected: OnConnected) -> tuple[str | None, _Lagging, _Lagging]:
        """Be the answer and its body."""
        on_connected(None)
        return None, self, self

    def start(self, on_chunk: Callable[[bytes], None], on_end: Callable[[Exception | None], None]) -> None:
        """Give all reads in one turn of the loop."""
        for read in self._reads:
            time.sleep(self._lag_s)
            on_chunk(read)
        on_end(None)

    def pause_reading(self) -> None:
        """Do nothing: all was given."""

    def resume_reading(self) -> None:
        """Do nothing."""

    def close(self, linger_s: float = 0.0) -> None:
        """Do nothing."""


class _Client:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.sent = b""
        self.status: int | None = None
        self.stalled_s = 0.0
        self.blocked = False

    def send(self, data: bytes) -> None:
        """Keep it."""
        self.sent += data

    async def drain(self) -> None:
        """Wait for nothing."""

    async def end(self, data: bytes, error: RelayError | None) -> None:
        """Keep the last of it."""
        assert error is None
        self.sent += data


async def test_a_heartbeat_that_is_due_does_not_cut_the_last_events() -> None:
    """The end of an event and the finish come in one read, while the loop is late with a heartbeat."""
    stream = _responses(_CREATED, _DELTA, _COMPLETED)
    middle = stream.index(b"hi")
    client = _Client()
    answer = _Lagging(stream[:middle], stream[middle:], lag_s=0.02)
    record = RequestRecord(id="r", boot_id="b", started_at="2026-01-01T00:00:00.000Z")
    await RelayStream(record, answer, writer=client, limits=StreamLimits(heartbeat_s=0.01)).run()
    assert client.sent.startswith(stream)
