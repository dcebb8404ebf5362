"""Bounds on `/v1`, the headers that tell of them, and `GET /v1/usage`."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from relayd.state.budget import Use
from relayd.state.records import Outcome, UsageSource
from tests.harness import KEY, Relay, running_relay
from tests.public.test_allowances import OPERATOR, a_key, settled, used
from tests.wire import QUESTION, Reply, Wire, fetch, post

MODEL = "demo:deltas=5,interval_ms=0,prompt_tokens=20"
PRICES = f'prices."{MODEL}" = {{ input = 1.0, output = 10.0 }}'


async def call(relay: Relay, key: str, path: str, **fields: Any) -> Reply:
    """Post JSON to an endpoint of `/v1`."""
    async with await Wire.open(relay.port) as wire:
        wire.send(post(key, json.dumps({"model": MODEL, **fields}).encode(), path=f"/v1{path}"))
        return await wire.reply()


async def chat(relay: Relay, key: str, **fields: Any) -> Reply:
    """Ask for a chat completion."""
    return await call(relay, key, "/chat/completions", messages=QUESTION, **fields)


async def own_usage(relay: Relay, key: str, *, method: str = "GET") -> Reply:
    """Ask for the usage of a key's client."""
    return await fetch(relay.port, "/v1/usage", {"Authorization": f"Bearer {key}"}, method=method)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "question"),
    [("/chat/completions", {"messages": QUESTION}), ("/responses", {"input": "Say hi"})],
)
async def test_both_protocols_are_charged_by_the_provider_s_usage(
    path: str, question: dict[str, Any], *, stream: bool
) -> None:
    """Streamed or not; the client is told neither more nor less for it."""
    async with running_relay(toml=PRICES) as relay:
        key = await a_key(relay, usd_per_day=1.0, requests_per_minute=50)
        reply = await call(relay, key, path, stream=stream, **question)
        assert reply.status == 200
        record = (await settled(relay, 1))[0]
        assert (record.prompt_tokens, record.completion_tokens, record.cost_usd) == (20, 5, 0.00007)
        assert await used(relay) == Use(1, 25, 70_000)


@pytest.mark.parametrize(
    ("path", "question", "mark"),
    [
        ("/chat/completions", {"messages": [{"role": "user", "content": "word " * 80}]}, b'"delta":'),
        ("/responses", {"input": "word " * 80}, b'"response.output_text.delta"'),
    ],
)
async def test_clients_that_leave_a_stream_are_charged_about_what_they_used(
    path: str, question: dict[str, Any], mark: bytes
) -> None:
    """Thirty that leave after three quarters of the answer: between 75 and 125 % of real usage."""
    model = "demo:deltas=40,interval_ms=0,prompt_tokens=100"
    left = f"{model},fault=stall_mid,after=30"
    fields = {"stream": True, **question}
    async with running_relay() as relay:
        key = await a_key(relay, tokens_per_month=10_000_000)

        async def leave() -> None:
            async with await Wire.open(relay.port) as wire:
                wire.send(post(key, json.dumps({"model": left, **fields}).encode(), path=f"/v1{path}"))
                reply = await wire.head()
                while reply.body.count(mark) < 30:
                    await wire.first_piece(reply)
                wire.finish()

        assert (await call(relay, key, path, **{**fields, "model": model})).status == 200
        await asyncio.gather(*(leave() for _ in range(30)))
        records = (await settled(relay, 31))[1:]
        assert {record.usage_source for record in records} == {UsageSource.ESTIMATE}
        charged = sum((record.prompt_tokens or 0) + (record.completion_tokens or 0) for record in records)
        assert 0.75 <= charged / (30 * 130) <= 1.25
        assert (await used(relay)).tokens == charged + 140


async def test_an_embedding_reserves_and_costs_its_input() -> None:
    """It has no answer of tokens, so nothing is reserved for one."""
    async with running_relay() as relay:
        key = await a_key(relay, tokens_per_day=200)
        assert (await call(relay, key, "/embeddings", input="Say hi")).status == 200
        record = (await settled(relay, 1))[0]
        assert record.completion_tokens == 0
        assert (await used(relay)).tokens == record.prompt_tokens


async def test_whole_answers_do_not_distort_what_streams_are_charged() -> None:
    """One body of many tokens is no long piece: a stream that is estimated later has a token a piece."""
    async with running_relay() as relay:
        key = await a_key(relay)
        for stream in (False, False, True):
            await chat(relay, key, model="demo:deltas=40,interval_ms=0", stream=stream)
        await chat(relay, key, model="demo:deltas=20,interval_ms=0,usage=never", stream=True)
        record = (await settled(relay, 4))[3]
        assert (record.usage_source, record.completion_tokens) == (UsageSource.ESTIMATE, 20)


