"""Several routes over real connections: another one takes over before the first byte, and never later."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.routes import Route, RouteOptions
from relayd.relay.upstream import Upstream, UpstreamOptions, UpstreamRequest
from tests.relay.harness import (
    BODY,
    CHUNKED_HEAD,
    FINISH,
    STREAM_DONE,
    Break,
    PlayedProvider,
    Step,
    answer,
    chunked,
    delta,
    error,
    http,
    running_provider,
)
from tests.wire import HOST, PATIENCE_S, until

_WHOLE = answer(delta("hi"), FINISH + STREAM_DONE)
_REFUSED: list[Step] = []
"""Stands for a provider that refuses connections."""
_DOWN = [error(500, "Down.")]
_KEYS = ("sk-key-of-route-a", "sk-key-of-route-b")


class _Routes:
    """Two routes and what they lead to."""

    def __init__(self, upstream: Upstream, providers: Sequence[PlayedProvider]) -> None:
        self.upstream = upstream
        self.a, self.b = providers

    @property
    def first(self) -> Route:
        """Route `a`."""
        return self.upstream.routes[0]

    def cool_until(self, loop_time: float) -> None:
        """Move the end of the cool-downs of `a`, so that no test depends on how long it takes."""
        cooldowns = [self.first.cooldown, *self.first.model_cooldowns.values()]
        for cooldown in filter(None, cooldowns):
            cooldown.until = loop_time

    async def ask(self, model: str = "demo") -> tuple[bytes, list[str | None]]:
        """Return the bytes of one completion, and the routes that were asked, in order."""
        asked: list[str | None] = []
        async with asyncio.timeout(PATIENCE_S):
            _, body = await self.upstream.open(BODY, asked.append, model)
            try:
                return await body.read(1 << 20), asked
            finally:
                body.close()

    async def send(self, request: UpstreamRequest) -> tuple[int, str | None]:
        """Return the status of one response, and the route that gave it."""
        response = await asyncio.wait_for(self.upstream.send(request, lambda _route: None), PATIENCE_S)
        response.body.close()
        return response.status, response.route


@asynccontextmanager
async def _routes(
    *a: Sequence[Step],
    b: Sequence[Sequence[Step]] = (_WHOLE,),
    weights: tuple[int, int] = (10**9, 1),
    max_retries: int = 0,
    max_retry_wait_s: float = 5.0,
) -> AsyncIterator[_Routes]:
    """Run two providers and the routes to them.

    Args:
        a: the replies of the first; `_REFUSED`: it refuses connections.
        b: those of the second.
        weights: of the routes; by default the first is asked, unless it cools down.
        max_retries: of a request that no other route takes over.
        max_retry_wait_s: as in the configuration.
    """
    async with AsyncExitStack() as stack:
        providers = [await stack.enter_async_context(running_provider(*replies)) for replies in (a, b)]
        if a[0] is _REFUSED:
            # Bound, but not listening.
            deaf = stack.enter_context(socket.socket())
            deaf.bind((HOST, 0))
            providers[0].port = deaf.getsockname()[1]
        options = UpstreamOptions("http://unused", max_retries=max_retries, max_retry_wait_s=max_retry_wait_s)
        upstream = Upstream("", options, _options(providers, *weights))
        stack.push_async_callback(upstream.close)
        yield _Routes(upstream, providers)


def _options(providers: Sequence[PlayedProvider], weight_a: int = 1, weight_b: int = 1) -> list[RouteOptions]:
    a, b = (provider.base_url for provider in providers)
    return [RouteOptions("a", a, _KEYS[0], weight_a), RouteOptions("b", b, _KEYS[1], weight_b)]


_ANSWERED = delta("hi") + FINISH + STREAM_DONE


@pytest.mark.parametrize(
    ("reply", "cools", "of_model"),
    [
        pytest.param([error(401, "Bad key.")], True, False, id="401"),
        pytest.param(_DOWN, True, False, id="500"),
        pytest.param([http(502, b"<html>")], True, False, id="502"),
        pytest.param([http(302, b"", "Location: /")], True, False, id="302"),
        pytest.param(_REFUSED, True, False, id="refused connection"),
        pytest.param([error(429, "Slow down.", "Retry-After: 30")], False, True, id="429"),
        pytest.param([error(429, "Pay.", code="insufficient_quota")], False, True, id="quota"),
        pytest.param([error(402, "Pay.")], False, True, id="402"),
        pytest.param([error(403, "Not this model.")], False, True, id="403"),
        pytest.param([error(404, "No such model.", code="model_not_found")], False, True, id="404"),
    ],
)
@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "v1"])
async def test_a_route_that_fails_cools_down_and_the_next_takes_over(
    reply: list[Step], *, cools: bool, of_model: bool, is_chat: bool
) -> None:
    """The client notices nothing; the next request does not ask the route, or not for this model."""
    post = UpstreamRequest("POST", "/chat/completions", body=BODY, model="demo")
    async with _routes(reply, max_retries=2) as routes:
        for _ in range(3):
            if is_chat:
                said, asked = await routes.ask()
                assert (said, asked[-1]) == (_ANSWERED, "b")
            else:
                assert await routes.send(post) == (200, "b")
            routes.cool_until(math.inf)
        assert (routes.first.cooldown is not None) == cools
        assert list(routes.first.model_cooldowns) == (["demo"] if of_model else [])
        sent = len(routes.a.requests)
        await routes.ask("other")
        assert len(routes.a.requests) == sent + of_model
        assert (routes.first.requests, routes.first.failures) == (1 + of_model, 1 + of_model)
    assert sent == (reply is not _REFUSED)


async def test_the_other_route_is_asked_at_its_address_with_its_key() -> None:
    """Each with its own, and no refusal shows either."""
    quoting = [error(500, f"{_KEYS[0]} and {_KEYS[1]}")]
    async with _routes(quoting, b=[quoting]) as routes:
        with pytest.raises(RelayError) as failed:
            await routes.ask()
    for provider, key in zip((routes.a, routes.b), _KEYS, strict=True):
        (request,) = provider.requests
        assert f"Bearer {key}\r\n".encode() in request
        assert f"Host: {HOST}:{provider.port}\r\n".encode() in request
    assert failed.value.message == "The provider failed (500): [key] and [key]"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ([error(400, "Wrong.")], ErrorCode.UPSTREAM_REJECTED),
        ([error(404, "No such response.")], ErrorCode.UPSTREAM_REJECTED),
        ([http(200, b'{"error":"No."}')], ErrorCode.UPSTREAM_FAILED),
        ([Break.CLOSE], ErrorCode.UPSTREAM_FAILED),
        ([Break.RESET], ErrorCode.UPSTREAM_FAILED),
    ],
    ids=str,
)
async def test_what_another_route_would_not_mend_or_could_cost_twice_is_told(
    reply: list[Step], code: ErrorCode
) -> None:
    """A wrong request, and one that the provider may have read without an answer."""
    async with _routes(reply) as routes:
        with pytest.raises(RelayError) as failed:
            await routes.ask()
        assert failed.value.code is code
        assert routes.b.requests == []


@pytest.mark.parametrize("status", [408, 409])
async def test_a_trouble_of_one_request_is_taken_over_and_cools_nothing(status: int) -> None:
    """What the SDK would try again with a lone provider."""
    async with _routes([error(status, "Busy.")], max_retries=2) as routes:
        for _ in range(2):
            assert await routes.ask() == (_ANSWERED, ["a", "b"])
        assert routes.first.failures == 0


async def test_no_route_takes_over_after_the_first_byte() -> None:
    """An answer that breaks off is the client's to ask for again."""
    async with _routes([CHUNKED_HEAD, chunked(delta("hi")), Break.RESET]) as routes:
        with pytest.raises(Exception, match="closed the connection"):
            await routes.ask()
        assert routes.b.requests == []


