"""openai-python, unmodified, through relayd's `/v1`."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam
from openai.types.responses import FunctionToolParam
from pydantic import BaseModel

from tests.harness import KEY, running_relay
from tests.public.test_allowances import a_key
from tests.sdk.harness import SHAPES, V1
from tests.support.upstream_api import PNG, heard, noise, vector
from tests.support.upstream_script import WORDS
from tests.wire import HOST, PATIENCE_S, until, wait_until

_PICTURE = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
_WEATHER: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
_CHAT_TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "weather", "description": "Tell the weather", "parameters": _WEATHER},
}
_RESPONSES_TOOL: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "parameters": _WEATHER,
    "strict": False,
}


class _City(BaseModel):
    name: str
    inhabitants: int


@pytest.fixture
def client(v1: V1) -> Iterator[OpenAI]:
    """The SDK as its README makes it, but without its retries: their tests switch them on."""
    with OpenAI(base_url=v1.base_url, api_key=v1.key, max_retries=0, timeout=PATIENCE_S) as made:
        yield made


def _chat(client: OpenAI, model: str, **more: Any) -> openai.Stream[Any]:
    stream: openai.Stream[Any] = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Say hi"}], stream=True, **more
    )
    return stream


def _chat_text(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


# --- Chat completions ---


def test_a_chat_completion_comes_whole(v1: V1, client: OpenAI) -> None:
    """With its text, its finish and its usage, and with relayd's request id."""
    answer = client.chat.completions.create(
        model=v1.model(), messages=[{"role": "user", "content": "Say hi"}], n=2
    )
    assert [choice.message.content for choice in answer.choices] == [WORDS, WORDS]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 2 + 2 * len(WORDS.split())
    assert answer._request_id is not None
    assert not answer._request_id.startswith("req_demo")


@pytest.mark.parametrize("fault", ["", *SHAPES])
def test_a_chat_streams_with_one_choice_in_each_chunk(v1: V1, client: OpenAI, fault: str) -> None:
    """Only relayd asked for the usage, so the chunk that carries it, without a choice, is taken out."""
    model = v1.model(fault and f"fault={fault}")
    chunks = list(_chat(client, model))
    assert _chat_text(chunks) == WORDS
    assert chunks[-1].choices[0].finish_reason == "stop"
    sent = json.loads(v1.asked_once(model).body)
    assert sent["stream_options"] == {"include_usage": True}


def test_a_chat_streams_its_usage_to_who_asks_for_it(v1: V1, client: OpenAI) -> None:
    """In a last chunk without choices, as OpenAI sends it."""
    *chunks, last = _chat(client, v1.model(), stream_options={"include_usage": True})
    assert _chat_text(chunks) == WORDS
    assert last.choices == []
    assert last.usage.completion_tokens == len(WORDS.split())


def test_usage_that_is_refused_is_not_asked_for(v1: V1, client: OpenAI) -> None:
    """An explicit false reaches the provider as it is."""
    model = v1.model()
    chunks = list(_chat(client, model, stream_options={"include_usage": False}))
    assert _chat_text(chunks) == WORDS
    assert json.loads(v1.asked_once(model).body)["stream_options"] == {"include_usage": False}


def test_a_tool_is_called_and_its_result_is_answered(v1: V1, client: OpenAI) -> None:
    """Streamed through the SDK's helper, then with the result as a message."""
    model = v1.model()
    question: Any = {"role": "user", "content": "How is the weather?"}
    with client.chat.completions.stream(model=model, messages=[question], tools=[_CHAT_TOOL]) as stream:
        said = stream.get_final_completion().choices[0].message
    assert said.tool_calls is not None
    call = said.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    answer = client.chat.completions.create(
        model=model,
        messages=[question, said.model_dump(exclude_none=True), result],  # type: ignore[list-item]  # a dict
        tools=[_CHAT_TOOL],
    )
    assert answer.choices[0].message.content == WORDS


