"""The log, read: pages, single records, replay of events, audit, keys and history.

Everything here blocks on the disk: call it in a worker thread. It needs only the file, so it also
works while the daemon is down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from relayd.state.events import Gap, LogEvent
from relayd.state.filter import Filter
from relayd.state.history import History
from relayd.state.records import AuditEntry, KeyInfo, RequestRecord


@dataclass(frozen=True, slots=True)
class RecordPage:
    """Records, newest first; `next_before` asks for older ones, None at the end."""

    records: list[RequestRecord]
    next_before: int | None


@dataclass(frozen=True, slots=True)
class AuditRows:
    """Audit entries, newest first; `next_before` asks for older ones, None at the end."""

    entries: list[AuditEntry]
    next_before: int | None


class LogReader:
    """Reads one `relayd.db` over a few read-only connections; every method may run in any thread.

    Every method may raise `StateError`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def page(
        self,
        where: Filter | None = None,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> RecordPage:
        """Records with `after < seq < before` that pass the filter, newest first."""
        raise NotImplementedError

    def get(self, request_id: str) -> RequestRecord | None:
        """One record."""
        raise NotImplementedError

    def events(self, after: int, limit: int = 1000) -> list[LogEvent | Gap]:
        """What followed `after`, in order; a `Gap` first where retention removed some of it."""
        raise NotImplementedError

    def newest_seq(self) -> int:
        """The newest place in the log; 0 when it is empty."""
        raise NotImplementedError

    def audit(self, *, before: int | None = None, limit: int = 100) -> AuditRows:
        """What operators did, newest first."""
        raise NotImplementedError

    def keys(self) -> tuple[int, list[KeyInfo]]:
        """The generation of the ring and its keys, as they are on disk."""
        raise NotImplementedError

    def buckets(self, since: str, bucket_s: int, where: Filter | None = None) -> History:
        """Figures since a UTC time: for each bucket of time, by model and by client."""
        raise NotImplementedError

    def close(self) -> None:
        """Close all connections; a call that is under way finishes."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
