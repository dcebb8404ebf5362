"""Records the start and end of every request: in the request log, in a log line, in the metrics."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from relayd.printable import printable_json
from relayd.relay.errors import ErrorCode, RelayError
from relayd.state.records import Outcome, Phase, RecordedError, RequestRecord

_log = logging.getLogger("relayd.request")

_ROUTINE_OUTCOMES = frozenset({Outcome.COMPLETED, Outcome.CLIENT_CLOSED})
_DENIAL_WINDOW_S = 60.0
_DENIALS_PER_NETWORK = 60
_DENIALS_IN_ALL = 1000
_MAX_DENIED_NETWORKS = 1000
_OTHER_NETWORKS = "other addresses"
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9_.:/@+-]+")


class RecordLog(Protocol):
    """Where records survive. Neither method waits for a disk."""

    def started(self, record: RequestRecord) -> None:
        """Keep the start of a request."""

    def ended(self, record: RequestRecord) -> None:
        """Keep its end."""


@dataclass(slots=True)
class _Denied:
    """The denials of one network within the window."""

    count: int = 0
    unrecorded: int = 0
    last: RequestRecord | None = None


class RequestRecorder:
    """The one place that learns of every request's start and end.

    A flood of wrong keys must not push everything else out of the log: within a minute the first 60 denials
    of each network are recorded one by one, 1,000 in all; of the others the last one stands for the rest.

    Args:
        log: the request log.
        observers: called with each complete record, in order; they must not raise.
    """

    def __init__(self, log: RecordLog, observers: Sequence[Callable[[RequestRecord], None]] = ()) -> None:
        self._log = log
        self._observers = observers
        self._denied: dict[str, _Denied] = {}
        self._recorded_denials = 0
        self._window: asyncio.TimerHandle | None = None

    def open(self, record: RequestRecord) -> None:
        """Record that a request starts."""
        self._log.started(record)

    def close(self, record: RequestRecord) -> None:
        """Record that a request has ended; its record is complete."""
        self._observe(record)
        self._end(record)

    def refuse(self, record: RequestRecord, error: RelayError | None, network: str) -> None:
        """Complete and record a request that never became a stream.

        Args:
            record: not opened before, complete but for its end.
            error: what was sent to the client; None: it had left.
            network: the client's address, or its IPv6 /64.
        """
        record.phase = Phase.DONE
        outcome = Outcome.CLIENT_CLOSED if error is None else error.outcome
        # A request that was refused while draining never ran, so it was not shut down.
        record.outcome = Outcome.REJECTED if outcome is Outcome.SHUTDOWN else outcome
        if error is not None:
            record.status = error.status
            record.error = RecordedError(error.code, error.recorded)
        is_unknown = error is not None and error.code is ErrorCode.STATE_UNAVAILABLE and record.key_id is None
        if outcome is Outcome.DENIED or is_unknown:
            self._deny(record, network)
        else:
            self.open(record)
            self.close(record)

    def _deny(self, record: RequestRecord, network: str) -> None:
        """Record a request whose key was refused or could not be judged, or count it in a flood."""
        self._observe(record)
        if self._window is None:
            self._window = asyncio.get_running_loop().call_later(_DENIAL_WINDOW_S, self.flush)
        if network not in self._denied and len(self._denied) >= _MAX_DENIED_NETWORKS:
            network = _OTHER_NETWORKS
        denied = self._denied.setdefault(network, _Denied())
        denied.count += 1
        if denied.count <= _DENIALS_PER_NETWORK and self._recorded_denials < _DENIALS_IN_ALL:
            self._recorded_denials += 1
            self.open(record)
            self._end(record)
        else:
            denied.unrecorded += 1
            denied.last = record

    def flush(self) -> None:
        """Record the denials that were only counted so far, and begin a new window."""
        if self._window is not None:
            self._window.cancel()
            self._window = None
        for network, denied in self._denied.items():
            if denied.last is not None:
                record = _summary(denied.last, network, denied.unrecorded)
                self.open(record)
                self._end(record)
        self._denied.clear()
        self._recorded_denials = 0

    def _observe(self, record: RequestRecord) -> None:
        for observe in self._observers:
            observe(record)

    def _end(self, record: RequestRecord) -> None:
        self._log.ended(record)
        level = logging.INFO if record.outcome in _ROUTINE_OUTCOMES else logging.WARNING
        if _log.isEnabledFor(level):
            _log.log(level, "request %s", _line(record))


def _summary(last: RequestRecord, network: str, count: int) -> RequestRecord:
    """Return the last denial, whose message says how many it stands for."""
    if last.error is None or count == 1:
        return last
    message = f"{last.error.message} This stands for {count} such requests of {network} within a minute."
    return msgspec.structs.replace(last, error=RecordedError(last.error.code, message))


def _line(record: RequestRecord) -> str:
    error = record.error
    return logfmt(
        id=record.id,
        client=record.client,
        ip=record.ip,
        model=record.model,
        route=record.route,
        outcome=record.outcome,
        status=record.status,
        error=None if error is None else error.code,
        connect_ms=record.connect_ms,
        first_token_ms=record.first_token_ms,
        duration_ms=record.duration_ms,
        stalled_ms=record.stalled_ms or None,
        deltas=record.deltas,
        detail=None if error is None else error.message,
    )


def logfmt(**values: object) -> str:
    """Return the pairs whose value is not None, in order; values with anything unusual are quoted as JSON.

    What is not printable ASCII is escaped, so that a value can neither end a line nor steer a terminal.
    """
    texts = {key: str(value) for key, value in values.items() if value is not None}
    return " ".join(
        f"{key}={text if _PLAIN_VALUE.fullmatch(text) else printable_json(text)}"
        for key, text in texts.items()
    )
