"""Requests that are open now, and how fast each one moves."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from relayd.admin.schema import Progress, RequestRecord, StreamProgress, epoch_s, utc_text
from tui.model.text import printable_struct
from tui.model.units import unix_s

HISTORY_S = 60
_SMOOTH = 0.5
_SHARED = [name for name in StreamProgress.__struct_fields__ if name in RequestRecord.__struct_fields__]
"""What a progress event and a record both say of a request."""


@dataclass(slots=True)
class OpenStream:
    """One open stream as its last progress event told it."""

    progress: StreamProgress
    at_s: float
    """The time of that event by the daemon's clock."""
    deltas_per_s: float = 0.0
    """Smoothed over about two seconds."""
    first_token_ms: int | None = None
    """About when the first token came: halfway between the reports around it."""
    seq: int | None = None
    """The place of its record in the log, once that is known."""

    def fill(self, record: RequestRecord) -> None:
        """Put the live numbers into the record that its start left open."""
        for name in _SHARED:
            setattr(record, name, getattr(self.progress, name))
        if record.first_token_ms is None:
            record.first_token_ms = self.first_token_ms

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
        self.at_s = 0.0

    @property
    def deltas_per_s(self) -> float:
        """All streams together, over the last second."""
        return self.history[-1]

    def progress(self, event: Progress) -> None:
        """Take over where every open stream is now."""
        at_s = epoch_s(event.at)
        elapsed = at_s - self.at_s if self.at_s else 1.0
        moved = 0.0
        streams: dict[str, OpenStream] = {}
        for given in event.streams:
            known = self.streams.get(given.id)
            before = known.progress.deltas if known is not None else 0
            new = max(0, given.deltas - before)
            seconds = max(0.2, elapsed if known is not None else given.age_ms / 1000)
            fresh = new / seconds
            moved += fresh * min(seconds, elapsed)
            rate = fresh if known is None else known.deltas_per_s * (1 - _SMOOTH) + fresh * _SMOOTH
            seq = None if known is None else known.seq
            first_ms = _first_token_ms(given, known)
            streams[given.id] = OpenStream(printable_struct(given), at_s, rate, first_ms, seq)
        self.streams = streams
        self.at_s = at_s
        self._note(moved / max(0.2, elapsed), elapsed)

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
        self.streams[record.id] = OpenStream(progress, unix_s(record.started_at), seq=record.seq)

    def fill(self, record: RequestRecord) -> None:
        """Put the live numbers into the record of a request that is open; others stay as they are."""
        if record.outcome is None and (stream := self.streams.get(record.id)) is not None:
            stream.fill(record)

    def ended(self, request_id: str) -> None:
        """Remove a request that has ended."""
        self.streams.pop(request_id, None)

    def clear(self) -> None:
        """Nothing is known to be open."""
        self.streams.clear()


def _first_token_ms(given: StreamProgress, known: OpenStream | None) -> int | None:
    if known is not None and known.first_token_ms is not None:
        return known.first_token_ms
    if not given.deltas:
        return None
    return (given.age_ms + (known.progress.age_ms if known is not None else 0)) // 2
