"""The way to the provider, or to several: asks one route, and takes over if that fails before it answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.provider import Provider, UpstreamAnswer, UpstreamOptions, UpstreamRequest, UpstreamResponse
from relayd.relay.provider_errors import load_json
from relayd.relay.redact import Redactor
from relayd.relay.refusals import UpstreamError
from relayd.relay.routes import Attempt, Route, RouteOptions, choose
from relayd.relay.transport import ConnectionBroken, IncomingResponse

__all__ = ["Upstream", "UpstreamAnswer", "UpstreamOptions", "UpstreamRequest", "UpstreamResponse"]

OnConnected = Callable[[str | None], None]
"""Called when a request has its connection, again for each attempt, with the name of the route, if any."""
_LIST_TIMEOUT_S = 10.0
_MAX_LIST_BYTES = 8 << 20

Models = dict[str, dict[str, Any]]
"""Entries of a list of models, by their ids."""


class Upstream:
    """The provider, shared by every stream; where there are routes, several.

    Args:
        provider_key: sent as the bearer token if there are no routes; never shown.
        options: how it is reached; routes have addresses of their own.
        routes: empty: there is the one provider of `options`, which never cools down.
    """

    def __init__(
        self, provider_key: str, options: UpstreamOptions, routes: Sequence[RouteOptions] = ()
    ) -> None:
        self.redact = Redactor("")
        self.routes: Sequence[Route] = ()
        self._only: Provider | None = None
        self._retired: list[Provider] = []
        self.configure(provider_key, options, routes)

    def configure(
        self, provider_key: str, options: UpstreamOptions, routes: Sequence[RouteOptions] = ()
    ) -> None:
        """Use other keys, limits and routes for requests from now on; open streams keep what they have.

        The address and proxy of `options` stay those of the start.
        """
        before = {route.name: route for route in self.routes}
        self.routes = [self._configured(before, route, options) for route in routes]
        if routes:
            only, self._only = self._only, None
            self._retire(only)
        elif self._only is None:
            self._only = Provider(provider_key, options, self.redact)
        else:
            self._only.configure(provider_key, options)
        for gone in before.values():
            self._retire(gone.provider)

    def _configured(self, before: dict[str, Route], wanted: RouteOptions, options: UpstreamOptions) -> Route:
        """Return a route as it is wanted: the one there is, taken from `before`, if its address stays."""
        options = replace(options, base_url=wanted.base_url)
        route = before.get(wanted.name)
        if route is None or route.options.base_url != wanted.base_url:
            return Route(wanted, Provider(wanted.provider_key, options, self.redact))
        del before[wanted.name]
        if route.options.provider_key != wanted.provider_key:
            route.forgive()
        route.options = wanted
        route.provider.configure(wanted.provider_key, options)
        return route

    def _retire(self, provider: Provider | None) -> None:
        self._retired = [old for old in self._retired if not old.is_closed]
        if provider is not None:
            provider.retire()
            self._retired.append(provider)

    async def close(self) -> None:
        """Close every connection."""
        providers = [*(route.provider for route in self.routes), *self._retired]
        if self._only is not None:
            providers.append(self._only)
        await asyncio.gather(*(provider.close() for provider in providers))

    async def open(self, body: bytes, on_connected: OnConnected, model: str | None = None) -> UpstreamAnswer:
        """Ask for one completion; return when its stream begins. The caller closes the answer's body.

        A passing trouble is waited for as the SDK does, but only if no other route can take over.

        Args:
            body: the request as JSON, with `stream: true` in it.
            on_connected: called when the request has its connection, again for each attempt.
            model: that the body asks for.

        Raises:
            RelayError: any of the `upstream_...` codes, with the provider's words made fit to show, or
                `model_not_allowed` if no route serves the model.
        """
        if self._only is not None:
            return await self._only.open(body, partial(on_connected, None))
        attempt = self._first(model)
        while True:
            route = attempt.route
            is_last = choose(self.routes, model, attempt.tried) is None
            try:
                with attempt:
                    return await route.provider.open(body, partial(on_connected, route.name), retry=is_last)
            except UpstreamError as error:
                following = self._following(attempt, error)
                if following is None:
                    raise
                attempt = following

    async def send(self, request: UpstreamRequest, on_connected: OnConnected) -> UpstreamResponse:
        """Send a request as it is, to each route at most once; return when the head of its response is here.

        Of a refusal the body is here, too. Once a body in pieces has begun, no route takes over.

        Raises:
            RelayError: there was no response, or no route serves the model.
            Exception: what the body raised.
        """
        if self._only is not None:
            return await self._only.send(request, partial(on_connected, None))
        if request.route is None and asks_for_models(request) and not self._is_uniform:
            return await self._list_models(request, on_connected)
        body = request.body
        pieces = None if isinstance(body, bytes) else _Pieces(body)
        if pieces is not None:
            request = replace(request, body=pieces)
        attempt = self._first(request.model, request.route, cautious=pieces is not None)
        while True:
            route, response = attempt.route, None
            try:
                with attempt:
                    response = await route.provider.send(request, partial(on_connected, route.name))
                    attempt.error = response.error
            except UpstreamError:
                pass
            has_begun = pieces is not None and pieces.have_begun
            following = None
            if attempt.error is not None and not has_begun and request.route is None:
                following = self._following(attempt, attempt.error)
            if following is not None:
                attempt = following
            elif response is not None:
                return response._replace(route=route.name)
            elif attempt.error is not None:
                raise attempt.error

    @property
    def _is_uniform(self) -> bool:
        """Whether every route leads to the same provider and serves all of its models."""
        urls = {route.options.base_url for route in self.routes}
        return len(urls) == 1 and not any(route.options.models for route in self.routes)

    async def _list_models(self, request: UpstreamRequest, on_connected: OnConnected) -> UpstreamResponse:
        """Ask each provider for its models; return those that a route serves, as one list.

        Its routes are asked in turn until one lists them. A provider that fails is left out, unless all do.
        """
        providers: dict[str, list[Route]] = {}
        for route in self.routes:
            providers.setdefault(route.options.base_url, []).append(route)

        async def ask(routes: Sequence[Route]) -> Models | UpstreamResponse | RelayError:
            failures: list[UpstreamResponse | RelayError] = []
            tried: list[Route] = []
            route: Route | None = choose(routes, None) or routes[0]
            while route is not None:
                try:
                    response = await self.send(replace(request, route=route.name), on_connected)
                    if response.refusal is None:
                        models = await read_models(response)
                        return {
                            name: entry
                            for name, entry in models.items()
                            if any(one.serves(name) for one in routes)
                        }
                    failures.append(response)
                except RelayError as error:
                    failures.append(error)
                tried.append(route)
                route = choose(routes, None, tried)
            return failures[0]

        answers = await asyncio.gather(*map(ask, providers.values()))
        lists = [answer for answer in answers if isinstance(answer, dict)]
        if lists:
            # Of a model that several have, the first provider's entry counts.
            return list_response(
                {name: entry for models in reversed(lists) for name, entry in models.items()}
            )
        first = answers[0]
        if isinstance(first, UpstreamResponse):
            return first
        raise cast("RelayError", first)

    def _first(self, model: str | None, name: str | None = None, *, cautious: bool = False) -> Attempt:
        """Begin a request; if all routes cool down, with the one that has done so first.

        So a lone route refuses nothing by itself, and a dead network is not asked through every route.
        """
        if name is not None:
            named = [route for route in self.routes if route.name == name]
            if not named:
                raise RelayError(
                    ErrorCode.UPSTREAM_REJECTED,
                    f"This belongs to the route {name} of this relay, which is no longer configured.",
                )
            return Attempt(named[0], model)
        route = choose(self.routes, model, cautious=cautious)
        if route is None:
            serving = [route for route in self.routes if route.serves(model)]
            if not serving:
                raise RelayError(
                    ErrorCode.MODEL_NOT_ALLOWED, f"No route of this relay serves the model {model!r}."
                )
            route = min(serving, key=lambda cooling: cooling.cools_until(model))
        return Attempt(route, model)

    def _following(self, attempt: Attempt, error: UpstreamError) -> Attempt | None:
        """Return the attempt that takes over; None: the failure is the request's own, or nothing is left."""
        if error.is_of_the_request or error.may_be_served:
            return None
        route = choose(self.routes, attempt.model, attempt.tried)
        return None if route is None else Attempt(route, attempt.model, attempt.tried)


