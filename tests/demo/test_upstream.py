"""The offline upstream of `relayd serve --demo`, as the provider's own SDK meets it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionUserMessageParam

from relayd.demo.upstream import DemoUpstream

_KEY = "key-of-the-demo-upstream"


@asynccontextmanager
async def _sdk(key: str = _KEY) -> AsyncIterator[AsyncOpenAI]:
    upstream = DemoUpstream(_KEY)
    upstream.start()
    try:
        async with AsyncOpenAI(api_key=key, base_url=upstream.base_url, max_retries=0, timeout=30) as client:
            yield client
    finally:
        await upstream.close()


async def _stream(
    client: AsyncOpenAI, message: str, model: str = "demo"
) -> openai.AsyncStream[ChatCompletionChunk]:
    messages: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": message}]
    return await client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}
    )


async def _rest(stream: openai.AsyncStream[ChatCompletionChunk]) -> list[ChatCompletionChunk]:
    return [chunk async for chunk in stream]


def _text(chunks: list[ChatCompletionChunk]) -> list[str]:
    """Return the words that the chunks bring."""
    return [
        chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content
    ]


async def test_an_answer_streams_word_by_word() -> None:
    """Each delta is a word, the question is in the answer, and finish reason and usage come last."""
    async with _sdk() as client:
        chunks = await _rest(await _stream(client, "Good evening, 世界!"))
    words = _text(chunks)
    assert "".join(words).startswith("You said: “Good evening, 世界!” ")
    assert all(len(word.split()) == 1 for word in words)
    assert chunks[-2].choices[0].finish_reason == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, len(words))


async def test_an_answer_may_come_whole() -> None:
    """Without `stream` the answer is one JSON document, and the models are listed."""
    async with _sdk() as client:
        answer = await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
        )
        models = [model.id async for model in client.models.list()]
    assert (answer.choices[0].message.content or "").startswith("You said: “Hello” ")
    assert answer.choices[0].finish_reason == "stop"
    assert "demo" in models


async def test_a_response_comes_whole_and_word_by_word() -> None:
    """The other protocol says the same."""
    async with _sdk() as client:
        whole = await client.responses.create(model="demo", input="Hello")
        question = [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]
        async with client.responses.stream(model="demo", input=question) as stream:  # type: ignore[arg-type]  # a dict
            words = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            final = await stream.get_final_response()
    assert whole.output_text.startswith("You said: “Hello” ")
    assert "".join(words) == final.output_text == whole.output_text
    assert final.usage is not None
    assert (final.usage.input_tokens, final.usage.output_tokens) == (1, len(words))


async def test_a_model_may_be_looked_up() -> None:
    """One that is not listed does not exist."""
    async with _sdk() as client:
        assert (await client.models.retrieve("demo")).id == "demo"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-2")


async def test_a_wrong_key_is_refused() -> None:
    """The refusal has the provider's form and no part of the key."""
    async with _sdk("a-key-that-is-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await _stream(client, "Hi")
    assert refused.value.code == "invalid_api_key"
    assert "wrong" not in str(refused.value)


async def test_a_request_without_messages_is_refused() -> None:
    """The refusal names what is missing."""
    async with _sdk() as client:
        with pytest.raises(openai.BadRequestError, match="messages"):
            await client.post("/chat/completions", body={"model": "demo"}, cast_to=object)


@pytest.mark.parametrize("where", ["model", "message"])
@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("demo-limited", openai.RateLimitError),
        ("demo-failing", openai.InternalServerError),
        ("demo-broken", openai.APIConnectionError),
    ],
)
async def test_a_word_asks_for_a_failure(where: str, word: str, error: type[openai.APIError]) -> None:
    """In the model's name or in the message."""
    model, message = (word, "Hi") if where == "model" else ("gpt-4o-mini", f"Please: {word}.")
    async with _sdk() as client:
        with pytest.raises(error) as failed:
            await _rest(await _stream(client, message, model))
    if isinstance(failed.value, openai.RateLimitError):
        assert int(failed.value.response.headers["Retry-After"]) > 0


async def test_a_broken_answer_has_a_beginning() -> None:
    """Some words come before the connection ends."""
    async with _sdk() as client, await _stream(client, "Hi", "demo-broken") as stream:
        beginning = [await anext(stream) for _ in range(4)]
        assert "".join(_text(beginning)) == "You said: “Hi” "
        with pytest.raises(openai.APIConnectionError):
            await _rest(stream)


async def test_a_slow_answer_keeps_its_first_word_back() -> None:
    """The stream is open, and there is no word for seconds."""
    async with _sdk() as client, await _stream(client, "Hi", "demo-slow") as stream:
        assert _text([await anext(stream)]) == []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 1)


async def test_closing_ends_a_long_answer() -> None:
    """The answer would take two minutes; its connection ends with the upstream."""
    upstream = DemoUpstream(_KEY)
    upstream.start()
    async with AsyncOpenAI(api_key=_KEY, base_url=upstream.base_url, max_retries=0) as client:
        stream = await _stream(client, "Hi", "demo-long")
        await anext(stream)
        await upstream.close()
        with pytest.raises(openai.APIConnectionError):
            await _rest(stream)
