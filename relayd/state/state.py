"""All that survives a restart, opened and closed in one place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from relayd.state.events import LogEvent
from relayd.state.keyring import KeyRing
from relayd.state.reader import LogReader
from relayd.state.records import AuditEntry, Peer
from relayd.state.requestlog import RequestLog

OnCommit = Callable[[Sequence[LogEvent]], None]
"""Called on the writer thread after each commit, with its events in order; must be quick."""


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Bytes that the database and its WAL take, and bytes free beside them."""

    database_bytes: int
    free_bytes: int


class State:
    """The state directory in use by one daemon."""

    log: RequestLog
    ring: KeyRing
    reader: LogReader

    @classmethod
    def open(  # noqa: PLR0913 - each names one thing that the server decides
        cls,
        state_dir: Path,
        *,
        boot_id: str,
        keep_days: int,
        max_mib: int,
        on_commit: OnCommit,
        clock: Callable[[], float] = time.time,
    ) -> State:
        """Open or make `relayd.db`, close what a crash left open, load the ring, start the writer.

        Raises:
            StateError: in words, with what to do.
        """
        raise NotImplementedError

    async def audit(  # noqa: PLR0913 - the columns of an audit row
        self,
        action: str,
        result: str,
        *,
        peer: Peer,
        client: str | None = None,
        key_ids: Sequence[str] = (),
        detail: str | None = None,
    ) -> AuditEntry:
        """Put an operator's action on disk.

        Raises:
            StateError: the disk refuses.
        """
        raise NotImplementedError

    def disk(self) -> DiskUse:
        """What the state takes of the disk, and what is left."""
        raise NotImplementedError

    def close(self, timeout_s: float = 5.0) -> bool:
        """Flush and let go; False when something could not be written in time. Blocks."""
        raise NotImplementedError