def test_structured_output_is_parsed(v1: V1, client: OpenAI) -> None:
    """By the SDK's helpers, streamed and not."""
    asked: Any = {"model": v1.model(), "messages": [{"role": "user", "content": "Where?"}]}
    answer = client.chat.completions.parse(**asked, response_format=_City)
    assert answer.choices[0].message.parsed == _City(name="Paris", inhabitants=3)
    with client.chat.completions.stream(**asked, response_format=_City) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == _City(name="Paris", inhabitants=3)


def test_an_image_reaches_the_model(v1: V1, client: OpenAI) -> None:
    """As a part of a message, in chat completions and in responses."""
    model = v1.model("text=echo")
    parts: Any = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": _PICTURE}}]
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == f"What? [image of {len(_PICTURE)} characters]"
    inputs: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": _PICTURE}]}]
    seen = client.responses.create(model=model, input=inputs)
    assert seen.output_text == f"[image of {len(_PICTURE)} characters]"


def test_an_old_completion_works(v1: V1, client: OpenAI) -> None:
    """Whole and streamed."""
    model = v1.model()
    assert client.completions.create(model=model, prompt="Say hi").choices[0].text == WORDS
    stream = client.completions.create(model=model, prompt="Say hi", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == WORDS


# --- Responses ---


def test_a_response_comes_whole_and_is_found_again(v1: V1, client: OpenAI) -> None:
    """It can be continued, read and deleted by the client that made it."""
    model = v1.model()
    first = client.responses.create(model=model, input="Say hi")
    assert (first.status, first.output_text) == ("completed", WORDS)
    second = client.responses.create(model=model, input="Again", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert client.responses.retrieve(first.id).id == first.id
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


@pytest.mark.parametrize("fault", ["", *SHAPES])
def test_a_response_streams(v1: V1, client: OpenAI, fault: str) -> None:
    """All of its events in their order."""
    model = v1.model(fault and f"fault={fault}")
    with client.responses.stream(model=model, input="Say hi") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
    numbers = [event.sequence_number for event in events if hasattr(event, "sequence_number")]
    assert numbers == sorted(numbers)
    assert (final.status, final.output_text) == ("completed", WORDS)


def test_a_response_calls_a_tool_and_is_parsed(v1: V1, client: OpenAI) -> None:
    """With the SDK's helpers."""
    model = v1.model()
    with client.responses.stream(model=model, input="How is it?", tools=[_RESPONSES_TOOL]) as stream:
        (call,) = stream.get_final_response().output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Paris"})
    parsed = client.responses.parse(model=model, input="Where?", text_format=_City)
    assert parsed.output_parsed == _City(name="Paris", inhabitants=3)


def test_an_incomplete_response_is_no_error(v1: V1, client: OpenAI) -> None:
    """It ends with its own event, and the SDK returns what there is."""
    events = list(client.responses.create(model=v1.model("finish=length"), input="Say hi", stream=True))
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == WORDS


def test_a_response_may_be_compacted_or_run_in_the_background(v1: V1, client: OpenAI) -> None:
    """Both are calls of their own."""
    compacted = client.responses.compact(model=v1.model(), input="A long conversation")
    assert compacted.output[0].type == "compaction"
    queued = client.responses.create(model=v1.model(), input="Say hi", background=True)
    assert queued.status == "queued"
    assert client.responses.cancel(queued.id).status == "cancelled"


# --- Heartbeats ---


@pytest.mark.parametrize("fault", SHAPES)
async def test_heartbeats_are_no_events(fault: str) -> None:
    """In both protocols, behind whatever line the provider's last event ends with."""
    async with (
        running_relay(chat__heartbeat_s=0.02) as relay,
        AsyncOpenAI(
            base_url=f"http://{HOST}:{relay.port}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_S
        ) as client,
    ):
        model = f"demo:deltas=3,first_ms=100,interval_ms=60,fault={fault}"
        question: Any = [{"role": "user", "content": "Say hi"}]
        stream = await client.chat.completions.create(model=model, messages=question, stream=True)
        text = _chat_text([chunk async for chunk in stream])
        async with client.responses.stream(model=model, input="Say hi") as events:
            final = await events.get_final_response()
        await until(lambda: len(relay.records) == 2)
        heartbeat_bytes = relay.records[1].bytes_out - len(relay.upstream.requests[1].answer)
    assert final.output_text == text == "The relay passes "
    assert heartbeat_bytes > 0


# --- Everything else ---


def test_embeddings_come_as_figures_and_as_base64(v1: V1, client: OpenAI) -> None:
    """The SDK asks for base64 unless it is told otherwise."""
    wanted = [vector(json.dumps(text)) for text in ("one", "two")]
    for more in ({}, {"encoding_format": "float"}):
        answer = client.embeddings.create(model=v1.model(), input=["one", "two"], **more)  # type: ignore[arg-type]  # a literal
        assert [item.embedding for item in answer.data] == wanted


def test_moderation_and_models_answer(client: OpenAI) -> None:
    """The models are those of the provider."""
    assert client.moderations.create(input="Say hi").results[0].flagged is False
    assert {model.id for model in client.models.list()} >= {"demo", "gpt-4o-mini"}
    assert client.models.retrieve("demo").id == "demo"


def test_pictures_are_made_edited_and_streamed(v1: V1, client: OpenAI) -> None:
    """The edited one is uploaded."""
    made = client.images.generate(model=v1.model(), prompt="A dot")
    assert made.data is not None
    assert base64.b64decode(made.data[0].b64_json or "") == PNG
    model = v1.model()
    edited = client.images.edit(model=model, image=("dot.png", io.BytesIO(PNG), "image/png"), prompt="Red")
    assert edited.data is not None
    assert PNG in v1.asked_once(model).body
    events = list(client.images.generate(model=v1.model(), prompt="A dot", stream=True))
    assert [event.type for event in events][-1] == "image_generation.completed"


def test_audio_goes_up_and_down(v1: V1, client: OpenAI) -> None:
    """Speech arrives byte for byte, and so does what is transcribed."""
    speech = client.audio.speech.create(model=v1.model("size=100000"), voice="alloy", input="Hi")
    assert speech.read() == noise(100_000)
    audio = noise(300_000)
    asked: Any = {"model": v1.model(), "file": ("speech.mp3", audio)}
    assert client.audio.transcriptions.create(**asked).text == heard(audio)
    assert client.audio.transcriptions.create(**asked, response_format="text").strip() == heard(audio)
    events = list(client.audio.transcriptions.create(**asked, stream=True))
    assert (events[-1].type, events[-1].text) == ("transcript.text.done", heard(audio))
    with pytest.warns(DeprecationWarning, match="deprecated"):
        assert client.audio.translations.create(**asked).text == heard(audio)


# --- Errors ---


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("fault=status,code=400", openai.BadRequestError),
        ("fault=status,code=404", openai.NotFoundError),
        ("fault=status,code=409", openai.ConflictError),
        ("fault=status,code=422", openai.UnprocessableEntityError),
        ("fault=status,code=429", openai.RateLimitError),
        ("fault=status,code=500", openai.InternalServerError),
        ("fault=status,code=401", openai.InternalServerError),
        ("fault=cut_headers", openai.InternalServerError),
    ],
)
def test_a_refusal_raises_the_error_of_its_status(
    v1: V1, client: OpenAI, words: str, kind: type[openai.APIStatusError]
) -> None:
    """The provider's own as it is. A refusal of relayd's key, or a lost connection, is relayd's failure."""
    model = v1.model(f"{words},message=No%20way")
    for call in (lambda: _chat(client, model), lambda: client.responses.create(model=model, input="Hi")):
        with pytest.raises(kind) as raised:
            call()
        assert isinstance(raised.value.body, dict)
        assert isinstance(raised.value.body["message"], str)
        if kind is not openai.InternalServerError:
            assert raised.value.body["message"] == "No way"
        assert raised.value.request_id is not None


