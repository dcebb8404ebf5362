"""Whose turn it is among several routes, and how long one that failed is not asked."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

import pytest

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.provider import Provider
from relayd.relay.refusals import Cools, UpstreamError
from relayd.relay.routes import Attempt, Route, RouteOptions, choose

pytestmark = [pytest.mark.virtual_clock, pytest.mark.timeout(seconds=100_000)]

_STEP_S = 0.1
_FAILED = UpstreamError(ErrorCode.UPSTREAM_FAILED, "Down.", cools=Cools.ROUTE)
_REJECTED = UpstreamError(ErrorCode.UPSTREAM_REJECTED, "Wrong.")


def _limited(wait_s: float | None = None, cools: Cools = Cools.MODEL) -> UpstreamError:
    return UpstreamError(ErrorCode.UPSTREAM_LIMITED, "Slow down.", cools=cools, wait_s=wait_s)


def _route(name: str = "a", *, weight: int = 1, models: tuple[str, ...] = ()) -> Route:
    """A route that leads nowhere: here nothing is sent."""
    return Route(RouteOptions(name, "http://here", "key", weight, models), cast("Provider", None))


async def _ask(route: Route, model: str | None = "m", error: UpstreamError | None = None) -> None:
    """Ask a route, which answers or fails."""
    with suppress(UpstreamError), Attempt(route, model):
        if error is not None:
            raise error


async def _cooldown_s(route: Route, model: str | None = "m") -> float:
    """Wait until a route may be asked again; return how long that took."""
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    while choose([route], model) is None:  # noqa: ASYNC110 - the clock is virtual, and the time is what is measured
        await asyncio.sleep(_STEP_S)
    return loop.time() - began_at


def _turns(routes: Sequence[Route], model: str | None = "m", count: int = 200) -> Counter[str]:
    """Return how often each route was chosen."""
    chosen = (choose(routes, model) for _ in range(count))
    return Counter("none" if route is None else route.name for route in chosen)


async def test_weights_are_shares_of_the_requests() -> None:
    """Over many requests; a route that does not serve the model gets none."""
    routes = [_route("a", weight=1), _route("b", weight=3), _route("c", weight=9, models=("other-*", "x"))]
    turns = _turns(routes, count=4000)
    # 3000 expected, with a standard deviation of 27.
    assert abs(turns["b"] - 3000) < 270
    assert turns["a"] == 4000 - turns["b"]
    assert set(_turns(routes, "other-1")) == set(_turns(routes, None)) == {"a", "b", "c"}
    assert choose([routes[2]], "m") is None


async def test_a_failure_cools_a_route_longer_each_time() -> None:
    """Twice as long after each failed trial, up to five minutes, and from the start after an answer."""
    route = _route()
    expected_s = [5, 10, 20, 40, 80, 160, 300, 300]
    for lasts_s in expected_s:
        await _ask(route, error=_FAILED)
        assert lasts_s <= await _cooldown_s(route) <= lasts_s * 1.1 + _STEP_S
    await _ask(route)
    await _ask(route, error=_FAILED)
    assert 5 <= await _cooldown_s(route) <= 5.5 + _STEP_S
    assert (route.requests, route.failures) == (10, 9)


@pytest.mark.parametrize(
    ("asked_s", "lasts_s"), [(0.0, 1), (30.0, 30), (100_000.0, 600)], ids=["none", "some", "too long"]
)
async def test_a_limit_cools_as_long_as_the_provider_asks(asked_s: float, lasts_s: int) -> None:
    """Between a second and ten minutes, and that model only."""
    route = _route()
    await _ask(route, "m", _limited(asked_s))
    assert choose([route], "other") is route
    assert lasts_s <= await _cooldown_s(route) <= lasts_s * 1.1 + _STEP_S


async def test_a_used_up_quota_cools_for_minutes_whatever_the_provider_asks() -> None:
    """It does not come back by waiting a second."""
    route = _route()
    for lasts_s in (60, 120):
        await _ask(route, error=_limited(1.0, Cools.QUOTA))
        assert lasts_s <= await _cooldown_s(route) <= lasts_s * 1.1 + _STEP_S


async def test_failures_at_once_count_once() -> None:
    """Fifty requests that were under way when a route failed do not make its cool-down fifty times as long.

    A longer wait that one of them was asked for counts.
    """
    route = _route()
    for _ in range(50):
        await _ask(route, error=_FAILED)
    assert 5 <= await _cooldown_s(route) <= 5.5 + _STEP_S
    limited = _route()
    for wait_s in (10.0, 40.0, 20.0):
        await _ask(limited, error=_limited(wait_s))
    assert 40 <= await _cooldown_s(limited) <= 44 + _STEP_S


async def test_after_the_cool_down_one_request_tries_the_route() -> None:
    """The others go elsewhere until that one has an answer; then all may come."""
    routes = failed, other = _route("failed"), _route("other")
    await _ask(failed, error=_FAILED)
    assert choose(routes, "m") is other
    await _cooldown_s(failed)
    with Attempt(failed, "m"):
        assert _turns(routes) == {"other": 200}
    assert set(_turns(routes)) == {"failed", "other"}


async def test_a_trial_that_brings_nothing_is_made_again() -> None:
    """Its client left, say: the next request tries the route."""
    routes = failed, other = _route("failed"), _route("other")
    await _ask(failed, error=_FAILED)
    await _cooldown_s(failed)

    async def hang() -> None:
        with Attempt(failed, "m"):
            await asyncio.Event().wait()

    trial = asyncio.create_task(hang())
    await asyncio.sleep(1)
    assert choose(routes, "m") is other
    trial.cancel()
    await asyncio.wait([trial])
    assert choose(routes, "m") is failed


async def test_a_client_s_own_fault_says_nothing_of_the_route() -> None:
    """Its upload stood still, say: the cool-down stays, and the next request tries the route."""
    route = _route()
    await _ask(route, error=_FAILED)
    await _cooldown_s(route)
    cooldown = route.cooldown
    with suppress(RelayError), Attempt(route, "m"):
        raise RelayError(ErrorCode.BAD_REQUEST, "The body did not arrive.")
    assert cooldown is not None
    assert (route.cooldown, cooldown.on_trial, route.failures) == (cooldown, False, 1)


async def test_a_request_that_none_can_take_over_is_no_trial_if_another_route_works() -> None:
    """An upload, which cannot be sent twice."""
    routes = failed, other = _route("failed"), _route("other")
    await _ask(failed, error=_FAILED)
    await _cooldown_s(failed)
    assert choose(routes, "m", cautious=True) is other
    assert choose([failed], "m", cautious=True) is failed
    assert choose(routes, "m") is failed


async def test_a_refusal_of_the_request_itself_is_an_answer() -> None:
    """The route works: nothing cools down, and a cool-down ends."""
    route = _route()
    await _ask(route, error=_REJECTED)
    assert (choose([route], "m"), route.failures) == (route, 0)
    await _ask(route, error=_FAILED)
    await _cooldown_s(route)
    await _ask(route, error=_REJECTED)
    assert route.cooldown is None


async def test_an_answer_that_was_under_way_before_the_failure_proves_nothing() -> None:
    """The cool-down goes on."""
    route = _route()
    with Attempt(route, "m"):
        await _ask(route, error=_FAILED)
    assert choose([route], "m") is None


async def test_a_model_cools_down_by_itself_and_answers_by_itself() -> None:
    """Another model's answer does not end it; a failure of the whole route is one of each model."""
    route = _route()
    await _ask(route, "m", _limited(10.0))
    await _ask(route, "other")
    assert choose([route], "m") is None
    await _ask(route, "other", _FAILED)
    assert choose([route], "other") is None
    await _cooldown_s(route)
    await _ask(route)
    assert (route.cooldown, route.model_cooldowns) == (None, {})


async def test_the_models_that_cool_down_are_bounded() -> None:
    """Clients choose their names; the oldest are forgotten."""
    route = _route()
    for number in range(1000):
        await _ask(route, f"m{number}", _limited(100.0))
    assert len(route.model_cooldowns) == 256
    assert choose([route], "m0") is route
    assert choose([route], "m999") is None


async def test_the_log_says_when_a_cool_down_begins_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    """Once each, with the reason, and no client can write into it."""
    caplog.set_level(logging.WARNING)
    route = _route()
    for _ in range(3):
        await _ask(route, error=_FAILED)
    await _cooldown_s(route)
    await _ask(route)
    await _ask(route, "m\nx", _limited(10.0))
    assert [re.sub(r"[\d.]+ s", "N s", message) for message in caplog.messages] == [
        "route a: cools down for N s: Down.",
        "route a: answers again",
        "route a, model m\\nx: cools down for N s: Slow down.",
    ]