async def test_the_last_route_is_retried_as_a_lone_provider_is() -> None:
    """A route that another can take over from is asked once, without a wait."""
    async with _routes(_DOWN, b=[_DOWN, _WHOLE], max_retries=2) as routes:
        said, asked = await routes.ask()
        assert (said, asked) == (_ANSWERED, ["a", "b", "b"])
        assert len(routes.a.requests) == 1


async def test_if_all_routes_cool_down_the_one_that_is_through_first_is_asked() -> None:
    """A relay refuses nothing by itself; an answer ends the cool-down."""
    limits = [error(429, "Slow down.", f"Retry-After: {wait_s}") for wait_s in (300, 100)]
    async with _routes([limits[0]], b=[[limits[1]], [limits[1]], _WHOLE]) as routes:
        for sent_to_b in (1, 2):
            with pytest.raises(RelayError) as failed:
                await routes.ask()
            assert (failed.value.code, failed.value.retry_after_s) == (ErrorCode.UPSTREAM_LIMITED, 100)
            assert (len(routes.a.requests), len(routes.b.requests)) == (1, sent_to_b)
        assert (await routes.ask())[0] == _ANSWERED
        assert routes.upstream.routes[1].model_cooldowns == {}


async def test_after_the_cool_down_one_of_fifty_requests_tries_the_route() -> None:
    """The others do not wait for it; when it has answered, the route is asked as before."""
    hold = asyncio.Event()
    async with _routes(_DOWN, [hold, *_WHOLE]) as routes:
        await routes.ask()
        routes.cool_until(0.0)
        asked = [asyncio.create_task(routes.ask()) for _ in range(50)]
        await until(lambda: sum(task.done() for task in asked) == 49)
        hold.set()
        turns = Counter(routes_asked[-1] for _, routes_asked in await asyncio.gather(*asked))
        assert turns == {"b": 49, "a": 1}
        assert (await routes.ask())[1] == ["a"]
    assert len(routes.a.requests) == 3


