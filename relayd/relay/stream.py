"""One stream from its first byte to its end, which is decided once, here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from relayd.relay.errors import (
    ClientGone,
    ClientStalled,
    ErrorCode,
    RelayError,
    broken_off,
    internal_error,
)
from relayd.relay.transport.connection import ConnectionBroken
from relayd.relay.usage import TokenCounts
from relayd.state.records import Outcome, Phase, RecordedError, RequestRecord, UsageSource

_log = logging.getLogger(__name__)

_LINGER_S = 0.5
"""After the last event, how long the end of the provider's body may take, so that its connection is kept."""


@dataclass(slots=True)
class StreamLimits:
    """The times that a stream's clock watches, in seconds. All streams share one object, which may change."""

    heartbeat_s: float = 15.0
    first_token_timeout_s: float = 300.0
    idle_timeout_s: float = 60.0
    total_timeout_s: float = 1800.0
    finish_grace_s: float = 5.0
    """Longest silence after a finish reason, before usage and `[DONE]`; then the answer counts as whole."""

    def update(self, other: StreamLimits) -> None:
        """Take the times of `other`."""
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))


class UpstreamBody(Protocol):
    """The bytes of one answer, pushed."""

    def start(self, on_chunk: Callable[[bytes], None], on_end: Callable[[Exception | None], None]) -> None:
        """Push bytes to `on_chunk` from now on; tell `on_end` once what cut them, or None at their end."""

    def pause_reading(self) -> None:
        """Push nothing until `resume_reading`."""

    def resume_reading(self) -> None:
        """Push again."""

    def close(self, *, linger_s: float = 0.0) -> None:
        """Stop at once, or let the body end within `linger_s` and keep its connection."""


class Answer:
    """What one protocol makes of the provider's bytes: what the client is sent, and how far the answer is.

    The values of this class are those of an answer that has not begun, and can show no heartbeat or error.
    """

    deltas: int = 0
    """Pieces of the answer that the client was sent, or is sent with what `relay` returned last."""
    events: int = 0
    """Events of the provider so far; comments are none."""
    has_progressed: bool = False
    """Whether the provider has begun to answer."""
    done: bool = False
    """Whether nothing more of the provider's bytes is needed."""
    error: RelayError | None = None
    """Why the answer failed."""
    finish_reason: str | None = None
    tokens: TokenCounts | None = None
    """Tokens as the provider counted them."""
    delivered: bool = False
    """Whether the client has all that it waits for, so that it may leave."""

    @property
    def finished(self) -> bool:
        """Whether the answer is whole if nothing more comes."""
        return False

    async def open(
        self, on_connected: Callable[[str | None], None]
    ) -> tuple[str | None, UpstreamBody, Answer]:
        """Ask the provider; return its request id, the body of its response, and the answer from now on.

        Args:
            on_connected: told the name of the route, if any, when the request has its connection.

        Raises:
            RelayError: there is no answer.
        """
        raise NotImplementedError

    def relay(self, data: bytes) -> bytes:
        """Take the provider's next bytes; return what the client is sent now."""
        raise NotImplementedError

    def heartbeat(self) -> bytes:
        """Return what fills a silence; empty: nothing may be sent here."""
        return b""

    def end(self, *, is_broken: bool) -> RelayError | None:
        """Return why the answer failed if its bytes end here, or are cut here, or None if it is whole."""
        return broken_off() if is_broken else None

    def last_bytes(self, error: RelayError | None) -> bytes:
        """Return what the client is sent at the end of a whole answer, or of one that failed."""
        del error
        return b""


class ResponseWriter(Protocol):
    """The way to the client."""

    status: int | None
    stalled_s: float

    @property
    def blocked(self) -> bool:
        """Whether the client must read before it is sent more."""

    def send(self, data: bytes) -> None:
        """Send a piece without waiting. Raises ClientGone."""

    async def drain(self) -> None:
        """Wait until the client may be sent more. Raises ClientGone or ClientStalled."""

    async def end(self, data: bytes, error: RelayError | None) -> None:
        """Send the last piece and end the response. Raises ClientGone or ClientStalled."""


