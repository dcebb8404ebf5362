"""Requests that are open now, and how fast each one moves."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from relayd.admin.schema import Progress, RequestRecord, StreamProgress, epoch_s, utc_text
from tui.model.text import printable_struct
from tui.model.units import unix_s

HISTORY_S = 60
_SMOOTH = 0.5
_LEAST_S = 0.2
"""A shorter time tells no rate."""
_SHARED = [name for name in StreamProgress.__struct_fields__ if name in RequestRecord.__struct_fields__]
"""What a progress event and a record both say of a request."""


@dataclass(slots=True)
class OpenStream:
    """One open stream as its last progress event told it."""

    progress: StreamProgress
    at_s: float
    """The time of that event by the daemon's clock."""
    deltas_per_s: float | None = None
    """Smoothed over about two seconds; None until two reports tell it."""
    seq: int | None = None
    """The place of its record in the log, once that is known."""
    is_timed: bool = True
    """False: only its record is known, which does not say at which age it had so many deltas."""

    def fill(self, record: RequestRecord) -> None:
        """Put the live numbers into the record that its start left open."""
        for name in _SHARED:
            setattr(record, name, getattr(self.progress, name))

    def record(self) -> RequestRecord:
        """Return what is known of its record from here alone."""
        record = RequestRecord(id=self.progress.id, boot_id="", started_at=utc_text(self.started_s))
        self.fill(record)
        return record

    @property
    def started_s(self) -> float:
        """When it began, by the daemon's clock."""
        return self.at_s - self.progress.age_ms / 1000


class OpenStreams:
    """Open streams by id, and the last minute of deltas per second over all of them."""

    def __init__(self) -> None:
        self.streams: dict[str, OpenStream] = {}
        self.history: deque[float] = deque([0.0] * HISTORY_S, maxlen=HISTORY_S)
        self.deltas_per_s: float | None = None
        """All streams together, over the last second; None until two reports tell it."""
        self.at_s = 0.0

    def progress(self, event: Progress) -> None:
        """Take over where every open stream is now."""
        at_s = epoch_s(event.at)
        elapsed_s = at_s - self.at_s if self.at_s else None
        moved: float | None = 0.0
        streams: dict[str, OpenStream] = {}
        for given in event.streams:
            known = self.streams.get(given.id)
            new = _new_deltas(given, known, elapsed_s)
            moved = None if moved is None or new is None else moved + new
            seq = None if known is None else known.seq
            streams[given.id] = OpenStream(printable_struct(given), at_s, _rate(given, known), seq)
        self.streams = streams
        self.at_s = at_s
        if not streams:
            self.deltas_per_s = 0.0
        elif moved is None or elapsed_s is None:
            self.deltas_per_s = None
        else:
            self.deltas_per_s = moved / max(_LEAST_S, elapsed_s)
        self._note(self.deltas_per_s or 0.0, elapsed_s or 1.0)

    def _note(self, rate: float, elapsed_s: float) -> None:
        for _ in range(min(HISTORY_S, round(elapsed_s) - 1)):
            self.history.append(0.0)
        self.history.append(rate)

    def started(self, record: RequestRecord) -> None:
        """Show a request before its first progress event."""
        if record.outcome is not None:
            return
        known = self.streams.get(record.id)
        if known is not None:
            known.seq = record.seq
            return
        progress = StreamProgress(
            **{name: getattr(record, name) for name in _SHARED},
            waiting_for="upstream",
            age_ms=0,
            last_delta_ms=None,
        )
        self.streams[record.id] = OpenStream(
            progress, unix_s(record.started_at), seq=record.seq, is_timed=not record.deltas
        )

    def fill(self, record: RequestRecord) -> None:
        """Put the live numbers into the record of a request that is open; others stay as they are."""
        if record.outcome is None and (stream := self.streams.get(record.id)) is not None:
            stream.fill(record)

    def ended(self, request_id: str) -> None:
        """Remove a request that has ended."""
        self.streams.pop(request_id, None)

    def clear(self) -> None:
        """Nothing is known to be open, and no rate."""
        self.streams.clear()
        self.deltas_per_s = None
        self.at_s = 0.0


def _new_deltas(given: StreamProgress, known: OpenStream | None, elapsed_s: float | None) -> int | None:
    """Return how many deltas came since the report before; None if that is not known."""
    if known is not None and known.is_timed:
        return max(0, given.deltas - known.progress.deltas)
    began_since = elapsed_s is not None and given.age_ms <= elapsed_s * 1000
    return given.deltas if began_since else None


def _rate(given: StreamProgress, known: OpenStream | None) -> float | None:
    """Return the deltas a second of a stream, from its first token on; None if that is not known."""
    if known is None or not known.is_timed or given.first_token_ms is None:
        return None
    # Deltas after the first one, over the time after it.
    new = given.deltas - max(1, known.progress.deltas)
    seconds = (given.age_ms - max(known.progress.age_ms, given.first_token_ms)) / 1000
    if seconds < _LEAST_S:
        return known.deltas_per_s
    fresh = max(0, new) / seconds
    before = known.deltas_per_s
    return fresh if before is None else before * (1 - _SMOOTH) + fresh * _SMOOTH
