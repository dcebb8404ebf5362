"""Bounds of clients as their requests meet them, and what is charged however a request ends."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from relayd.relay.usage import DEFAULT_OUTPUT_TOKENS
from relayd.state.budget import NANO, Use
from relayd.state.key_operations import Caller
from relayd.state.records import Outcome, Peer, RequestRecord, UsageSource
from relayd.state.sqlite import SqliteConnection
from tests.harness import Relay, running_relay
from tests.wire import DONE, Reply, Wire, ask, body, post, until

OPERATOR = Caller(Peer(uid=1000, pid=1, login="operator"))
QUICK = "demo:text=words,deltas=5,interval_ms=0,prompt_tokens=20"
PRICES = f'prices."{QUICK}" = {{ input = 1.0, output = 10.0 }}'


async def a_key(relay: Relay, name: str = "web", **bounds: Any) -> str:
    """Make a client with these bounds; return its key."""
    change = await relay.state.ring.add_client(name, bounds, caller=OPERATOR)
    assert change.secret is not None
    return change.secret


async def used(relay: Relay, name: str = "web") -> Use:
    """Return what a client used and reserved this month."""
    client = relay.state.ring.client(name)
    assert client is not None
    return (await relay.state.budget.standing(client))[1][2]


async def settled(relay: Relay, ends: int) -> list[RequestRecord]:
    """Wait until so many requests have ended; return their records."""
    await until(lambda: len(relay.records) >= ends)
    return relay.records


def refusal(reply: Reply) -> tuple[int, str | None, str | None, str | None]:
    """Return status, code, what SDKs are told of retries, and the sentence."""
    code, retry = reply.header("X-Relayd-Error"), reply.header("x-should-retry")
    return reply.status, code, retry, reply.error


# From the headers.


@pytest.mark.parametrize(
    ("bounds", "headers", "passes"),
    [
        ({}, {"Origin": "https://any.example"}, True),
        ({"endpoints": ["/v1/*"]}, {}, False),
        ({"endpoints": ["/v1/*", "/chat"]}, {}, True),
        ({"origins": ["https://a.example"]}, {"Origin": "https://a.example"}, True),
        ({"origins": ["https://a.example"]}, {"Origin": "https://b.example"}, False),
        # Programs send no Origin: it bounds pages.
        ({"origins": ["https://a.example"]}, {}, True),
    ],
)
async def test_a_key_works_where_its_client_may_come_from(
    bounds: dict[str, Any], headers: dict[str, str], *, passes: bool
) -> None:
    """Endpoints and origins are decided before the body is read; the provider hears of no refused request."""
    async with running_relay() as relay:
        key = await a_key(relay, **bounds)
        reply = await ask(relay.port, key, body(QUICK), headers)
        if passes:
            assert reply.lines[-1] == DONE
        else:
            assert refusal(reply)[:2] == (401, "unauthorized")
            assert relay.upstream.requests == []
            assert (await relay.record()).outcome is Outcome.DENIED


async def test_requests_at_once_are_bounded_by_client() -> None:
    """The third stream of a client with two is refused until one ends; another client is not concerned."""
    held = "demo:fault=stall_headers"
    async with running_relay() as relay:
        key, other = await a_key(relay, max_streams=2), await a_key(relay, "phone", max_streams=1)
        async with await Wire.open(relay.port) as first, await Wire.open(relay.port) as second:
            for wire in (first, second):
                wire.send(post(key, body(held)))
            await until(lambda: len(relay.upstream.requests) == 2)
            status, code, _, sentence = refusal(await ask(relay.port, key, body(QUICK)))
            assert (status, code) == (429, "busy")
            assert sentence is not None
            assert "'web' has reached its limit of 2 requests at once" in sentence
            assert (await ask(relay.port, other, body(QUICK))).status == 200
            first.finish()
            await until(lambda: any(record.outcome is Outcome.CLIENT_CLOSED for record in relay.records))
            assert (await ask(relay.port, key, body(QUICK))).status == 200


async def test_changes_hold_for_the_next_request_while_streams_go_on() -> None:
    """A lowered bound, an expiry, a removal: the open stream goes on, the next request is refused."""
    long = "demo:text=words,deltas=3,interval_ms=0,fault=stall_mid,after=2"
    passed_s = 0.0
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    async with running_relay(clock=lambda: time.time() + passed_s) as relay:
        key = await a_key(relay, tokens_per_day=100_000)
        async with await Wire.open(relay.port) as wire:
            await wire.begin(post(key, body(long, max_tokens=50)))
            for change, code in (
                ({"tokens_per_day": 1}, "over_budget"),
                ({"tokens_per_day": None, "expires_at": soon}, "unauthorized"),
            ):
                await relay.state.ring.set_client("web", change, caller=OPERATOR)
                passed_s = 7200.0 if "expires_at" in change else 0.0
                assert (await ask(relay.port, key, body(QUICK, max_tokens=1))).header(
                    "X-Relayd-Error"
                ) == code
            await relay.state.ring.remove_client("web", cut=False, caller=OPERATOR)
            assert (await ask(relay.port, key, body(QUICK))).status == 401
            assert len(relay.server.streams) == 1
            assert not wire.lost()


# Once the body is here.


@pytest.mark.parametrize(
    ("bounds", "fields", "code", "sentence"),
    [
        ({"models": ["gpt-*", "o3"]}, {}, "model_not_allowed", "allowed are: gpt-*, o3"),
        ({"models": ["demo:*"]}, {}, None, ""),
        ({"usd_per_day": 1.0}, {"model": "demo:deltas=1"}, "model_unpriced", "has no price"),
        ({"max_output_tokens": 50}, {"max_tokens": 51}, "bad_request", "max_tokens may be at most 50"),
        (
            {"max_output_tokens": 50},
            {"max_completion_tokens": 51},
            "bad_request",
            "max_completion_tokens may be at most 50 (max_output_tokens of the client 'web'), not 51",
        ),
        ({"max_output_tokens": 50}, {"max_tokens": 50}, None, ""),
    ],
)
async def test_what_a_client_may_ask_for(
    bounds: dict[str, Any], fields: dict[str, Any], code: str | None, sentence: str
) -> None:
    """Models, prices and the ceiling of an answer; the refusal names the bound."""
    async with running_relay(toml=PRICES) as relay:
        reply = await ask(relay.port, await a_key(relay, **bounds), body(**{"model": QUICK, **fields}))
        assert reply.header("X-Relayd-Error") == code
        assert sentence in (reply.error or "")
        assert len(relay.upstream.requests) == (code is None)
        await settled(relay, 1)
        assert await used(relay) == (Use() if code else Use(1, 25, 70_000))


@pytest.mark.parametrize(
    ("bounds", "status", "code", "retry", "names"),
    [
        ({"requests_per_minute": 1}, 429, "busy", None, "1 request a minute (requests_per_minute)"),
        ({"tokens_per_minute": 60}, 429, "busy", None, "60 tokens a minute (tokens_per_minute): 25 tokens"),
        ({"tokens_per_day": 60}, 429, "over_budget", "false", "60 tokens a day (tokens_per_day): 25 tokens"),
        ({"tokens_per_month": 60}, 429, "over_budget", "false", "60 tokens a month (tokens_per_month)"),
        ({"usd_per_day": 0.0005}, 429, "over_budget", "false", "$0.000500 a day (usd_per_day): $0.000070"),
        ({"usd_per_month": 0.0005}, 429, "over_budget", "false", "$0.000500 a month (usd_per_month)"),
    ],
)
async def test_a_used_up_bound_refuses_and_says_until_when(
    bounds: dict[str, Any], status: int, code: str, retry: str | None, names: str
) -> None:
    """Minutes are `busy`, days and months `over_budget`, which no SDK sends again."""
    now_s = time.time()
    async with running_relay(toml=PRICES, clock=lambda: now_s) as relay:
        key = await a_key(relay, **bounds)
        assert (await ask(relay.port, key, body(QUICK, max_tokens=10))).status == 200
        await settled(relay, 1)
        reply = await ask(relay.port, key, body(QUICK, max_tokens=50))
        assert refusal(reply)[:3] == (status, code, retry)
        assert names in (reply.error or "")
        assert "begins again at 20" in (reply.error or "")
        assert ("a smaller max_tokens" in (reply.error or "")) is ("requests_per_minute" not in bounds)
        assert reply.lines[-1] == DONE
        assert int(reply.header("Retry-After") or "0") >= 1
        record = (await settled(relay, 2))[1]
        assert (record.outcome, record.usage_source, record.cost_usd) == (Outcome.REJECTED, None, None)
        assert len(relay.upstream.requests) == 1


async def test_many_requests_at_once_do_not_pass_a_bound() -> None:
    """Of 200 at the same moment as many reach the provider as there is room for, 50."""
    now_s = time.time()
    async with (
        running_relay(server__max_streams_per_address=500, clock=lambda: now_s) as relay,
        AsyncExitStack() as wires,
    ):
        # A request reserves a thousand tokens and some 45 of the prompt.
        key = await a_key(relay, tokens_per_day=50 * 1058)
        payload = post(key, body("demo:fault=stall_headers", max_tokens=1000))
        replies = []
        for _ in range(200):
            wire = await wires.enter_async_context(await Wire.open(relay.port))
            wire.send(payload)
            replies.append(asyncio.create_task(wire.head()))
        await until(lambda: sum(reply.done() for reply in replies) == 150)
        refused = [reply.result() for reply in replies if reply.done()]
        assert {reply.header("X-Relayd-Error") for reply in refused} == {"over_budget"}
        await until(lambda: len(relay.upstream.requests) == 50)
        assert (await used(relay)).requests == 50
        for reply in replies:
            reply.cancel()
        await asyncio.gather(*replies, return_exceptions=True)


async def test_an_answer_of_unknown_length_reserves_what_is_usual() -> None:
    """Without a limit of its own a request reserves the client's ceiling, what was usual, or a default."""
    async with running_relay() as relay:
        key = await a_key(relay, tokens_per_day=100_000)
        for ceiling, reserved in ((None, DEFAULT_OUTPUT_TOKENS), (300, 300)):
            await relay.state.ring.set_client("web", {"max_output_tokens": ceiling}, caller=OPERATOR)
            before, asked = await used(relay), len(relay.upstream.requests)
            async with await Wire.open(relay.port) as wire:
                wire.send(post(key, body("demo:fault=stall_headers")))
                await relay.upstream.wait_request(asked)
                assert reserved < (await used(relay)).tokens - before.tokens < reserved + 60
                wire.finish()
                await settled(relay, asked + 1)


