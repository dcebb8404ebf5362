"""The events of the log: what happened, in one gap-free order.

`seq` is given by the database when the event is on disk, never before: whoever sees an event can
find it there again.
"""

from __future__ import annotations

import msgspec

from relayd.state.records import AuditEntry, RequestRecord


class Started(msgspec.Struct, tag_field="event", tag="started", frozen=True):
    """A request was admitted or refused; the record as it was then."""

    seq: int
    boot_id: str
    record: RequestRecord


class Ended(msgspec.Struct, tag_field="event", tag="ended", frozen=True):
    """A request ended; the whole record. `record.seq` is that of its start."""

    seq: int
    boot_id: str
    record: RequestRecord


class Audited(msgspec.Struct, tag_field="event", tag="audit", frozen=True):
    """An operator acted, or a key changed; `GET /keys` has the ring after it."""

    seq: int
    boot_id: str
    entry: AuditEntry


class Lost(msgspec.Struct, tag_field="event", tag="lost", frozen=True):
    """The log could not keep up or could not write: this many records are gone for good."""

    seq: int
    boot_id: str
    at: str
    count: int
    reason: str


class Gap(msgspec.Struct, tag_field="event", tag="gap", frozen=True):
    """Events `first` to `last` are no longer kept (retention); what follows continues after `last`."""

    first: int
    last: int


LogEvent = Started | Ended | Audited | Lost
"""What has a place (`seq`) in the log."""
