"""Opens and closes the record of every request: the log on disk, the log line, the counters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from relayd.relay.denials import WINDOW_S, Denials
from relayd.relay.logfmt import logfmt
from relayd.state.records import Outcome, RequestRecord

_log = logging.getLogger("relayd.request")

_QUIET_OUTCOMES = frozenset({Outcome.COMPLETED, Outcome.CLIENT_CLOSED})


class RecordLog(Protocol):
    """Where records survive; neither call waits for a disk."""

    def started(self, record: RequestRecord) -> None:
        """Keep the start of a request."""
        ...

    def ended(self, record: RequestRecord) -> None:
        """Keep its end."""
        ...


class Ledger:
    """The one place that learns of every request's start and end.

    Args:
        log: the request log.
        observers: called with each complete record, in order; they must not raise.
    """

    def __init__(self, log: RecordLog, observers: Sequence[Callable[[RequestRecord], None]] = ()) -> None:
        self._log = log
        self._observers = observers
        self._denials = Denials()
        self._settling: asyncio.TimerHandle | None = None

    def open(self, record: RequestRecord) -> None:
        """A request starts."""
        self._log.started(record)

    def close(self, record: RequestRecord) -> None:
        """A request has ended; its record is complete."""
        self._observe(record)
        self._end(record)

    def denied(self, record: RequestRecord, network: str) -> None:
        """A request was refused for its key, and its record is complete; a flood of them is summed up.

        Args:
            record: never opened.
            network: whose refusals are summed up together.
        """
        self._observe(record)
        if self._denials.is_told(record, network):
            self._log.started(record)
            self._end(record)
        elif self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(WINDOW_S, self.settle)

    def settle(self) -> None:
        """Record now what was only counted so far; at the end nothing else would."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        for record in self._denials.settle():
            self._log.started(record)
            self._end(record)

    def _observe(self, record: RequestRecord) -> None:
        for observe in self._observers:
            observe(record)

    def _end(self, record: RequestRecord) -> None:
        self._log.ended(record)
        level = logging.INFO if record.outcome in _QUIET_OUTCOMES else logging.WARNING
        if _log.isEnabledFor(level):
            _log.log(level, "request %s", _line(record))


def _line(record: RequestRecord) -> str:
    return logfmt(
        id=record.id,
        client=record.client,
        ip=record.ip,
        model=record.model,
        outcome=record.outcome,
        status=record.status,
        error=record.error.code if record.error is not None else None,
        connect_ms=record.connect_ms,
        first_token_ms=record.first_token_ms,
        duration_ms=record.duration_ms,
        stalled_ms=record.stalled_ms or None,
        deltas=record.deltas,
        detail=record.error.message if record.error is not None else None,
    )
