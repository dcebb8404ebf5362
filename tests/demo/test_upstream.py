"""The demo upstream as its users meet it: the real SDK, leaving clients, many clients, its own process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionUserMessageParam

from relayd.demo import DemoUpstream
from relayd.demo.seen import Seen
from tests.support.loop import TestLoop
from tests.support.upstream import ask, chat, payloads, port_of, question, text_of
from tests.wire import HOST, Wire, until

HI: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Grüße, 世界!"}]


@asynccontextmanager
async def sdk(base_url: str, key: str = "demo", retries: int = 0) -> AsyncIterator[AsyncOpenAI]:
    """The provider's own SDK over its default client."""
    async with AsyncOpenAI(api_key=key, base_url=base_url, max_retries=retries, timeout=10) as client:
        yield client


async def test_the_sdk_streams_from_it() -> None:
    """The real SDK reads a stream: text, finish reason and usage."""
    async with DemoUpstream() as upstream, sdk(upstream.base_url) as client:
        stream = await client.chat.completions.create(
            model="demo:interval_ms=1,text=echo",
            messages=HI,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == HI[0]["content"]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (2, 2)


async def test_the_sdk_reads_a_whole_answer_and_the_models() -> None:
    """Without streaming, and for the list of models, the SDK finds what it expects."""
    async with DemoUpstream() as upstream, sdk(upstream.base_url) as client:
        answer = await client.chat.completions.create(model="demo:text=echo", messages=HI)
        models = [model.id async for model in client.models.list()]
    assert answer.choices[0].message.content == HI[0]["content"]
    assert answer.usage is not None
    assert "demo" in models


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("demo:fault=status,code=400", openai.BadRequestError),
        ("demo:fault=status,code=404", openai.NotFoundError),
        ("demo:fault=status,code=429", openai.RateLimitError),
        ("demo:fault=status,code=500", openai.InternalServerError),
        ("demo:fault=cut_headers", openai.APIConnectionError),
        ("demo:interval_ms=0,fault=cut_mid", openai.APIConnectionError),
        ("demo:interval_ms=0,fault=cut_fin", openai.APIConnectionError),
        ("demo:interval_ms=0,fault=error_event", openai.APIError),
        ("demo:nonsense=1", openai.BadRequestError),
    ],
)
async def test_the_sdk_names_the_faults(model: str, error: type[openai.APIError]) -> None:
    """The SDK raises for each fault what it raises for the provider's own."""
    async with DemoUpstream() as upstream, sdk(upstream.base_url) as client:
        with pytest.raises(error):
            async for _ in await client.chat.completions.create(model=model, messages=HI, stream=True):
                pass