async def test_a_whole_answer_that_is_not_counted_is_charged_by_its_length() -> None:
    """Not as one token: a provider that reports no usage must not make answers free."""
    async with running_relay() as relay:
        key = await a_key(relay)
        reply = await chat(relay, key, model="demo:text=x4,deltas=1000,usage=never")
        record = (await settled(relay, 1))[0]
        assert (record.usage_source, record.completion_tokens) == (UsageSource.ESTIMATE, len(reply.body) // 4)
        speech = await call(
            relay, key, "/audio/speech", model="demo:size=100000,interval_ms=0", input="hi", voice="a"
        )
        record = (await settled(relay, 2))[1]
        assert record.completion_tokens == len(speech.body) // 500


@pytest.mark.parametrize(
    ("path", "fields", "is_refused"),
    [
        ("/completions", {"prompt": ["a", "b", "c"], "max_tokens": 100}, True),
        ("/completions", {"prompt": [[1, 2], [3]], "max_tokens": 100}, False),
        ("/completions", {"prompt": [1, 2, 3], "max_tokens": 100}, False),
        # No provider heeds these here, so they bound nothing.
        ("/chat/completions", {"messages": QUESTION, "max_output_tokens": 1}, True),
        ("/responses", {"input": "hi", "max_tokens": 1}, True),
        ("/responses", {"input": "hi", "max_output_tokens": 100}, False),
    ],
)
async def test_only_what_really_bounds_an_answer_is_believed(
    path: str, fields: dict[str, Any], *, is_refused: bool
) -> None:
    """Each prompt of a list has its own answer; the limit of another endpoint is none."""
    async with running_relay() as relay:
        key = await a_key(relay, tokens_per_month=290, max_output_tokens=280)
        # A mere guess may take a whole bound, so a part of it is used first.
        assert (await chat(relay, key, max_tokens=10)).status == 200
        await settled(relay, 1)
        assert (await call(relay, key, path, **fields)).status == (429 if is_refused else 200)


@pytest.mark.parametrize(
    ("bounds", "fields", "status", "code", "retry"),
    [
        ({"tokens_per_day": 1000}, {"max_tokens": 1000}, 429, "insufficient_quota", "false"),
        # Twice the ceiling and the prompt are too much; once would fit.
        ({"tokens_per_day": 1000}, {"max_tokens": 500, "n": 2}, 429, "insufficient_quota", "false"),
        ({"tokens_per_minute": 1000}, {"max_tokens": 1000}, 429, "rate_limit_exceeded", None),
        ({"usd_per_month": 0.001}, {"max_tokens": 1000}, 429, "insufficient_quota", "false"),
        ({"usd_per_day": 1.0}, {"model": "demo:deltas=1"}, 403, "model_unpriced", None),
        ({"max_output_tokens": 10}, {"max_completion_tokens": 11}, 400, "bad_request", None),
    ],
)
async def test_a_refusal_is_in_openai_s_words(
    bounds: dict[str, Any], fields: dict[str, Any], status: int, code: str, retry: str | None
) -> None:
    """SDKs read the code and whether to try again; the sentence names the bound."""
    async with running_relay(toml=PRICES) as relay:
        reply = await chat(relay, await a_key(relay, **bounds), **fields)
        error = json.loads(reply.body)["error"]
        assert (reply.status, error["code"], reply.header("x-should-retry")) == (status, code, retry)
        (bound,) = bounds
        assert bound in error["message"] or code == "model_unpriced"
        assert relay.upstream.requests == []
        assert (reply.header("Retry-After") is not None) is (status == 429)


async def test_background_is_refused_where_it_could_not_be_counted() -> None:
    """A client with bounds in tokens or money gets 400; one with other bounds may use it."""
    async with running_relay() as relay:
        counted = await a_key(relay, "counted", tokens_per_month=10_000)
        other = await a_key(relay, "other", max_streams=3)
        refused = await call(relay, counted, "/responses", input="hi", background=True)
        assert (refused.status, json.loads(refused.body)["error"]["code"]) == (400, "bad_request")
        assert (await call(relay, other, "/responses", input="hi", background=True)).status == 200


@pytest.mark.parametrize(
    ("path", "bounds", "refused"),
    [
        ("/batches", {"tokens_per_month": 10_000}, True),
        ("/fine_tuning/jobs", {"usd_per_day": 5.0}, True),
        ("/batches", {"requests_per_minute": 50}, False),
        ("/conversations", {"tokens_per_month": 10_000}, False),
    ],
)
async def test_what_cannot_be_counted_is_not_for_bounds(
    path: str, bounds: dict[str, Any], *, refused: bool
) -> None:
    """An operator may open batches; with bounds in tokens or money they are no way around these."""
    async with running_relay(v1__allow=["POST /v1/*"]) as relay:
        key = await a_key(relay, **bounds)
        reply = await call(relay, key, path)
        assert (reply.status == 400) is refused
        assert len(relay.upstream.requests) == (not refused)


async def test_a_client_with_bounds_is_told_what_is_left() -> None:
    """In OpenAI's headers, on answers and refusals; the provider's own are not passed on."""
    now_s = time.time()
    async with running_relay(clock=lambda: now_s) as relay:
        key = await a_key(relay, requests_per_minute=2, tokens_per_minute=1000, tokens_per_day=5000)
        for left in (1, 0):
            reply = await chat(relay, key, max_tokens=100)
            await settled(relay, 2 - left)
            assert reply.header("x-ratelimit-limit-requests") == "2"
            assert reply.header("x-ratelimit-remaining-requests") == str(left)
            assert (reply.header("x-ratelimit-reset-requests") or "").endswith("s")
            assert reply.header("x-ratelimit-limit-tokens") == "1000"
            assert 700 <= int(reply.header("x-ratelimit-remaining-tokens") or "") <= 900
        refused = await chat(relay, key, max_tokens=100)
        assert (refused.status, refused.header("x-ratelimit-remaining-requests")) == (429, "0")
        free = await chat(relay, KEY)
        assert not [name for name, _ in free.headers if name.lower().startswith("x-ratelimit")]


async def test_a_client_sees_its_own_usage() -> None:
    """What it used and reserved, its bounds and when they begin again; asking counts nowhere."""
    async with running_relay(toml=PRICES) as relay:
        # Also a client that may use nothing else here.
        key = await a_key(relay, usd_per_month=1.0, tokens_per_day=500, endpoints=["/v1/chat/*"])
        await a_key(relay, "phone", tokens_per_day=7)
        await chat(relay, key, max_tokens=100)
        await settled(relay, 1)
        for _ in range(2):
            reply = await own_usage(relay, key)
            found = json.loads(reply.body)
            assert (reply.status, found["client"]) == (200, "web")
            assert found["month"] == {"requests": 1, "tokens": 25, "cost_usd": 0.00007}
            month, day = found["bounds"]
            resets_at = datetime.fromisoformat(month.pop("resets_at"))
            assert resets_at > datetime.now(UTC)
            assert month == {"bound": "usd_per_month", "limit": 1.0, "used": 0.00007, "remaining": 0.99993}
            assert (day["bound"], day["limit"], day["remaining"]) == ("tokens_per_day", 500, 475)
            assert "phone" not in reply.body.decode()
        record = (await settled(relay, 3))[2]
        assert (record.path, record.outcome, record.status) == ("/v1/usage", Outcome.COMPLETED, 200)
        assert (record.bytes_out, record.duration_ms is None) == (len(reply.body), False)
        assert len(relay.upstream.requests) == 1


async def test_a_huge_limit_of_tokens_harms_no_other_client() -> None:
    """It is as much as a client without such bounds may ask for; all are served, and the sums are right."""
    async with running_relay(toml=PRICES) as relay:
        key, other = (
            await a_key(relay, requests_per_minute=9),
            await a_key(relay, "phone", tokens_per_day=999),
        )
        huge = [chat(relay, key, max_tokens=10**9) for _ in range(3)]
        replies = await asyncio.gather(*huge, chat(relay, other, max_tokens=9))
        assert [reply.status for reply in replies] == [200] * 4
        await settled(relay, 4)
        assert await used(relay) == Use(3, 75, 210_000)
        assert await used(relay, "phone") == Use(1, 25, 70_000)


async def test_what_uses_no_tokens_is_not_refused_for_them() -> None:
    """A client whose bounds are overshot still sees the list of models."""
    async with running_relay(toml=PRICES) as relay:
        key = await a_key(relay)
        assert (await chat(relay, key)).status == 200
        await settled(relay, 1)
        bounds = {"tokens_per_day": 24, "usd_per_day": 0.00001}
        await relay.state.ring.set_client("web", bounds, caller=OPERATOR)
        assert (await chat(relay, key)).status == 429
        models = await fetch(relay.port, "/v1/models", {"Authorization": f"Bearer {key}"})
        assert models.status == 200


async def test_usage_needs_a_key_and_a_get() -> None:
    """Everything else is refused in OpenAI's shape, and where `/v1` is off there is nothing."""
    async with running_relay() as relay:
        wrong = await own_usage(relay, "wrong-key-wrong-key")
        assert (wrong.status, json.loads(wrong.body)["error"]["code"]) == (401, "invalid_api_key")
        assert (await own_usage(relay, KEY, method="DELETE")).status == 404
        preflight = await fetch(relay.port, "/v1/usage", {"Origin": "https://a.example"}, method="OPTIONS")
        assert preflight.status == 204
    async with running_relay(v1__enabled=False) as relay:
        assert (await own_usage(relay, KEY)).status == 404


async def test_a_client_whose_bounds_are_used_up_may_look_at_them() -> None:
    """It gets neither 429 nor a wait."""
    async with running_relay() as relay:
        key = await a_key(relay, tokens_per_month=1)
        assert (await chat(relay, key, max_tokens=1)).status == 429
        await relay.state.ring.set_client("web", {"max_streams": 1}, caller=OPERATOR)
        assert json.loads((await own_usage(relay, key)).body)["bounds"][0]["remaining"] == 1


async def test_usage_that_cannot_be_read_is_said() -> None:
    """The state is closed, as at the end of the daemon: 503, and no bug."""
    async with running_relay() as relay:
        relay.state._writer._closing = True
        try:
            reply = await own_usage(relay, KEY)
        finally:
            relay.state._writer._closing = False
        assert (reply.status, json.loads(reply.body)["error"]["code"]) == (503, "state_unavailable")