async def test_a_ceiling_that_answers_exceed_is_not_relied_upon() -> None:
    """The provider does not know it: what is reserved follows the answers that came."""
    async with running_relay() as relay:
        key = await a_key(relay, tokens_per_day=1000, max_output_tokens=10)
        long = "demo:deltas=400,interval_ms=0,fault=coalesced"
        assert (await ask(relay.port, key, body(long))).status == 200
        await settled(relay, 1)
        async with await Wire.open(relay.port) as wire:
            wire.send(post(key, body(long)))
            await relay.upstream.wait_request(1)
            assert (await ask(relay.port, key, body(long))).header("X-Relayd-Error") == "over_budget"
            wire.finish()


async def test_a_provider_is_asked_only_after_the_reservation_is_stored() -> None:
    """While the disk refuses, a client with bounds gets 503 and a client without them an answer."""
    async with running_relay() as relay:
        bounded, free = await a_key(relay, tokens_per_day=100_000), await a_key(relay, "free")
        connection = relay.state._database.connection
        assert isinstance(connection, SqliteConnection)
        files, connection._files = connection._files, []
        try:
            # As if the database had been moved: every transaction fails.
            reply = await ask(relay.port, bounded, body(QUICK))
            assert refusal(reply)[:2] == (503, "state_unavailable")
            assert reply.header("Retry-After") == "5"
            assert relay.upstream.requests == []
            assert (await ask(relay.port, free, body(QUICK))).lines[-1] == DONE
        finally:
            connection._files = files
        assert (await ask(relay.port, bounded, body(QUICK))).status == 200


