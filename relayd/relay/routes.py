"""Several ways to providers: whose turn it is, and how long one that failed rests."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Self

from relayd.printable import printable
from relayd.relay.errors import RelayError
from relayd.relay.provider import Provider
from relayd.relay.refusals import Cools, UpstreamError

_log = logging.getLogger(__name__)

_FIRST_REST_S = 5.0
_LONGEST_REST_S = 300.0
_FIRST_QUOTA_REST_S = 60.0
_LONGEST_QUOTA_REST_S = 3600.0
_LONGEST_ASKED_REST_S = 600.0
_JITTER = 0.1
_MAX_MODELS = 256
"""Models of one route that rest at a time; clients choose their names."""


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


@dataclass(slots=True)
class Rest:
    """Why and until when a route, or one of its models, is not asked.

    When the time is over, one request tries it; the others wait for what that one brings.
    """

    error: RelayError
    until: float
    """Loop time."""
    strikes: int = 1
    """Failures in a row, those during a rest not counted."""
    on_trial: bool = False


class Standing(Enum):
    """Whether a route may be asked for a model."""

    READY = auto()
    DUE = auto()
    """It has rested: the next request tries it."""
    RESTING = auto()


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
        self.rest: Rest | None = None
        self.model_rests: dict[str, Rest] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def name(self) -> str:
        """The name of the route."""
        return self.options.name

    def serves(self, model: str | None) -> bool:
        """Return whether the route is for a model; any is for a request that names none."""
        models = self.options.models
        return model is None or not models or any(fnmatchcase(model, pattern) for pattern in models)

    def standing(self, model: str | None) -> Standing:
        """Return whether the route may be asked for a model now."""
        rests = self.rests(model)
        if not rests:
            return Standing.READY
        now = self._loop.time()
        is_over = all(rest.until <= now and not rest.on_trial for rest in rests)
        return Standing.DUE if is_over else Standing.RESTING

    def rests(self, model: str | None) -> list[Rest]:
        """Return what keeps the route from being asked for a model."""
        of_model = None if model is None else self.model_rests.get(model)
        return [rest for rest in (self.rest, of_model) if rest is not None]

    def rests_until(self, model: str | None) -> float:
        """Return the loop time at which the last of these ends."""
        return max(rest.until for rest in self.rests(model))

    def forgive(self) -> None:
        """Let nothing rest: the route has another key."""
        self.rest = None
        self.model_rests.clear()

    def answered(self, model: str | None, error: UpstreamError | None) -> None:
        """Take what a request brought: a success, a failure, or a refusal that says nothing of the route."""
        cools = Cools.NOTHING if error is None else error.cools
        if error is not None and cools is Cools.ROUTE:
            self.rest = self._strike(self.rest, error, self.name)
            return
        if self.rest is not None:
            self.rest = None
            _log.warning("route %s: answers again", self.name)
        if model is None:
            return
        said = f"{self.name}, model {printable(model)}"
        if error is not None and cools is not Cools.NOTHING:
            rest = self._strike(self.model_rests.pop(model, None), error, said)
            if len(self.model_rests) >= _MAX_MODELS:
                del self.model_rests[min(self.model_rests, key=lambda name: self.model_rests[name].until)]
            self.model_rests[model] = rest
        elif self.model_rests.pop(model, None) is not None:
            _log.warning("route %s: answers again", said)

    def _strike(self, rest: Rest | None, error: UpstreamError, said: str) -> Rest:
        now = self._loop.time()
        if rest is not None and rest.until > now:
            # It was sent before the rest began, or for want of a better route: one trouble, counted once.
            if error.wait_s is not None:
                rest.until = max(rest.until, now + min(error.wait_s, _LONGEST_ASKED_REST_S))
            return rest
        strikes = 1 if rest is None else rest.strikes + 1
        rest_s = _rest_s(error, strikes)
        _log.warning("route %s: rests for %.1f s: %s", said, rest_s, error.recorded)
        return Rest(error, now + rest_s, strikes)


def _rest_s(error: UpstreamError, strikes: int) -> float:
    """Return how long to rest: as the provider asks, else longer each time; never in step with others."""
    if error.wait_s is not None and error.cools is not Cools.QUOTA:
        rest_s = min(max(error.wait_s, 1.0), _LONGEST_ASKED_REST_S)
    else:
        is_quota = error.cools is Cools.QUOTA
        first_s = _FIRST_QUOTA_REST_S if is_quota else _FIRST_REST_S
        longest_s = _LONGEST_QUOTA_REST_S if is_quota else _LONGEST_REST_S
        rest_s = min(first_s * 2.0 ** min(strikes - 1, 16), longest_s)
    return rest_s * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311 - no secret


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
        self._trial: list[Rest] = []

    def __enter__(self) -> Self:
        self.route.requests += 1
        if self.route.standing(self.model) is Standing.DUE:
            self._trial = self.route.rests(self.model)
            for rest in self._trial:
                rest.on_trial = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for rest in self._trial:
            rest.on_trial = False
        if isinstance(error, UpstreamError):
            self.error = error
        if error is None or isinstance(error, RelayError):
            self.route.failures += self.error is not None and self.error.cools is not Cools.NOTHING
            self.route.answered(self.model, self.error)


def choose(routes: Iterable[Route], model: str | None, tried: Sequence[Route] = ()) -> Route | None:
    """Return the route whose turn it is; None: none may be asked that was not.

    One that has rested comes first, so that it is known whether it works again. The others take turns at
    random, by their weights.
    """
    ready: list[Route] = []
    for route in routes:
        if route in tried or not route.serves(model):
            continue
        standing = route.standing(model)
        if standing is Standing.DUE:
            return route
        if standing is Standing.READY:
            ready.append(route)
    if len(ready) <= 1:
        return ready[0] if ready else None
    return random.choices(ready, [route.options.weight for route in ready])[0]  # noqa: S311 - no secret
