"""The answers of `/v1`: the provider's bytes unchanged, and what can be seen in them as they pass."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import NoReturn

from relayd.relay.chunks import MAX_FINISH_REASON_CHARS
from relayd.relay.errors import ErrorCode, RelayError, compressed, not_a_stream
from relayd.relay.json_fields import FieldScanner
from relayd.relay.openai_errors import ProviderRefusal, error_event, failed_response_event
from relayd.relay.openai_streams import HEARTBEAT, STREAMS, Observation, ResponseHead, StreamProtocol
from relayd.relay.provider import EVENT_STREAM, begins_with_event, first_bytes
from relayd.relay.provider_errors import json_text, json_value, reported_error
from relayd.relay.redact import Redactor
from relayd.relay.refusals import is_compressed, read_error_body
from relayd.relay.stream import Answer, UpstreamBody
from relayd.relay.upstream import OnConnected, Upstream, UpstreamRequest, UpstreamResponse
from relayd.relay.usage import read_usage

MakeRequest = Callable[[], Awaitable[UpstreamRequest]]


class PassthroughAnswer(Answer):
    """An answer of `/v1` before its head has come, which tells what it becomes.

    Args:
        upstream: the provider.
        make_request: returns what it is asked; raises RelayError if it may not be asked.
        wants: what is to be seen in the answer.
    """

    def __init__(self, upstream: Upstream, make_request: MakeRequest, wants: Observation) -> None:
        self._upstream = upstream
        self._make_request = make_request
        self._wants = wants
        self._sent_heartbeat = False

    async def open(self, on_connected: OnConnected) -> tuple[str | None, UpstreamBody, Answer]:
        """Ask the provider.

        Raises:
            ProviderRefusal: its refusal, to be passed on as it is.
            RelayError: any other failure.
        """
        # The request, perhaps megabytes of it, must not stay as long as the answer.
        make_request, self._make_request = self._make_request, _made
        response = await self._upstream.send(await make_request(), on_connected)
        del make_request
        try:
            answer = await self._answer_to(response)
        except BaseException:
            response.body.close()
            raise
        return response.request_id, response.body, answer

    async def _answer_to(self, response: UpstreamResponse) -> Answer:
        wants = self._wants
        if response.error is not None:
            if response.error.concerns_relay:
                raise response.error
            raise ProviderRefusal(response.error, response.status, response.headers, response.refusal or b"")
        body = response.body
        media_type = body.media_type
        is_readable = not is_compressed(body)
        is_stream = media_type == EVENT_STREAM
        if is_readable and not is_stream:
            first = await first_bytes(body)
            # Some servers forget the type (express, net/http), and the SDKs do not look at it.
            is_stream = wants.must_stream and begins_with_event(first)
            if not is_stream and (wants.must_stream or _REFUSAL.match(first)):
                await self._raise_refusal(response)
        if not is_readable and (is_stream or wants.rewrite is not None):
            raise compressed()
        wants.on_head(ResponseHead(response.status, response.headers, is_stream))
        if is_stream:
            make = STREAMS[wants.protocol]
            return make(self._upstream.redact, wants, response.route)
        if wants.rewrite is not None:
            return RewrittenAnswer(wants.rewrite)
        is_json = media_type.endswith("json") and is_readable
        return BodyAnswer(self._upstream.redact, wants, response.route, is_json=is_json)

    async def _raise_refusal(self, response: UpstreamResponse) -> NoReturn:
        """Raise what an answer says that has status 200 and is none: no SDK would notice."""
        body = await read_error_body(response.body)
        said = json_value(body)
        if not isinstance(said, dict) or not said.get("error"):
            raise not_a_stream()
        redact = self._upstream.redact
        error = reported_error(said, redact, "The provider refused the request, with status 200")
        raise ProviderRefusal(error, error.status, response.headers, redact.scrub(body))

    def heartbeat(self) -> bytes:
        """Return a comment if the client waits for a stream."""
        if not self._wants.must_stream:
            return b""
        self._sent_heartbeat = True
        return HEARTBEAT

    def last_bytes(self, error: RelayError | None) -> bytes:
        """Return the error for a client that was sent heartbeats."""
        if error is None or not self._sent_heartbeat:
            return b""
        if self._wants.protocol is StreamProtocol.RESPONSES:
            return failed_response_event(error, {}, 0)
        return error_event(error)


class BodyAnswer(Answer):
    """One body, of any size and type.

    Args:
        redact: makes the provider's texts fit to show.
        wants: what is to be seen in it.
        route: that made it.
        is_json: whether fields can be read.
    """

    def __init__(self, redact: Redactor, wants: Observation, route: str | None, *, is_json: bool) -> None:
        self._redact = redact
        self._wants = wants
        self._route = route
        self._fields = FieldScanner(_BODY_FIELDS) if is_json else None
        self._is_created = False

    def relay(self, data: bytes) -> bytes:
        """Return the bytes as they are."""
        self.events += 1
        self.deltas = 1
        self.has_progressed = True
        if self._fields is not None:
            self._fields.feed(data)
            self._read()
        return data

    def _read(self) -> None:
        fields = {} if self._fields is None else self._fields.found
        wants = self._wants
        if wants.on_created is not None and not self._is_created and b"id" in fields:
            created = json_text(fields[b"id"])
            self._is_created = True
            if created:
                wants.on_created(created, self._route)
        if wants.counts_usage and self.tokens is None and b"usage" in fields:
            self.tokens = read_usage(json_value(fields[b"usage"]))
        if self.finish_reason is None:
            reason = json_text(fields.get(b"finish_reason", b"")) or json_text(fields.get(b"status", b""))
            self.finish_reason = reason and self._redact(reason, MAX_FINISH_REASON_CHARS)


class RewrittenAnswer(Answer):
    """A small JSON body that is changed when it is whole.

    Args:
        rewrite: changes it; raises RelayError if it can't be read.
    """

    def __init__(self, rewrite: Callable[[bytes], bytes]) -> None:
        self._rewrite = rewrite
        self._body = b""
        self._rewritten = b""

    def relay(self, data: bytes) -> bytes:
        """Keep the bytes."""
        self.events += 1
        self.has_progressed = True
        self._body += data
        if len(self._body) > _MAX_REWRITTEN_BYTES:
            self.error = RelayError(ErrorCode.UPSTREAM_FAILED, "The provider's answer is too long.")
        return b""

    def end(self, *, is_broken: bool) -> RelayError | None:
        """Return why there is no body, or None."""
        error = self.error or super().end(is_broken=is_broken)
        if error is None:
            try:
                self._rewritten = self._rewrite(self._body)
            except RelayError as unreadable:
                return unreadable
        return error

    def last_bytes(self, error: RelayError | None) -> bytes:
        """Return the changed body."""
        return b"" if error is not None else self._rewritten


# A body that is an error and nothing else.
_REFUSAL = re.compile(rb'\s*\{\s*"error"\s*:\s*[{"]')
_BODY_FIELDS = {b"id": 1, b"usage": 1, b"status": 1, b"finish_reason": 3}
_MAX_REWRITTEN_BYTES = 4 << 20


async def _made() -> UpstreamRequest:
    raise RuntimeError("the provider is asked once")