# What is charged.


async def test_a_whole_answer_costs_what_the_provider_says() -> None:
    """Prompt, cached part and answer at their prices, in the record and in what the client used."""
    model = "demo:deltas=5,interval_ms=0,prompt_tokens=1000,cached_tokens=600,completion_tokens=50"
    prices = f'prices."{model}" = {{ input = 1.0, cached_input = 0.1, output = 10.0 }}'
    async with running_relay(toml=prices) as relay:
        await ask(relay.port, await a_key(relay, usd_per_day=1.0), body(model))
        record = await relay.record()
        assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (1000, 600, 50)
        assert (record.usage_source, record.cost_usd) == (UsageSource.PROVIDER, 0.00096)
        assert await used(relay) == Use(1, 1050, 960_000)


async def test_an_explicit_zero_is_zero() -> None:
    """A provider that reports no tokens is believed, and nothing is estimated."""
    model = "demo:deltas=5,interval_ms=0,prompt_tokens=0,completion_tokens=0"
    async with running_relay() as relay:
        await ask(relay.port, await a_key(relay, tokens_per_day=5000), body(model))
        record = await relay.record()
        assert (record.prompt_tokens, record.completion_tokens, record.usage_source) == (0, 0, "provider")
        assert await used(relay) == Use(1, 0, 0)


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("demo:fault=status,code=400", "upstream_rejected"),
        ("demo:fault=status,code=429", "upstream_limited"),
        ("demo:fault=status,code=401", "upstream_auth"),
        ("demo:fault=status,code=500", "upstream_failed"),
    ],
)
async def test_a_refusal_of_the_provider_costs_nothing(model: str, error: str) -> None:
    """Neither tokens nor money; the request itself stays counted."""
    async with running_relay() as relay:
        await ask(relay.port, await a_key(relay, tokens_per_day=100_000), body(model, max_tokens=50))
        record = await relay.record()
        assert record.error is not None
        assert (record.error.code, record.usage_source, record.prompt_tokens) == (error, None, None)
        assert await used(relay) == Use(1, 0, 0)


