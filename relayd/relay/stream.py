"""One stream from its first byte to its end, which is decided once, here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from relayd.relay.chunks import ChatCompletion
from relayd.relay.errors import ClientGone, ClientStalled, ErrorCode, RelayError, internal_error
from relayd.relay.ndjson import DONE_LINE, HEARTBEAT_LINE, delta_line, done_line, error_line
from relayd.relay.redact import Redactor
from relayd.relay.transport.connection import ConnectionBroken
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


class Upstream(Protocol):
    """The provider, or what takes its place."""

    @property
    def redact(self) -> Redactor:
        """Makes its texts fit to show."""

    async def open(self, body: bytes, on_connected: Callable[[], None]) -> tuple[str | None, UpstreamBody]:
        """Ask for one completion; return the provider's request id and the answer. Raises RelayError."""


class ResponseWriter(Protocol):
    """The way to the client. All bytes are whole lines."""

    status: int | None
    stalled_s: float

    @property
    def blocked(self) -> bool:
        """Whether the client must read before it is sent more."""

    def write_lines(self, lines: bytes) -> None:
        """Send lines without waiting. Raises ClientGone."""

    async def drain(self) -> None:
        """Wait until the client may be sent more. Raises ClientGone or ClientStalled."""

    async def end(self, lines: bytes, error: RelayError | None) -> None:
        """Send the last lines and end the response. Raises ClientGone or ClientStalled."""


