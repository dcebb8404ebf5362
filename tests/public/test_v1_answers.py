"""Answers of providers that are not OpenAI: odd types, refusals that look like answers, nothing at all."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from relayd.state.records import Outcome, UsageSource
from tests.harness import PROVIDER_KEY, Relay, running_relay
from tests.public.test_uploads import form, upload
from tests.public.test_v1 import ask_v1, chat, error_of, get_v1
from tests.wire import HOST

_EVENTS = b"".join(
    b"data: %b\n\n" % data
    for data in (
        b'{"choices":[{"index":0,"delta":{"content":"hi"}}]}',
        b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
        b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}',
        b"[DONE]",
    )
)
_SAID = json.dumps({"error": {"message": f"Bad: {PROVIDER_KEY}", "code": "x"}}).encode()


@asynccontextmanager
async def relay_before(answer: bytes, toml: str = "") -> AsyncIterator[Relay]:
    """Run a daemon whose provider answers every request with these bytes and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(0 if length is None else int(length[1]))
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, HOST, 0) as server:
        base_url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}/v1"
        async with running_relay(upstream_url=lambda _upstream: base_url, toml=toml) as relay:
            yield relay


def _answer(body: bytes, content_type: str | None = None, status: str = "200 OK", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}"
    if content_type is not None:
        head += f"Content-Type: {content_type}\r\n"
    return head.encode() + b"\r\n" + body


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/octet-stream", "application/json"])
async def test_a_stream_of_the_wrong_type_is_a_stream(content_type: str | None) -> None:
    """The SDKs do not look at the type: the usage is taken out and recorded."""
    async with relay_before(_answer(_EVENTS, content_type)) as relay:
        reply = await ask_v1(relay, chat(stream=True))
        record = await relay.record()
    assert (reply.status, b"[DONE]" in reply.body, b"usage" in reply.body) == (200, True, False)
    assert (record.outcome, record.completion_tokens) == (Outcome.COMPLETED, 2)