async def test_a_trial_that_fails_is_taken_over() -> None:
    """Its client notices nothing, and the route cools down again."""
    async with _routes(_DOWN) as routes:
        await routes.ask()
        routes.cool_until(0.0)
        assert (await routes.ask()) == (_ANSWERED, ["a", "b"])
        routes.cool_until(math.inf)
        assert (await routes.ask()) == (_ANSWERED, ["b"])
        cooldown = routes.first.cooldown
    assert cooldown is not None
    assert cooldown.strikes == 2


async def test_requests_are_shared_by_weight() -> None:
    """Over many requests."""
    async with _routes(_WHOLE, weights=(1, 3)) as routes:
        for _ in range(100):
            await routes.ask()
        # 75 expected, with a standard deviation of 4.3.
        assert 45 < len(routes.b.requests) < 100
        assert len(routes.a.requests) + len(routes.b.requests) == 100


async def test_a_response_that_is_stored_stays_with_its_route() -> None:
    """That route is asked whatever it did before, and none takes over."""
    get = UpstreamRequest("GET", "/responses/resp_1", route="a")
    async with _routes(_DOWN, _DOWN, [http(200, b"{}")]) as routes:
        await routes.ask()
        assert await routes.send(get) == (500, "a")
        assert await routes.send(get) == (200, "a")
        assert len(routes.b.requests) == 1
        with pytest.raises(RelayError, match="the route gone of this relay, which is no longer configured"):
            await routes.send(UpstreamRequest("GET", "/responses/resp_1", route="gone"))


async def test_a_model_that_no_route_serves_is_refused() -> None:
    """Without asking any."""
    async with _routes(_WHOLE) as routes:
        routes.upstream.configure(
            "",
            UpstreamOptions("http://unused"),
            [RouteOptions("a", routes.a.base_url, "k", models=("gpt-*",))],
        )
        with pytest.raises(RelayError, match="No route of this relay serves the model 'demo'") as refused:
            await routes.ask()
        assert refused.value.code is ErrorCode.MODEL_NOT_ALLOWED
        await routes.ask("gpt-5")


def _models(*names: str) -> list[Step]:
    return [http(200, json.dumps({"data": [{"id": name, "object": "model"} for name in names]}).encode())]


_LIST = UpstreamRequest("GET", "/models?limit=100")


async def _listed(routes: _Routes) -> list[str]:
    response = await asyncio.wait_for(routes.upstream.send(_LIST, lambda _route: None), PATIENCE_S)
    document = json.loads(await response.body.read(1 << 20))
    assert response.body.header(b"content-type") == "application/json"
    response.body.close()
    return [entry["id"] for entry in document["data"]]