class RelayStream:
    """Relays one request. `run` returns when all is over and the record says how it ended.

    Args:
        record: written while the stream runs; its outcome is set at the end.
        body: the provider's request, as JSON.
        include_usage: whether the last line carries `finish_reason` and `usage`.
        upstream: the provider.
        writer: the way to the client.
        limits: shared, in seconds.
    """

    def __init__(
        self,
        record: RequestRecord,
        body: bytes,
        *,
        include_usage: bool,
        upstream: Upstream,
        writer: ResponseWriter,
        limits: StreamLimits,
    ) -> None:
        self.record = record
        self._body = body
        self._include_usage = include_usage
        self._upstream = upstream
        self._writer = writer
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._started_at = self._last_line_at = self._last_event_at = self._loop.time()
        self.last_delta_at: float | None = None
        """Loop time of the last delta."""
        self._completion = ChatCompletion(upstream.redact)
        self._response: UpstreamBody | None = None
        self._answer_ended = False
        self._paused = False
        """Whether the provider is not read until the client has been waited for."""
        self._broken: Exception | None = None
        """What cut the provider's bytes, or a bug in `on_chunk`."""
        self._wake = asyncio.Event()
        self._last_deltas = b""
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
        self.record.upstream_request_id, response = await self._upstream.open(self._body, self._on_connected)
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
        completion = self._completion
        events_before = completion.events
        texts = completion.feed(data)
        # A comment fills a silence, but does not prolong the grace for what follows a finish reason.
        if completion.events != events_before or not completion.finished:
            self._last_event_at = self._loop.time()
        if completion.done or completion.error is not None:
            self._end_answer()
            if completion.finished:
                # Deltas that come with the end of the answer leave with its last line.
                self._last_deltas = self._lines_of(texts)
                return
        elif completion.finished:
            self._rearm_clock()
        if not texts:
            return
        self._last_line_at = self._last_event_at
        self._writer.write_lines(self._lines_of(texts))
        if self._writer.blocked and self._response is not None:
            # Otherwise a receive buffer fills for each client that does not read.
            self._response.pause_reading()
            self._paused = True
            self._wake.set()

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
        error = self._completion.end()
        if error is not None and error.code is ErrorCode.UPSTREAM_TRUNCATED and self._broken is not None:
            raise RelayError(
                ErrorCode.UPSTREAM_FAILED, "The connection to the provider broke in the middle of its answer."
            )
        if error is not None:
            raise error

    def _lines_of(self, texts: list[str]) -> bytes:
        """Return the lines of deltas that are about to be sent, and count them in the record."""
        if not texts:
            return b""
        record = self.record
        self.last_delta_at = self._last_event_at
        if record.first_token_ms is None:
            record.first_token_ms = self._age_ms()
            record.phase = Phase.STREAMING
        lines = b"".join([delta_line(text) for text in texts])
        record.deltas += len(texts)
        record.bytes_out += len(lines)
        return lines

    def _on_connected(self) -> None:
        record = self.record
        if record.phase is Phase.CONNECTING:
            record.phase = Phase.WAITING
            record.connect_ms = self._age_ms()

    async def _drain(self) -> None:
        await self._writer.drain()
        self._paused = False
        # The provider is not read while the client is waited for, so its silence counts from here.
        self._last_line_at = self._last_event_at = self._loop.time()
        if self._completion.finished:
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
        is_silent = now >= self._last_line_at + limits.heartbeat_s
        if is_silent:
            self._last_line_at = now
        due.append(self._last_line_at + limits.heartbeat_s)
        self._timer = self._loop.call_at(min(due), self._watch_clock)
        if is_silent and not self._writer.blocked:
            self._send_heartbeat()

    def _next_end(self) -> tuple[float, str]:
        """Return when the stream ends if nothing comes, and by which limit; empty: the answer is whole."""
        limits, completion = self._limits, self._completion
        total = (
            self._started_at + limits.total_timeout_s,
            f"The whole answer took longer than {limits.total_timeout_s:g}",
        )
        if not completion.finished and not completion.has_progressed:
            first_word = f"The first word did not come within {limits.first_token_timeout_s:g}"
            return min(total, (self._started_at + limits.first_token_timeout_s, first_word))
        if self._paused:
            # The silence is not the provider's own.
            return total
        if completion.finished:
            return min(total, (self._last_event_at + limits.finish_grace_s, ""))
        silence = f"The answer fell silent for {limits.idle_timeout_s:g}"
        return min(total, (self._last_event_at + limits.idle_timeout_s, silence))

    def _rearm_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._watch_clock()

    def _send_heartbeat(self) -> None:
        try:
            self._writer.write_lines(HEARTBEAT_LINE)
        except ClientGone as gone:
            self.stop(gone)
        else:
            self.record.bytes_out += len(HEARTBEAT_LINE)

    async def _end(self, cause: Exception | None) -> None:
        """Send the last lines to a client that still reads, and write the outcome into the record."""
        record = self.record
        error = cause if isinstance(cause, RelayError) else None
        if cause is None or error is not None:
            lines = self._last_lines(error)
            try:
                await self._writer.end(self._last_deltas + lines, error)
                record.bytes_out += len(lines)
            except (ClientGone, ClientStalled) as gone:
                cause = cause or gone
        record.status = self._writer.status
        record.outcome = _outcome(cause)
        record.stalled_ms = round(self._writer.stalled_s * 1000)
        record.duration_ms = self._age_ms()
        # Whatever the end was: a client that leaves early has used what it used.
        record.finish_reason = self._completion.finish_reason
        tokens = self._completion.tokens
        if tokens is not None:
            record.prompt_tokens, record.completion_tokens = tokens.prompt_tokens, tokens.completion_tokens
            record.cached_tokens = tokens.cached_tokens
            record.usage_source = UsageSource.PROVIDER
        if error is not None:
            record.error = RecordedError(error.code, error.recorded)

    def _last_lines(self, error: RelayError | None) -> bytes:
        done = DONE_LINE
        if self._include_usage:
            done = done_line(self._completion.finish_reason, self._completion.usage)
        return done if error is None else error_line(error) + done

    def _age_ms(self) -> int:
        return round(self.age_s * 1000)


def _outcome(cause: Exception | None) -> Outcome:
    if cause is None:
        return Outcome.COMPLETED
    if isinstance(cause, RelayError):
        return cause.outcome
    return Outcome.CLIENT_STALLED if isinstance(cause, ClientStalled) else Outcome.CLIENT_CLOSED
