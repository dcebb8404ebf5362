"""What the demo upstream answers where no stream begins: errors, other kinds of answer, plain JSON."""

from __future__ import annotations

import asyncio
import json

import pytest

from relayd.demo import DemoUpstream
from tests.support.upstream import ask, chat, payloads, port_of, question, text_of
from tests.wire import HOST, Reply


async def answer(model: str, *, stream: bool = True, key: str = "demo") -> Reply:
    """One answer of an upstream of its own."""
    async with DemoUpstream() as upstream:
        return await ask(upstream, question(model, stream=stream), key=key)


def error_of(reply: Reply) -> dict[str, str | None]:
    """The error of a reply in the provider's form."""
    error: dict[str, str | None] = json.loads(reply.body)["error"]
    return error


async def test_a_status_with_all_that_it_can_say() -> None:
    """`fault=status` takes code, message, error code and Retry-After from the script."""
    reply = await answer(
        "demo:fault=status,code=429,retry_after=7,message=slow%20down,error_code=insufficient_quota"
    )
    assert (reply.status, reply.header("Retry-After")) == (429, "7")
    assert (reply.header("x-request-id") or "").startswith("req_")
    assert (error_of(reply)["message"], error_of(reply)["code"]) == ("slow down", "insufficient_quota")


async def test_a_status_is_500_unless_it_says_otherwise() -> None:
    """The plain form is a server error in the provider's words."""
    reply = await answer("demo:fault=status")
    assert (reply.status, error_of(reply)["type"]) == (500, "server_error")


async def test_a_redirect_leads_back_here() -> None:
    """A client that follows it shows in the list of requests."""
    async with DemoUpstream() as upstream:
        reply = await ask(upstream, question("demo:fault=redirect"))
        assert reply.status == 307
        assert reply.header("Location") == f"http://{HOST}:{port_of(upstream)}/redirected"


async def test_html_and_garbage_are_no_streams() -> None:
    """A captive portal's page, and bytes that mean nothing under a stream's name."""
    html, garbage = await answer("demo:fault=html"), await answer("demo:fault=garbage")
    assert (html.status, html.header("Content-Type")) == (200, "text/html; charset=utf-8")
    assert (garbage.status, garbage.header("Content-Type")) == (200, "text/event-stream; charset=utf-8")
    assert html.body.startswith(b"<!doctype html>")
    assert len(garbage.body) == 4096
    assert b"data:" not in garbage.body


async def test_an_error_may_echo_the_key() -> None:
    """`echo_key` shows the whole Authorization header, as careless providers do."""
    reply = await answer("demo:fault=echo_key,code=400")
    assert reply.status == 400
    assert "Bearer demo" in (error_of(reply)["message"] or "")


async def test_a_huge_error_body() -> None:
    """The error's message has `size` bytes."""
    reply = await answer("demo:fault=huge_error_body,size=2000000,code=503")
    assert reply.status == 503
    assert len(error_of(reply)["message"] or "") == 2_000_000


async def test_a_cut_before_headers_is_a_reset() -> None:
    """Not one byte is answered, and the connection is reset."""
    async with DemoUpstream() as upstream:
        reader, writer = await asyncio.open_connection(HOST, port_of(upstream))
        writer.write(chat(question("demo:fault=cut_headers")))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 30)
        writer.transport.abort()


@pytest.mark.parametrize("key", ["wrong-key-of-somebody", "", "démo"])
async def test_another_key_gets_401(key: str) -> None:
    """A wrong key is refused in the provider's form, and only a masked form of it is shown."""
    reply = await answer("demo", key=key)
    assert reply.status == 401
    assert error_of(reply)["code"] == "invalid_api_key"
    assert "key-of-some" not in (error_of(reply)["message"] or "")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"not json", "could not parse"),
        (b"{}", "missing required field `model`"),
        (b'{"model":"demo","messages":[]}', "empty array"),
        (b'{"model":"demo","messages":[{"role":3}]}', "Expected `str`"),
        (question("demo:detlas=3"), "unknown key 'detlas'"),
        (question("demo:fault=cut_mid", stream=False), "cut_mid needs stream=true"),
    ],
)
async def test_a_bad_request_gets_400_and_a_reason(body: bytes, said: str) -> None:
    """What can't be read, or asked for, is refused with a sentence."""
    async with DemoUpstream() as upstream:
        reply = await ask(upstream, body)
    assert reply.status == 400
    assert error_of(reply)["type"] == "invalid_request_error"
    assert said in (error_of(reply)["message"] or "")


async def test_the_header_wins_over_the_model() -> None:
    """`X-Demo` has the same syntax, with or without the name, and is as strict."""
    async with DemoUpstream() as upstream:
        for header in ("demo:text=words,deltas=2,interval_ms=0", "text=words,deltas=2,interval_ms=0"):
            reply = await ask(upstream, question("gpt-4o-mini"), demo=header)
            chunks = payloads(reply.body)
            assert (text_of(chunks), chunks[0]["model"]) == ("The relay ", "gpt-4o-mini")
        assert (await ask(upstream, question("demo"), demo="nonsense")).status == 400


async def test_first_attempts_fail_and_later_ones_succeed() -> None:
    """`fail_times` counts attempts for each `id`, apart from others."""
    async with DemoUpstream() as upstream:

        async def status(id_: str) -> int:
            model = f"demo:interval_ms=0,fault=status,code=503,fail_times=2,id={id_}"
            return (await ask(upstream, question(model))).status

        assert [await status(id_) for id_ in ("a", "a", "b", "a", "b", "b")] == [503, 503, 503, 200, 503, 200]


@pytest.mark.parametrize("refusal", [False, True])
async def test_an_answer_without_streaming(*, refusal: bool) -> None:
    """Without `stream` the whole answer is one JSON document, with its usage."""
    reply = await answer(f"demo:text=words,deltas=2,refusal={refusal:d},finish=length", stream=False)
    found = json.loads(reply.body)
    message = found["choices"][0]["message"]
    assert found["object"] == "chat.completion"
    assert message["refusal" if refusal else "content"] == "The relay "
    assert message["content" if refusal else "refusal"] is None
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"] | {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3} == found["usage"]


async def test_other_paths_are_not_there() -> None:
    """Any other path answers 404 in the provider's form, once the key is right."""
    async with DemoUpstream() as upstream:
        request = chat(question("demo")).replace(b"/v1/chat/completions", b"/v1/embeddings", 1)
        reader, writer = await asyncio.open_connection(HOST, port_of(upstream))
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        writer.transport.abort()
    assert b" 404 " in head
