"""One stream from its first byte to its end, which is decided once, here."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from relayd.relay.completion import CompletionStream
from relayd.relay.ends import Reply, Source, SourceBody
from relayd.relay.failure import ClientGone, ClientStalled, Code, Failure, bug
from relayd.relay.lines import DONE, HEARTBEAT, delta_line, done_line, error_line
from relayd.state.records import Outcome, Phase, RecordedError, RequestRecord

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class StreamLimits:
    """What the clock of a stream watches; seconds. One object serves all streams."""

    heartbeat_s: float = 15.0
    first_token_timeout_s: float = 300.0
    idle_timeout_s: float = 60.0
    total_timeout_s: float = 1800.0
    finish_grace_s: float = 5.0
    """After a finish reason, how long usage and `[DONE]` may take in all; then the answer counts as whole."""


class RelayStream:
    """Relays one request. `run` returns when all is over and the record says how.

    Args:
        record: written while the stream runs; its outcome is set at the end.
        body: the provider's request, as JSON.
        tell_usage: whether the last line carries `finish_reason` and `usage`.
    """

    def __init__(
        self,
        record: RequestRecord,
        body: bytes,
        *,
        tell_usage: bool,
        upstream: Source,
        reply: Reply,
        limits: StreamLimits,
    ) -> None:
        self.record = record
        self._body = body
        self._tell_usage = tell_usage
        self._upstream = upstream
        self._reply = reply
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._started_at = self._last_line_at = self._last_data_at = self._loop.time()
        self.last_delta_at: float | None = None
        """The event loop's time of the last delta."""
        self.writing = False
        """True while a write waits for the client."""
        self._completion = CompletionStream(upstream.scrub)
        self._concluded = False
        self._stop_cause: Failure | ClientGone | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._unsent = b""
        self._finish_by: float | None = None

    @property
    def age_s(self) -> float:
        """Seconds since the stream was made."""
        return self._loop.time() - self._started_at

    @property
    def stalled_s(self) -> float:
        """Seconds spent waiting for the client so far; a wait that is not over is not in it."""
        return self._reply.stalled_s

    def stop(self, cause: Failure | ClientGone) -> None:
        """End the stream for this cause; the first cause counts, and none after the answer's end."""
        if self._concluded or self._stop_cause is not None:
            return
        self._stop_cause = cause
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    async def run(self) -> None:
        """Relay to the end, tell the client how it ended, and complete the record."""
        cause: Exception | None = self._stop_cause
        if cause is None:
            self._task = asyncio.current_task()
            self._watch_clock()
            try:
                cause = await self._relayed()
            finally:
                if self._timer is not None:
                    self._timer.cancel()
        await self._conclude(cause)

    async def _relayed(self) -> Exception | None:
        """Relay; why that ended, where it was not the answer's own end."""
        try:
            await self._relay()
        except asyncio.CancelledError:
            if self._stop_cause is None or self._task is None:
                raise
            # It was `stop` that cancelled; the task has its last lines to send.
            self._task.uncancel()
            return self._stop_cause
        except (Failure, ClientGone, ClientStalled) as error:
            return error
        except Exception:  # noqa: BLE001 - whatever it is, it must end one request only, and be told
            _log.exception("request %s met a bug", self.record.id)
            return bug(self.record.id)
        return None

    async def _relay(self) -> None:
        async with self._upstream.stream(self._body, connected=self._connected) as body:
            self.record.upstream_request_id = body.request_id
            completion = self._completion
            while await self._poured(body):
                if self.writing:
                    await self._drain()
                if completion.failure is not None:
                    raise completion.failure
                if completion.done:
                    break
            if completion.finish_reason is None:
                raise Failure(Code.UPSTREAM_TRUNCATED, "The provider's answer ended before it was finished.")
            body.tidy()

    async def _poured(self, body: SourceBody) -> bool:
        """Relay until something else is to be done; False at the end of the answer."""
        if self._completion.finish_reason is None:
            return await body.pour(self._take)
        if self._finish_by is None:
            self._finish_by = self._loop.time() + self._limits.finish_grace_s
        try:
            # The answer is whole already: whatever goes wrong from here is only its end.
            async with asyncio.timeout_at(self._finish_by):
                return await body.pour(self._take)
        except (TimeoutError, Failure):
            return False

    def _take(self, piece: bytes) -> bool:
        """Relay what one read of the provider brought; False where more must wait.

        Everything that a delta costs is here and below.
        """
        completion = self._completion
        self._last_data_at = self._loop.time()
        texts = completion.feed(piece)
        ending = completion.is_ending
        if ending and completion.whole:
            self._unsent = self._lines_of(texts)
            return False
        if texts:
            self.writing = not self._reply.send(self._lines_of(texts))
            self._last_line_at = self._last_data_at
        return not (self.writing or ending)

    def _connected(self) -> None:
        record = self.record
        if record.phase is Phase.CONNECTING:
            record.phase = Phase.WAITING
            record.connect_ms = self._age_ms()

    async def _drain(self) -> None:
        """Wait for the client."""
        try:
            await self._reply.drained()
        finally:
            self.writing = False
        # Upstream is not read while the client is waited for, so its silence counts from here.
        self._last_line_at = self._last_data_at = self._loop.time()

    def _lines_of(self, texts: list[str]) -> bytes:
        """The lines of deltas that are about to be sent, counted into the record."""
        if not texts:
            return b""
        record = self.record
        self.last_delta_at = self._last_data_at
        if record.first_token_ms is None:
            record.first_token_ms = self._age_ms()
            record.phase = Phase.STREAMING
        lines = b"".join([delta_line(text) for text in texts])
        record.deltas += len(texts)
        record.bytes_out += len(lines)
        return lines

    def _watch_clock(self) -> None:
        """End the stream when a time is over, fill its silence, and come back when next needed.

        One timer serves all of a stream's times; no delta touches it.
        """
        limits = self._limits
        now = self._loop.time()
        # A silence that begins later ends no earlier than the second: so none is noticed late.
        due = [self._started_at + limits.total_timeout_s, now + limits.idle_timeout_s]
        if now >= due[0]:
            self._time_out(f"The whole answer took longer than {limits.total_timeout_s:g} s")
            return
        if self.record.first_token_ms is None:
            due.append(self._started_at + limits.first_token_timeout_s)
            if now >= due[-1]:
                self._time_out(f"The first word did not come within {limits.first_token_timeout_s:g} s")
                return
        elif not self.writing:
            due.append(self._last_data_at + limits.idle_timeout_s)
            if now >= due[-1]:
                self._time_out(f"The answer fell silent for {limits.idle_timeout_s:g} s")
                return
        silent = now >= self._last_line_at + limits.heartbeat_s
        if silent:
            self._last_line_at = now
        due.append(self._last_line_at + limits.heartbeat_s)
        self._timer = self._loop.call_at(min(due), self._watch_clock)
        if silent and not self.writing:
            self._beat()

    def _beat(self) -> None:
        try:
            self._reply.beat(HEARTBEAT)
        except ClientGone as gone:
            self.stop(gone)
        else:
            self.record.bytes_out += len(HEARTBEAT)

    def _time_out(self, what: str) -> None:
        self.stop(Failure(Code.UPSTREAM_TIMEOUT, f"{what}, the limit of this relay."))

    async def _conclude(self, cause: Exception | None) -> None:
        """The one end: the last lines to whoever still reads, and the outcome into the record."""
        self._concluded = True
        record = self.record
        failure = cause if isinstance(cause, Failure) else None
        if cause is None or failure is not None:
            lines = self._last_lines(failure)
            try:
                # Deltas that came with the end of the answer leave with it.
                await self._reply.finish(self._unsent + lines, failure)
                record.bytes_out += len(lines)
            except (ClientGone, ClientStalled) as error:
                cause = cause or error
        record.phase = Phase.DONE
        record.status = self._reply.status
        record.outcome = _outcome(cause)
        record.stalled_ms = round(self._reply.stalled_s * 1000)
        record.duration_ms = self._age_ms()
        self._record_usage()
        if failure is not None:
            record.error = RecordedError(failure.code, failure.sentence)

    def _last_lines(self, failure: Failure | None) -> bytes:
        done = DONE
        if self._tell_usage:
            done = done_line(self._completion.finish_reason, self._completion.usage)
        return error_line(failure) + done if failure is not None else done

    def _record_usage(self) -> None:
        """Whatever the end was: a client that leaves early has used what it used."""
        completion = self._completion
        self.record.finish_reason = completion.finish_reason
        if completion.usage is not None:
            self.record.prompt_tokens = completion.usage.prompt_tokens
            self.record.completion_tokens = completion.usage.completion_tokens

    def _age_ms(self) -> int:
        return round(self.age_s * 1000)


def _outcome(cause: Exception | None) -> Outcome:
    if cause is None:
        return Outcome.COMPLETED
    if isinstance(cause, Failure):
        return cause.outcome
    return Outcome.CLIENT_STALLED if isinstance(cause, ClientStalled) else Outcome.CLIENT_CLOSED
