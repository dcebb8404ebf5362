"""Requests that are open now, and how fast each one moves."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import msgspec

from relayd.admin.schema import Progress, RequestRecord, StreamProgress, epoch_s, utc_text
from tui.model.text import FIELD_LIMIT, neutral
from tui.model.units import unix_s

HISTORY_S = 60
_SMOOTH = 0.5


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
        record.phase = self.progress.phase
        record.deltas = self.progress.deltas
        record.bytes_out = self.progress.bytes_out
        record.stalled_ms = self.progress.stalled_ms
        if record.first_token_ms is None:
            record.first_token_ms = self.first_token_ms

    def record(self) -> RequestRecord:
        """What is known of its record from here alone."""
        told = self.progress
        record = RequestRecord(
            id=told.id,
            boot_id="",
            started_at=utc_text(self.started_s),
            client=told.client,
            key_id=told.key_id,
            ip=told.ip,
            model=told.model,
        )
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
        self.revision = 0
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
            told = given if _is_neutral(given) else _neutral(given)
            seq = None if known is None else known.seq
            streams[given.id] = OpenStream(told, at_s, rate, _first_token_ms(given, known), seq)
        self.streams = streams
        self.at_s = at_s
        self._note(moved / max(0.2, elapsed), elapsed)
        self.revision += 1

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
        at_s = unix_s(record.started_at)
        self.streams[record.id] = OpenStream(
            StreamProgress(
                id=record.id,
                client=record.client,
                key_id=record.key_id,
                ip=record.ip,
                model=record.model,
                phase=record.phase,
                waiting_for="upstream",
                age_ms=0,
                deltas=record.deltas,
                bytes_out=record.bytes_out,
                stalled_ms=record.stalled_ms,
                last_delta_ms=None,
            ),
            at_s,
            seq=record.seq,
        )
        self.revision += 1

    def fill(self, record: RequestRecord) -> None:
        """Put the live numbers into the record of a request that is open; others stay as they are."""
        if record.outcome is None and (stream := self.streams.get(record.id)) is not None:
            stream.fill(record)

    def ended(self, request_id: str) -> None:
        """Take a request away."""
        if self.streams.pop(request_id, None) is not None:
            self.revision += 1

    def clear(self) -> None:
        """Nothing is known to be open."""
        self.streams.clear()
        self.revision += 1


def _first_token_ms(given: StreamProgress, known: OpenStream | None) -> int | None:
    if known is not None and known.first_token_ms is not None:
        return known.first_token_ms
    if not given.deltas:
        return None
    return (given.age_ms + (known.progress.age_ms if known is not None else 0)) // 2


def _is_neutral(given: StreamProgress) -> bool:
    """The usual case, told cheaply: with a thousand streams this is done a thousand times a second."""
    texts = f"{given.id}{given.client}{given.key_id}{given.ip}{given.model}{given.waiting_for}"
    return len(texts) <= FIELD_LIMIT and texts.isascii() and texts.isprintable()


def _neutral(given: StreamProgress) -> StreamProgress:
    return msgspec.structs.replace(
        given,
        id=neutral(given.id),
        client=None if given.client is None else neutral(given.client),
        key_id=None if given.key_id is None else neutral(given.key_id),
        ip=neutral(given.ip),
        model=None if given.model is None else neutral(given.model),
        waiting_for=neutral(given.waiting_for),
    )
