"""The provider's keys and addresses: which of them requests go to now, and which cool down."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from relayd.admin.schema import RouteState, RouteStatus, epoch_s
from tui.model.units import countdown


@dataclass(frozen=True, slots=True)
class Cooling:
    """A route, or one model of a route, that is not asked for a while."""

    route: str
    model: str | None
    left_s: float


def cooling(routes: Iterable[RouteStatus], now_s: float) -> list[Cooling]:
    """Return what cools down now, the longest first."""
    found = []
    for route in routes:
        if route.state is RouteState.COOLING:
            found.append(Cooling(route.name, None, _left_s(route.until, now_s)))
        found += [Cooling(route.name, part.model, _left_s(part.until, now_s)) for part in route.models]
    return sorted(found, key=lambda one: -one.left_s)


def in_words(route: RouteStatus, now_s: float) -> str:
    """Return where a route leads, or why and how long it is not asked."""
    words = []
    if route.state is RouteState.COOLING:
        left_s = _left_s(route.until, now_s)
        words.append(f"tried again in {countdown(left_s)}" if left_s > 0 else "tried with the next request")
    words += [f"not for {part.model} for {countdown(_left_s(part.until, now_s))}" for part in route.models]
    if route.error is not None and words:
        words.append(route.error)
    return " · ".join(words or [route.base_url])


def _left_s(until: str | None, now_s: float) -> float:
    return 0.0 if until is None else epoch_s(until) - now_s