class RelayStream:
    """Relays one request. `run` returns when all is over and the record says how it ended.

    Args:
        record: written while the stream runs; its outcome is set at the end.
        answer: asks the provider, and makes of its bytes what the client is sent.
        writer: the way to the client.
        limits: shared, in seconds.
        reserve: awaited before the provider is asked; raises RelayError if it may not be.
    """

    def __init__(
        self,
        record: RequestRecord,
        answer: Answer,
        *,
        writer: ResponseWriter,
        limits: StreamLimits,
        reserve: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.record = record
        self._answer = answer
        self._writer = writer
        self._limits = limits
        self._reserve = reserve
        self._loop = asyncio.get_running_loop()
        self._started_at = self._last_sent_at = self._last_event_at = self._loop.time()
        self._asked_at = self._started_at
        """When the provider was sent the latest piece of the request."""
        self.last_delta_at: float | None = None
        """Loop time of the last delta."""
        self._response: UpstreamBody | None = None
        self._answer_ended = False
        self._paused = False
        """Whether the provider is not read until the client has been waited for."""
        self._broken: Exception | None = None
        """What cut the provider's bytes, or a bug in `on_chunk`."""
        self._wake = asyncio.Event()
        self._last_piece = b""
        """What came with the end of the answer, not sent yet."""
        self._stop_cause: RelayError | ClientGone | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def age_s(self) -> float:
        """Seconds since the stream was made."""
        return self._loop.time() - self._started_at

    @property
    def blocked(self) -> bool:
        """Whether the stream waits for the client to read."""
        return self._writer.blocked

    @property
    def stalled_s(self) -> float:
        """Seconds spent waiting for the client, without a wait that is not over."""
        return self._writer.stalled_s

    def request_continues(self) -> None:
        """Note that the request is still being sent, so that its answer is not due yet."""
        self._asked_at = self._loop.time()

    def stop(self, cause: RelayError | ClientGone) -> None:
        """End the stream; the first cause counts, and none after the end of the answer."""
        if self._stop_cause is not None or self.record.phase is Phase.DONE:
            return
        self._stop_cause = cause
        if self._task is None:
            return
        if self._task is asyncio.current_task():
            # A task that cancelled itself would meet that at some later wait.
            self._end_answer()
        else:
            self._task.cancel()

    async def run(self) -> None:
        """Relay to the end, tell the client how it ended, and complete the record."""
        cause: Exception | None = self._stop_cause
        if cause is None:
            self._task = asyncio.current_task()
            self._watch_clock()
            try:
                await self._relay()
            except asyncio.CancelledError:
                if self._stop_cause is None or self._task is None:
                    raise
                # `stop` cancelled the task, which still has its last lines to send.
                self._task.uncancel()
                cause = self._stop_cause
            except (RelayError, ClientGone, ClientStalled) as error:
                cause = error
            except Exception:  # noqa: BLE001 - a bug must end one request only, and be told
                _log.exception("request %s met a bug", self.record.id)
                cause = internal_error(self.record.id)
            finally:
                if self._timer is not None:
                    self._timer.cancel()
        self.record.phase = Phase.DONE
        await self._end(cause)

    async def _relay(self) -> None:
        if self._reserve is not None:
            await self._reserve()
        request_id, response, self._answer = await self._answer.open(self._on_connected)
        self.record.upstream_request_id = request_id
        linger_s = 0.0
        try:
            self._response = response
            response.start(self.on_chunk, self.on_end)
            while not self._answer_ended or self._paused:
                await self._wake.wait()
                self._wake.clear()
                if self._paused:
                    await self._drain()
                    response.resume_reading()
            self._raise_if_failed()
            linger_s = _LINGER_S
        finally:
            response.close(linger_s=linger_s)

    def on_chunk(self, data: bytes) -> None:
        """Relay what one read of the provider brought: all that a delta costs is here and below."""
        if self._answer_ended:
            return
        answer = self._answer
        events_before = answer.events
        piece = answer.relay(data)
        # A comment fills a silence, but does not prolong the grace for what follows a finish reason.
        if answer.events != events_before or not answer.finished:
            self._last_event_at = self._loop.time()
        if answer.done or answer.error is not None:
            self._end_answer()
            if answer.finished:
                # What comes with the end of the answer leaves with its last bytes.
                self._count(piece)
                self._last_piece = piece
                return
        if piece:
            self._last_sent_at = self._last_event_at
            self._count(piece)
            self._writer.send(piece)
            if self._writer.blocked and self._response is not None:
                # Otherwise a receive buffer fills for each client that does not read.
                self._response.pause_reading()
                self._paused = True
                self._wake.set()
        if answer.finished and not self._answer_ended:
            # Only now: a heartbeat that is due must not come before the piece.
            self._rearm_clock()

    def on_end(self, error: Exception | None) -> None:
        """Take the end of the provider's bytes: None at their own end, else what cut them, or a bug above."""
        self._broken = error
        self._end_answer()

    def _end_answer(self) -> None:
        self._answer_ended = True
        self._wake.set()

    def _raise_if_failed(self) -> None:
        """Raise why the answer is not whole. Whatever happened after its finish changes nothing."""
        if self._stop_cause is not None:
            raise self._stop_cause
        if self._broken is not None and not isinstance(self._broken, ConnectionBroken):
            raise self._broken
        error = self._answer.end(is_broken=self._broken is not None)
        if error is not None:
            raise error

    def _count(self, piece: bytes) -> None:
        """Count in the record what is about to be sent."""
        record = self.record
        record.bytes_out += len(piece)
        deltas = self._answer.deltas
        if deltas != record.deltas:
            record.deltas = deltas
            self.last_delta_at = self._last_event_at
            if record.first_token_ms is None:
                record.first_token_ms = self._age_ms()
                record.phase = Phase.STREAMING

    def _on_connected(self, route: str | None) -> None:
        record = self.record
        record.route = route
        if record.phase is Phase.CONNECTING:
            record.phase = Phase.WAITING
            record.connect_ms = self._age_ms()

    async def _drain(self) -> None:
        await self._writer.drain()
        self._paused = False
        # The provider is not read while the client is waited for, so its silence counts from here.
        self._last_sent_at = self._last_event_at = self._loop.time()
        if self._answer.finished:
            self._rearm_clock()

    def _watch_clock(self) -> None:
        """End the stream when a time is over, fill its silence, and come back when next needed.

        One timer serves all times of a stream; no delta touches it, apart from those behind a finish reason.
        """
        limits = self._limits
        now = self._loop.time()
        ends_at, timed_out = self._next_end()
        if now >= ends_at:
            if timed_out:
                self.stop(RelayError(ErrorCode.UPSTREAM_TIMEOUT, f"{timed_out} s, the limit of this relay."))
            else:
                self._end_answer()
            return
        # A silence that begins later ends no earlier than the second of these, so none is noticed late.
        due = [ends_at, now + limits.idle_timeout_s]
        is_silent = now >= self._last_sent_at + limits.heartbeat_s
        if is_silent:
            self._last_sent_at = now
        due.append(self._last_sent_at + limits.heartbeat_s)
        self._timer = self._loop.call_at(min(due), self._watch_clock)
        if is_silent and not self._writer.blocked:
            self._send_heartbeat()

    def _next_end(self) -> tuple[float, str]:
        """Return when the stream ends if nothing comes, and by which limit; empty: the answer is whole."""
        limits, answer = self._limits, self._answer
        total = (
            self._started_at + limits.total_timeout_s,
            f"The whole answer took longer than {limits.total_timeout_s:g}",
        )
        if not answer.finished and not answer.has_progressed:
            first_word = f"The first word did not come within {limits.first_token_timeout_s:g}"
            return min(total, (self._asked_at + limits.first_token_timeout_s, first_word))
        if self._paused:
            # The silence is not the provider's own.
            return total
        if answer.finished:
            return min(total, (self._last_event_at + limits.finish_grace_s, ""))
        silence = f"The answer fell silent for {limits.idle_timeout_s:g}"
        return min(total, (self._last_event_at + limits.idle_timeout_s, silence))

    def _rearm_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._watch_clock()

    def _send_heartbeat(self) -> None:
        piece = self._answer.heartbeat()
        if not piece:
            return
        try:
            self._writer.send(piece)
        except ClientGone as gone:
            self.stop(gone)
        else:
            self.record.bytes_out += len(piece)

    async def _end(self, cause: Exception | None) -> None:
        """Send the last bytes to a client that still reads, and write the outcome into the record."""
        record = self.record
        error = cause if isinstance(cause, RelayError) else None
        if cause is None or error is not None:
            last = self._answer.last_bytes(error)
            try:
                await self._writer.end(self._last_piece + last, error)
                record.bytes_out += len(last)
            except (ClientGone, ClientStalled) as gone:
                cause = cause or gone
        record.status = self._writer.status
        if isinstance(cause, ClientGone) and self._answer.delivered:
            cause = None
        record.outcome = _outcome(cause)
        record.stalled_ms = round(self._writer.stalled_s * 1000)
        record.duration_ms = self._age_ms()
        # Whatever the end was: a client that leaves early has used what it used.
        record.finish_reason = self._answer.finish_reason
        tokens = self._answer.tokens
        if tokens is not None:
            record.prompt_tokens, record.completion_tokens = tokens.prompt_tokens, tokens.completion_tokens
            record.cached_tokens = tokens.cached_tokens
            record.usage_source = UsageSource.PROVIDER
        if error is not None:
            record.error = RecordedError(error.code, error.recorded)

    def _age_ms(self) -> int:
        return round(self.age_s * 1000)


def _outcome(cause: Exception | None) -> Outcome:
    if cause is None:
        return Outcome.COMPLETED
    if isinstance(cause, RelayError):
        return cause.outcome
    return Outcome.CLIENT_STALLED if isinstance(cause, ClientStalled) else Outcome.CLIENT_CLOSED