async def test_the_models_of_all_providers_are_one_list() -> None:
    """Each provider gives those that its routes serve; one that fails is left out."""
    a, b = _models("gpt-5", "o3", "both"), _models("llama", "both", "secret")
    async with _routes(a, a, _DOWN, b=[b]) as routes:
        assert sorted(await _listed(routes)) == ["both", "gpt-5", "llama", "o3", "secret"]
        options = [
            RouteOptions("a", routes.a.base_url, _KEYS[0]),
            RouteOptions("b", routes.b.base_url, _KEYS[1], models=("llama*", "both")),
        ]
        routes.upstream.configure("", UpstreamOptions("http://unused"), options)
        assert sorted(await _listed(routes)) == ["both", "gpt-5", "llama", "o3"]
        assert sorted(await _listed(routes)) == ["both", "llama"]
    assert routes.a.requests[0].startswith(b"GET /v1/models?limit=100 HTTP/1.1\r\n")


@pytest.mark.parametrize(("first", "status"), [(_DOWN, 500), ([error(401, "No.")], 401)], ids=["500", "401"])
async def test_if_no_provider_lists_its_models_the_first_failure_is_told(
    first: list[Step], status: int
) -> None:
    """As it came."""
    async with _routes(first, b=[_DOWN]) as routes:
        assert (await routes.send(_LIST))[0] == status


async def test_another_key_of_a_provider_lists_its_models_if_one_fails() -> None:
    """A dead key, or a list that breaks off, hides no provider."""
    broken: list[Step] = [CHUNKED_HEAD, Break.CLOSE]
    async with _routes([error(401, "Bad key.")], broken, _models("gpt-5"), b=[_models("llama")]) as routes:
        options = [
            *(
                RouteOptions(f"a{i}", routes.a.base_url, f"sk-key-{i}", weight=10 ** (9 * (2 - i)))
                for i in range(3)
            ),
            RouteOptions("b", routes.b.base_url, _KEYS[1]),
        ]
        routes.upstream.configure("", UpstreamOptions("http://unused"), options)
        assert sorted(await _listed(routes)) == ["gpt-5", "llama"]
    assert [b"sk-key-%d" % i in request for i, request in enumerate(routes.a.requests)] == [True] * 3


async def test_a_list_of_models_that_cannot_be_read_is_a_failure() -> None:
    """Broken off, or something else."""
    async with _routes([http(200, b"<html>")], b=[[CHUNKED_HEAD, Break.CLOSE]]) as routes:
        with pytest.raises(RelayError, match="The provider's list of models cannot be read"):
            await routes.send(_LIST)


@pytest.mark.parametrize("has_begun", [False, True])
async def test_an_upload_is_taken_over_only_before_it_has_begun(*, has_begun: bool) -> None:
    """What was read from the client is gone."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"body"

    async with _routes(_DOWN if has_begun else _REFUSED, b=[[http(200, b"{}")]]) as routes:
        upload = UpstreamRequest("POST", "/files", body=pieces(), content_length=4)
        assert await routes.send(upload) == ((500, "a") if has_begun else (200, "b"))
        assert len(routes.b.requests) == (not has_begun)


async def test_other_keys_and_routes_hold_from_the_next_request_on() -> None:
    """A new key ends the cool-down; a stream of a route that is gone ends well, then its connection."""
    go = asyncio.Event()
    streaming: list[Step] = [
        CHUNKED_HEAD,
        chunked(delta("hi")),
        go,
        chunked(FINISH + STREAM_DONE),
        b"0\r\n\r\n",
    ]
    async with _routes([error(401, "No.")], streaming, b=[_WHOLE]) as routes:
        upstream, options = routes.upstream, UpstreamOptions("http://unused")
        await routes.ask()
        a = RouteOptions("a", routes.a.base_url, "sk-a-new-key-of-route-a")
        upstream.configure("", options, [a])
        assert routes.first.cooldown is None
        _, body = await upstream.open(BODY, lambda _route: None, "demo")
        assert b"Bearer sk-a-new-key-of-route-a\r\n" in routes.a.requests[-1]
        upstream.configure("", options, [RouteOptions("a", routes.b.base_url, "k")])
        assert (await routes.ask()) == (_ANSWERED, ["a"])
        go.set()
        assert await asyncio.wait_for(body.read(1 << 20), PATIENCE_S) == _ANSWERED
        body.close()
        await routes.a.relay_left()
        # Back to one provider, without routes.
        upstream.configure("sk-lone", UpstreamOptions(routes.b.base_url), [])
        assert (await routes.ask()) == (_ANSWERED, [None])
        assert b"Bearer sk-lone\r\n" in routes.b.requests[-1]