class _Pieces:
    """The pieces of a body, and whether the first was asked for."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self.have_begun = False
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self.have_begun = True
        return await anext(self._pieces)


def asks_for_models(request: UpstreamRequest) -> bool:
    """Return whether a request asks for the list of models."""
    return request.method == "GET" and request.target.partition("?")[0] == "/models"


async def read_models(response: UpstreamResponse) -> Models:
    """Return the models in a response that is no refusal, and close it. Raises RelayError if it has none."""
    try:
        async with asyncio.timeout(_LIST_TIMEOUT_S):
            body = await response.body.read(_MAX_LIST_BYTES)
    except (ConnectionBroken, TimeoutError):
        body = b""
    finally:
        response.body.close()
    return models_in(body)


def models_in(body: bytes) -> Models:
    """Return the models in a list, with or without an object around it. Raises RelayError if it is none."""
    try:
        document = load_json(body)
    except ValueError:
        document = None
    entries = document.get("data") if isinstance(document, dict) else document
    if not isinstance(entries, list):
        raise RelayError(ErrorCode.UPSTREAM_FAILED, "The provider's list of models cannot be read.")
    return {
        entry["id"]: entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    }


def list_response(models: Models) -> UpstreamResponse:
    """Return the response that lists these models."""
    body = json.dumps({"object": "list", "data": list(models.values())}).encode()
    headers = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
    return UpstreamResponse(None, 200, headers, None, IncomingResponse.whole(200, headers, body))