async def test_leaving_before_the_first_token_costs_the_prompt() -> None:
    """Not the whole reservation, and not nothing: the provider has read the prompt."""
    async with running_relay() as relay:
        key = await a_key(relay, tokens_per_day=100_000)
        payload = body("demo:fault=stall_first", max_tokens=5000, user="u" * 4000)
        async with await Wire.open(relay.port) as wire:
            wire.send(post(key, payload))
            await until(lambda: [s.record.connect_ms for s in relay.server.streams] not in ([], [None]))
            wire.finish()
            record = await relay.record()
        assert (record.outcome, record.usage_source, record.completion_tokens) == (
            *(Outcome.CLIENT_CLOSED, UsageSource.ESTIMATE),
            0,
        )
        assert 1000 <= (await used(relay)).tokens <= 1100


async def test_clients_that_leave_early_are_charged_about_what_they_used() -> None:
    """A hundred that leave before the last chunk: between 75 and 125 % of real usage, once it is known."""
    whole = "demo:deltas=40,interval_ms=0,prompt_tokens=100"
    left = "demo:deltas=40,interval_ms=0,prompt_tokens=100,fault=stall_mid,after=30"
    question = {"messages": [{"role": "user", "content": "word " * 80}]}
    # The model's name is part of the body; both are equally long.
    whole += ",id=" + "x" * (len(left) - len(whole) - 4)
    async with running_relay(server__max_streams_per_address=500) as relay:
        key = await a_key(relay, tokens_per_day=10_000_000)

        async def leave() -> None:
            async with await Wire.open(relay.port) as wire:
                wire.send(post(key, json.dumps({"model": left, **question}).encode()))
                reply = await wire.head()
                seen = 0
                while seen < 30:
                    seen += (await wire.first_piece(reply)).count(b"\n")
                wire.finish()

        assert (await ask(relay.port, key, json.dumps({"model": whole, **question}).encode())).status == 200
        await asyncio.gather(*(leave() for _ in range(100)))
        records = (await settled(relay, 101))[1:]
        assert {record.usage_source for record in records} == {UsageSource.ESTIMATE}
        charged = sum((record.prompt_tokens or 0) + (record.completion_tokens or 0) for record in records)
        assert 0.75 <= charged / (100 * 130) <= 1.25
        assert (await used(relay)).tokens == charged + 140


async def test_usage_of_a_client_without_bounds_is_counted_too() -> None:
    """Its requests wait for nothing, and what they use is known when a bound is set."""
    async with running_relay(toml=PRICES) as relay:
        key = await a_key(relay)
        await ask(relay.port, key, body(QUICK))
        await settled(relay, 1)
        assert await used(relay) == Use(1, 25, round(0.00007 * NANO))
        await relay.state.ring.set_client("web", {"tokens_per_month": 30}, caller=OPERATOR)
        assert (await ask(relay.port, key, body(QUICK, max_tokens=1))).header(
            "X-Relayd-Error"
        ) == "over_budget"
