"""Several ways to providers: whose turn it is, and how long one that failed is not asked."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Self

from relayd.printable import printable
from relayd.relay.errors import RelayError
from relayd.relay.provider import Provider
from relayd.relay.refusals import Cools, UpstreamError
from relayd.state.bounds import allows

_log = logging.getLogger(__name__)

_FIRST_COOLDOWN_S = 5.0
_LONGEST_COOLDOWN_S = 300.0
_FIRST_QUOTA_COOLDOWN_S = 60.0
_LONGEST_QUOTA_COOLDOWN_S = 3600.0
_LONGEST_ASKED_COOLDOWN_S = 600.0
_JITTER = 0.1
_MAX_MODELS = 256
"""Models of one route that cool down at a time; clients choose their names."""


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """One of several ways to a provider.

    Args:
        name: for the log, status and metrics.
        base_url: of its provider's API.
        provider_key: sent as the bearer token.
        weight: its share of the requests, beside those of the other routes.
        models: globs of the models that it serves; empty: all.
    """

    name: str
    base_url: str
    provider_key: str = field(repr=False)
    weight: int = 1
    models: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Cooldown:
    """Why and until when a route, or one of its models, is not asked.

    When the time is over, one request tries it; the others wait for what that one brings.
    """

    error: RelayError
    until: float
    """Loop time."""
    strikes: int = 1
    """Failures in a row, those while it cools down not counted."""
    on_trial: bool = False


class Readiness(Enum):
    """Whether a route may be asked for a model."""

    READY = auto()
    DUE = auto()
    """The time is over: the next request tries it."""
    COOLING = auto()


class Route:
    """One way to a provider, and what keeps it from being asked.

    Args:
        options: its name, weight and models.
        provider: what it leads to.
    """

    def __init__(self, options: RouteOptions, provider: Provider) -> None:
        self.options = options
        self.provider = provider
        self.requests = 0
        self.failures = 0
        self.cooldown: Cooldown | None = None
        self.model_cooldowns: dict[str, Cooldown] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def name(self) -> str:
        """The name of the route."""
        return self.options.name

    def serves(self, model: str | None) -> bool:
        """Return whether the route is for a model; any is for a request that names none."""
        return model is None or allows(self.options.models, model)

    def readiness(self, model: str | None) -> Readiness:
        """Return whether the route may be asked for a model now."""
        cooldowns = self.cooldowns(model)
        if not cooldowns:
            return Readiness.READY
        now = self._loop.time()
        is_over = all(cooldown.until <= now and not cooldown.on_trial for cooldown in cooldowns)
        return Readiness.DUE if is_over else Readiness.COOLING

    def cooldowns(self, model: str | None) -> list[Cooldown]:
        """Return what keeps the route from being asked for a model."""
        of_model = None if model is None else self.model_cooldowns.get(model)
        return [cooldown for cooldown in (self.cooldown, of_model) if cooldown is not None]

    def cools_until(self, model: str | None) -> float:
        """Return the loop time at which the last of these ends."""
        return max(cooldown.until for cooldown in self.cooldowns(model))

    def forgive(self) -> None:
        """End every cool-down: the route has another key."""
        self.cooldown = None
        self.model_cooldowns.clear()

    def answered(self, model: str | None, error: UpstreamError | None, met: Sequence[Cooldown]) -> None:
        """Take what a request brought: an answer, or a failure.

        Args:
            model: that was asked for, if any.
            error: the failure; None, or one that cools nothing, is an answer.
            met: the cool-downs in spite of which it was sent. An answer ends no others: it may have been
                on its way before they began.
        """
        cools = Cools.NOTHING if error is None else error.cools
        if error is not None and cools is Cools.ROUTE:
            self.cooldown = self._strike(self.cooldown, error, self.name)
            return
        if self.cooldown is not None and self.cooldown in met:
            self.cooldown = None
            _log.warning("route %s: answers again", self.name)
        if model is None:
            return
        of_model = self.model_cooldowns.get(model)
        said = f"{self.name}, model {printable(model)}"
        if error is not None and cools is not Cools.NOTHING:
            if of_model is None and len(self.model_cooldowns) >= _MAX_MODELS:
                del self.model_cooldowns[next(iter(self.model_cooldowns))]
            self.model_cooldowns[model] = self._strike(of_model, error, said)
        elif of_model is not None and of_model in met:
            del self.model_cooldowns[model]
            _log.warning("route %s: answers again", said)

    def _strike(self, cooldown: Cooldown | None, error: UpstreamError, said: str) -> Cooldown:
        now = self._loop.time()
        if cooldown is not None and cooldown.until > now:
            # It was sent before that began, or for want of a better route: one trouble, counted once.
            if error.wait_s is not None:
                cooldown.until = max(cooldown.until, now + min(error.wait_s, _LONGEST_ASKED_COOLDOWN_S))
            return cooldown
        strikes = 1 if cooldown is None else cooldown.strikes + 1
        cooldown_s = _cooldown_s(error, strikes)
        _log.warning("route %s: cools down for %.1f s: %s", said, cooldown_s, error.recorded)
        return Cooldown(error, now + cooldown_s, strikes)


def _cooldown_s(error: UpstreamError, strikes: int) -> float:
    """Return how long: as the provider asks, else longer each time; never in step with other relays."""
    if error.wait_s is not None and error.cools is not Cools.QUOTA:
        cooldown_s = min(max(error.wait_s, 1.0), _LONGEST_ASKED_COOLDOWN_S)
    else:
        is_quota = error.cools is Cools.QUOTA
        first_s = _FIRST_QUOTA_COOLDOWN_S if is_quota else _FIRST_COOLDOWN_S
        longest_s = _LONGEST_QUOTA_COOLDOWN_S if is_quota else _LONGEST_COOLDOWN_S
        cooldown_s = min(first_s * 2.0 ** min(strikes - 1, 16), longest_s)
    return cooldown_s * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311 - no secret


class Attempt:
    """One request to one route; a context in which it is made.

    Args:
        route: the route.
        model: that is asked for, if any.
        tried: the routes that this request has asked before.
    """

    def __init__(self, route: Route, model: str | None, tried: Sequence[Route] = ()) -> None:
        self.route = route
        self.model = model
        self.tried = (*tried, route)
        self.error: UpstreamError | None = None
        """How the provider refused, where that is not raised."""
        self._met: list[Cooldown] = []
        self._is_trial = False

    def __enter__(self) -> Self:
        route = self.route
        route.requests += 1
        self._met = route.cooldowns(self.model)
        self._is_trial = route.readiness(self.model) is Readiness.DUE
        if self._is_trial:
            for cooldown in self._met:
                cooldown.on_trial = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_trial:
            for cooldown in self._met:
                cooldown.on_trial = False
        if isinstance(error, UpstreamError):
            self.error = error
        # Another error is the client's own, or relayd's: it says nothing of the route.
        if error is None or isinstance(error, UpstreamError):
            self.route.failures += self.error is not None and self.error.cools is not Cools.NOTHING
            self.route.answered(self.model, self.error, self._met)


def choose(
    routes: Iterable[Route], model: str | None, tried: Sequence[Route] = (), *, cautious: bool = False
) -> Route | None:
    """Return the route whose turn it is; None: none may be asked that was not.

    One whose cool-down is over comes first, so that it is known whether it works again. The others take
    turns at random, by their weights.

    Args:
        routes: all there are.
        model: that is asked for, if any.
        tried: those that failed the request already.
        cautious: no other route could take over, so that one that may not work is the last choice.
    """
    ready: list[Route] = []
    due: list[Route] = []
    for route in routes:
        if route in tried or not route.serves(model):
            continue
        readiness = route.readiness(model)
        if readiness is not Readiness.COOLING:
            (due if readiness is Readiness.DUE else ready).append(route)
    if due and not (cautious and ready):
        return due[0]
    if len(ready) <= 1:
        return ready[0] if ready else None
    return random.choices(ready, [route.options.weight for route in ready])[0]  # noqa: S311 - no secret