def test_a_wrong_key_raises_an_authentication_error(v1: V1) -> None:
    """With OpenAI's code, and without any part of the key."""
    stranger = OpenAI(base_url=v1.base_url, api_key="a-key-that-is-wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as refused:
        stranger.models.list()
    assert refused.value.code == "invalid_api_key"
    assert "wrong" not in refused.value.message.replace("wrong key", "")


def test_a_closed_path_is_not_found_and_names_the_setting(v1: V1, client: OpenAI) -> None:
    """Files show what is in the owner's account."""
    asked = len(v1.upstream.requests)
    with pytest.raises(openai.NotFoundError, match=r"v1\.allow"):
        client.files.list()
    assert len(v1.upstream.requests) == asked


# --- Retries ---


def _retrying(v1: V1) -> OpenAI:
    return OpenAI(base_url=v1.base_url, api_key=v1.key, max_retries=2, timeout=PATIENCE_S)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_the_client_retries_what_the_provider_may_do_later(v1: V1, code: int) -> None:
    """As soon as the provider's own header says; relayd asks once for each try of the client."""
    model = v1.model(f"fault=status,code={code},retry_after_ms=1,fail_times=2")
    with _retrying(v1) as client:
        assert _chat_text(list(_chat(client, model))) == WORDS
    assert len(v1.asked(model)) == 3


def test_a_retry_after_is_waited_for(v1: V1) -> None:
    """In seconds, as the provider sent it."""
    model = v1.model("fault=status,code=429,retry_after=1,fail_times=1")
    with _retrying(v1) as client:
        _chat(client, model).close()
    refused, answered = v1.asked(model)
    assert refused.head_at is not None
    assert answered.head_at is not None
    assert answered.head_at - refused.head_at >= 1


def test_the_client_does_not_retry_what_must_not_be_retried(v1: V1) -> None:
    """The provider's `x-should-retry: false` reaches it."""
    model = v1.model("fault=status,code=429,error=insufficient_quota,should_retry=false")
    with _retrying(v1) as client, pytest.raises(openai.RateLimitError) as refused:
        _chat(client, model)
    assert refused.value.code == "insufficient_quota"
    assert len(v1.asked(model)) == 1


# --- Bounds ---


async def test_a_bound_that_is_used_up_is_a_rate_limit_error_without_retries() -> None:
    """The SDK would try twice more, but is told not to; the error says which bound it was."""
    async with running_relay() as relay:
        key = await a_key(relay, tokens_per_day=100)
        async with AsyncOpenAI(
            base_url=f"http://{HOST}:{relay.port}/v1", api_key=key, max_retries=2
        ) as client:
            with pytest.raises(openai.RateLimitError, match="tokens_per_day") as refused:
                await client.responses.create(model="demo", input="Say hi", max_output_tokens=1000)
        assert refused.value.code == "insufficient_quota"
        await until(lambda: relay.records)
        assert len(relay.records) == 1
        assert relay.upstream.requests == []


async def test_a_client_sees_its_own_models_and_responses_only() -> None:
    """A model that it may not use is not listed; a response of another client does not exist."""
    async with running_relay() as relay:
        url = f"http://{HOST}:{relay.port}/v1"
        bounded = await a_key(relay, models=("gpt-4o*",))
        async with (
            AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as owner,
            AsyncOpenAI(base_url=url, api_key=bounded, max_retries=0) as client,
        ):
            made = await owner.responses.create(model="demo", input="Say hi")
            assert [model.id async for model in client.models.list()] == ["gpt-4o-mini"]
            with pytest.raises(openai.PermissionDeniedError):
                await client.responses.create(model="demo", input="Say hi")
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(made.id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.create(
                    model="gpt-4o-mini", input="Go on", previous_response_id=made.id
                )
            assert (await owner.responses.retrieve(made.id)).id == made.id


# --- Breaking off ---

_BROKEN = ("cut_mid", "cut_fin", "end_early", "bad_json", "error_event")
_Streams: TypeAlias = Callable[[OpenAI, str], Iterator[Any]]
_PROTOCOLS: dict[str, _Streams] = {
    "chat": lambda client, model: iter(_chat(client, model)),
    "responses": lambda client, model: iter(
        client.responses.create(model=model, input="Say hi", stream=True)
    ),
    "chat helper": lambda client, model: _helper(
        client.chat.completions.stream(model=model, messages=[{"role": "user", "content": "Say hi"}])
    ),
    "responses helper": lambda client, model: _helper(client.responses.stream(model=model, input="Say hi")),
}


def _helper(manager: Any) -> Iterator[Any]:
    with manager as stream:
        yield from stream


@pytest.mark.parametrize("after", [0, 3, 1000], ids=["before the text", "in the text", "before the finish"])
@pytest.mark.parametrize("fault", _BROKEN)
@pytest.mark.parametrize("protocol", _PROTOCOLS)
def test_a_stream_that_breaks_off_raises(
    v1: V1, client: OpenAI, protocol: str, fault: str, after: int
) -> None:
    """At each phase; what came before it is given out."""
    got: list[Any] = []
    events = _PROTOCOLS[protocol](client, v1.model(f"fault={fault},after={after}"))
    with pytest.raises(openai.APIError):
        got.extend(events)
    assert got


@pytest.mark.parametrize("protocol", ["chat", "responses"])
def test_a_stream_without_its_finish_raises(v1: V1, client: OpenAI, protocol: str) -> None:
    """Also where the provider ends it in an orderly way, with `[DONE]`."""
    with pytest.raises(openai.APIError):
        list(_PROTOCOLS[protocol](client, v1.model("finish=none")))


def test_a_failed_response_ends_as_the_provider_says(v1: V1, client: OpenAI) -> None:
    """`response.failed` of the provider is passed on as it came."""
    events = list(client.responses.create(model=v1.model("finish=failed"), input="Say hi", stream=True))
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.code == "server_error"


@pytest.mark.parametrize("fault", ["cut_mid", "cut_fin"])
def test_a_whole_answer_that_breaks_off_raises(v1: V1, client: OpenAI, fault: str) -> None:
    """A part of it is never taken for all."""
    model = v1.model(f"fault={fault}")
    with pytest.raises(openai.APIConnectionError):
        client.responses.create(model=model, input="Say hi")
    with pytest.raises(openai.APIConnectionError):
        client.embeddings.create(model=model, input="Say hi")
    with pytest.raises(openai.APIConnectionError):
        client.audio.speech.create(model=f"{model},size=20000", voice="alloy", input="Hi").read()


# --- Leaving ---


@pytest.mark.parametrize("words", ["fault=stall_headers", "fault=stall_first", "fault=stall_mid"])
@pytest.mark.parametrize("protocol", ["chat", "responses", "whole"])
async def test_a_client_that_leaves_closes_the_provider(v1: V1, protocol: str, words: str) -> None:
    """At each phase, by cancelling the call."""
    model = v1.model(words)
    async with AsyncOpenAI(base_url=v1.base_url, api_key=v1.key, max_retries=0) as client:

        async def ask() -> None:
            if protocol == "whole":
                await client.responses.create(model=model, input="Say hi")
            elif protocol == "chat":
                question: Any = [{"role": "user", "content": "Say hi"}]
                async for _ in await client.chat.completions.create(
                    model=model, messages=question, stream=True
                ):
                    pass
            else:
                async for _ in await client.responses.create(model=model, input="Say hi", stream=True):
                    pass

        asking = asyncio.create_task(ask())
        await until(lambda: v1.asked(model))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: v1.asked_once(model).closed_by_client_at is not None)


def test_closing_a_stream_closes_the_provider(v1: V1, client: OpenAI) -> None:
    """As `break` in a `with` does."""
    model = v1.model("fault=stall_mid")
    with _chat(client, model) as stream:
        next(iter(stream))
    wait_until(lambda: v1.asked_once(model).closed_by_client_at is not None)