@pytest.mark.parametrize(
    "answer",
    [
        _answer(b'{"id":"x","choices":[]}', "application/json"),
        _answer(b"<html>Welcome</html>", "text/html"),
        _answer(b"", "application/json"),
        _answer(_EVENTS[:60], "text/plain"),
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
)
async def test_what_is_no_stream_does_not_pass_for_one(answer: bytes) -> None:
    """The SDKs would make an empty answer of it, and raise nothing."""
    async with relay_before(answer) as relay:
        reply = await ask_v1(relay, chat(stream=True))
        record = await relay.record()
    told = reply.body.removeprefix(_EVENTS[: reply.body.find(b'data: {"error')])
    assert b'"error":{"message":' in told
    assert reply.status == (200 if told.startswith(b"data:") else 502)
    assert record.outcome is Outcome.UPSTREAM_ERROR


async def test_an_event_that_does_not_end_is_held_back_only_so_far() -> None:
    """Usage would be taken out of it, but an event may be endless: it passes, and ends with an error."""
    start = _EVENTS[: _EVENTS.index(b"data", 1)] + b'data: {"choices":[{"index":0,"delta":{"content":"'
    endless = start + b"x" * 1_000_000
    async with relay_before(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + endless) as relay:
        reply = await ask_v1(relay, chat(stream=True))
        record = await relay.record()
    assert reply.body.startswith(endless)
    last = reply.body[len(endless) :]
    assert last.startswith(b'\n\ndata: {"error":')
    assert b'"code":"upstream_truncated"' in last
    assert record.outcome is Outcome.UPSTREAM_ERROR


@pytest.mark.parametrize(("stream", "tokens"), [("true", 2), ("True", 2), ("false", 20), (None, 20)])
async def test_a_text_from_speech_without_usage_is_estimated(stream: str | None, tokens: int) -> None:
    """A stream by its pieces, one body by its bytes; the field `stream` of the upload says which."""
    if tokens == 2:
        answer = _answer(2 * b'data: {"type":"transcript.text.delta","delta":"hi"}\n\n', "text/event-stream")
    else:
        answer = _answer(json.dumps({"text": "x" * 68}).encode(), "application/json")
    asked: list[tuple[str, str | bytes]] = [] if stream is None else [("stream", stream)]
    async with relay_before(answer) as relay:
        assert (await upload(relay, form(("model", "demo"), *asked, ("file", b"x")))).status == 200
        record = await relay.record()
    assert (record.completion_tokens, record.usage_source) == (tokens, UsageSource.ESTIMATE)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_with_status_200_is_one(stream: bool) -> None:  # noqa: FBT001 - pytest gives it
    """In the provider's words, without its key."""
    async with relay_before(_answer(_SAID, "application/json")) as relay:
        reply = await ask_v1(relay, chat(stream=stream))
        record = await relay.record()
    assert (reply.status, reply.body) == (502, _SAID.replace(PROVIDER_KEY.encode(), b"[key]"))
    assert (record.outcome, record.status) == (Outcome.UPSTREAM_ERROR, 502)


@pytest.mark.parametrize(
    "answer",
    [
        _answer(b"", status="429 Too Many Requests", more="Retry-After: 7\r\n"),
        _answer(b"\x1f\x8bxx", "text/plain", "429 No", "Content-Encoding: gzip\r\nRetry-After: 7\r\n"),
        _answer(b"x" * (65536 - 9) + PROVIDER_KEY.encode(), status="429 No", more="Retry-After: 7\r\n"),
    ],
)
async def test_a_refusal_that_cannot_be_passed_on_is_told_in_openais_shape(answer: bytes) -> None:
    """It is empty, compressed, or so long that it was cut, perhaps inside the key."""
    async with relay_before(answer) as relay:
        reply = await ask_v1(relay, chat())
    assert (reply.status, reply.header("Retry-After")) == (429, "7")
    assert reply.header("Content-Encoding") is None
    assert error_of(reply)["code"] == "upstream_limited"
    assert PROVIDER_KEY.encode()[:9] not in reply.body


async def test_an_answer_without_a_body_has_none() -> None:
    """204 has neither a body nor a length."""
    async with relay_before(b"HTTP/1.1 204 No Content\r\n\r\n") as relay:
        reply = await ask_v1(relay, chat())
        record = await relay.record()
    assert (reply.status, reply.body, reply.header("Content-Length")) == (204, b"", None)
    assert record.outcome is Outcome.COMPLETED


async def test_a_refusal_of_no_type_is_no_page() -> None:
    """No browser shows it as one."""
    async with relay_before(_answer(b"<b>no</b>", status="400 Bad Request")) as relay:
        reply = await ask_v1(relay, chat())
    assert (reply.status, reply.body) == (400, b"<b>no</b>")
    assert reply.header("Content-Type") == "application/json; charset=utf-8"


@pytest.mark.parametrize("entries", ["[%s]", '{"data":[%s]}'])
async def test_models_are_listed_by_what_they_lead_to(entries: str) -> None:
    """Some providers give the bare list. An alias is shown if its model may be used."""
    toml = '[chat]\nallowed_models = ["a", "shadow"]\n[aliases]\nfast = "a"\nshadow = "b"\n'
    body = entries % ",".join(json.dumps({"id": name}) for name in ("a", "b", "shadow"))
    async with relay_before(_answer(body.encode(), "application/json"), toml) as relay:
        reply = await get_v1(relay, "/v1/models")
    listed = json.loads(reply.body)
    assert (listed["object"], [entry["id"] for entry in listed["data"]]) == ("list", ["a", "fast"])


@pytest.mark.parametrize(
    ("said", "told"), [(b'{"id":"m"}', b'{"id":"fast"}'), (b"[1]", b"[1]"), (b"<html>", b"<html>")]
)
async def test_a_model_that_is_asked_for_by_its_alias_has_that_name(said: bytes, told: bytes) -> None:
    """What is no description of a model passes as it is."""
    async with relay_before(_answer(said, "text/html"), '[aliases]\nfast = "m"\n') as relay:
        reply = await get_v1(relay, "/v1/models/fast")
    assert (reply.status, reply.body) == (200, told)


async def test_what_is_no_list_of_models_is_an_error() -> None:
    """An empty list would say that the connection works."""
    async with relay_before(_answer(b"<html>Welcome</html>", "text/html")) as relay:
        reply = await get_v1(relay, "/v1/models")
    assert (reply.status, error_of(reply)["code"]) == (502, "upstream_failed")


@pytest.mark.parametrize(
    "conversation", ['{"id":"a","id":"b"}', '{"id":"a","ID":"b"}', '{"ID":"a"}', "{}", "1", '{"id":null}']
)
async def test_a_conversation_has_one_id(conversation: str) -> None:
    """Which of two the provider reads is not known, so that it could be another client's."""
    body = f'{{"model":"m","input":"x","conversation":{conversation}}}'.encode()
    async with running_relay() as relay:
        reply = await ask_v1(relay, body, "/v1/responses")
        assert relay.upstream.requests == []
    assert (reply.status, error_of(reply)["code"]) == (400, "bad_request")


async def test_a_method_that_does_not_exist_is_refused_in_openais_shape() -> None:
    """As every error of these paths."""
    async with running_relay() as relay:
        reply = await get_v1(relay, "/v1/models", method="TRACE")
    assert (reply.status, error_of(reply)["code"]) == (405, "method_not_allowed")


async def test_no_header_shows_the_providers_key() -> None:
    """Not those that pass either."""
    more = f"openai-version: {PROVIDER_KEY}\r\nRetry-After: 7\r\n"
    for status in ("200 OK", "429 Too Many Requests"):
        answer = _answer(b"{}", f"application/json; key={PROVIDER_KEY}", status, more)
        async with relay_before(answer) as relay:
            reply = await ask_v1(relay, chat())
        assert reply.header("openai-version") == "[key]"
        assert PROVIDER_KEY not in str(reply.headers)