async def test_the_sdk_retries_until_it_succeeds() -> None:
    """A fault of the first attempts is overcome by the SDK's own retries."""
    model = "demo:interval_ms=0,text=echo,fault=status,code=503,retry_after=0.01,fail_times=2,id=once"
    async with DemoUpstream() as upstream, sdk(upstream.base_url, retries=2) as client:
        stream = await client.chat.completions.create(model=model, messages=HI, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert upstream.total_requests == 3
    assert text == HI[0]["content"]


async def test_the_sdk_is_refused_with_another_key() -> None:
    """The expected key is the constructor's; any other is an authentication error."""
    async with DemoUpstream("right") as upstream:
        async with sdk(upstream.base_url, "right") as client:
            await client.models.list()
        async with sdk(upstream.base_url, "wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        assert [seen.authorized for seen in upstream.requests] == [True, False]


async def test_requests_are_remembered_without_the_key() -> None:
    """A test can read what arrived: path, headers, body and model, but no key."""
    payload = question("demo:interval_ms=0")
    async with DemoUpstream("the-secret") as upstream:
        await ask(upstream, payload, key="the-secret")
        seen = await upstream.wait_ended(0)
    assert (seen.method, seen.path, seen.model) == ("POST", "/v1/chat/completions", "demo:interval_ms=0")
    assert (seen.body, seen.completed, seen.authorized) == (payload, True, True)
    assert seen.head_at is not None
    assert "the-secret" not in repr(seen)


PHASES = {
    "before headers": ("demo:fault=stall_headers", 0),
    "headers delayed": ("demo:headers_ms=60000", 0),
    "before the first token": ("demo:fault=stall_first", 0),
    "text delayed": ("demo:first_ms=60000", 0),
    "streaming": ("demo:interval_ms=5,deltas=100000", 2),
    "between deltas": ("demo:interval_ms=60000", 1),
    "stalled": ("demo:interval_ms=0,fault=stall_mid", 3),
    "after the finish": ("demo:interval_ms=0,deltas=2,fault=stall_after_finish", 2),
}


def has_sent(seen: Seen, deltas: int) -> bool:
    """Whether the upstream has written so many deltas."""
    return seen.deltas >= deltas


@pytest.mark.parametrize("how", ["finish", "reset"])
@pytest.mark.parametrize("phase", PHASES)
async def test_it_sees_a_client_leave(phase: str, how: str) -> None:
    """In every phase, FIN or RST, the upstream notes the close and its time, though nothing else ends it."""
    model, deltas = PHASES[phase]
    async with DemoUpstream() as upstream:
        for n in range(5):
            async with await Wire.open(port_of(upstream)) as wire:
                wire.send(chat(question(model)))
                seen = await upstream.wait_request(n)
                await until(partial(has_sent, seen, deltas))
                wire.pause()
                left_at = time.monotonic()
                getattr(wire, how)()
                closed_at = (await upstream.wait_closed(n)).closed_by_client_at
            assert closed_at is not None
            assert left_at <= closed_at <= time.monotonic()
            assert (await upstream.wait_ended(n)).completed is False
        assert upstream.open_requests == 0


async def test_a_client_that_leaves_with_its_question_is_seen() -> None:
    """The request and the close may wait in the kernel together: the close is noted all the same."""
    async with DemoUpstream() as upstream:
        for n in range(20):
            with socket.create_connection((HOST, port_of(upstream))) as client:
                client.sendall(chat(question("demo:fault=stall_headers")))
            await upstream.wait_closed(n)


async def test_connections_are_kept_alive() -> None:
    """One connection serves one request after another, also after an error."""
    async with DemoUpstream() as upstream, await Wire.open(port_of(upstream)) as wire:
        for model in ("demo:interval_ms=0,text=words,deltas=1", "demo:fault=status", "demo:interval_ms=0"):
            wire.send(chat(question(model)))
            assert (await wire.reply()).status in {200, 500}
        assert [seen.completed for seen in upstream.requests] == [True, True, True]


async def test_a_client_may_ask_to_close_after_the_answer() -> None:
    """`Connection: close` is honoured, and the answer is whole before."""
    async with DemoUpstream() as upstream, await Wire.open(port_of(upstream)) as wire:
        request = chat(question("demo:interval_ms=0,text=words,deltas=2"))
        wire.send(request.replace(b"Host:", b"Connection: close\r\nHost:", 1))
        reply = await wire.reply()
        assert reply.header("Connection") == "close"
        assert text_of(payloads(reply.body)) == "The relay "
        assert await wire.ended() == b""


async def test_many_streams_at_once_are_all_whole() -> None:
    """Two hundred streams share the loop, and each gets all of its deltas in order."""
    async with DemoUpstream() as upstream:
        body = question("demo:deltas=20,interval_ms=5,text=words")
        replies = await asyncio.gather(*(ask(upstream, body) for _ in range(200)))
    texts = {text_of(payloads(reply.body)) for reply in replies}
    assert len(texts) == 1
    assert next(iter(texts)).count(" ") == 20


async def test_closing_ends_open_streams() -> None:
    """`close` drops streams and idle connections, leaves no task, and takes no new connection."""
    upstream = DemoUpstream()
    upstream.start()
    async with await Wire.open(port_of(upstream)) as wire:
        wire.send(chat(question("demo:fault=stall_mid,interval_ms=0")))
        await upstream.wait_request(0)
        async with await Wire.open(port_of(upstream)) as idle:
            idle.send(chat(question("demo:interval_ms=0")))
            await idle.reply()
            await upstream.close()
            assert upstream.open_requests == 0
            assert await idle.ended() == b""
            await wire.ended()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, port_of(upstream))


async def test_a_bug_in_it_is_loud(io_loop: TestLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unforeseen exception reaches the loop's handler, and the client's connection ends."""

    async def fail(*_: Any) -> None:
        raise LookupError("a bug")

    io_loop.expect_error("demo-request-0 failed.*a bug")
    monkeypatch.setattr("relayd.demo.play.Player.play", fail)
    async with DemoUpstream() as upstream, await Wire.open(port_of(upstream)) as wire:
        wire.send(chat(question("demo")))
        assert await wire.ended() == b""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_it_runs_as_a_process_of_its_own(signum: signal.Signals) -> None:
    """`python -m relayd.demo` says its base URL when ready, serves, and ends with 0 on a signal."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relayd.demo"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "RELAYD_DEMO_KEY": "from-the-environment"},
    )
    try:
        assert process.stdout is not None
        base_url = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
        async with sdk(base_url, "from-the-environment") as client:
            answer = await client.chat.completions.create(model="demo:text=echo", messages=HI)
        assert answer.choices[0].message.content == HI[0]["content"]
        process.send_signal(signum)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
