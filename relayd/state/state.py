"""All that survives a restart, opened and closed in one place."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from relayd.state import boots
from relayd.state.audit import new_entry
from relayd.state.batch import BatchWriter
from relayd.state.database import (
    Connect,
    disk_refuses,
    explain,
    in_words,
    make_private,
    open_for_writing,
    side_files,
)
from relayd.state.errors import StateBusy
from relayd.state.keyring import KeyRing
from relayd.state.reader import LogReader
from relayd.state.records import AuditEntry, Peer, utc_text
from relayd.state.requestlog import RequestLog
from relayd.state.retention import Retention
from relayd.state.ringstore import load_ring
from relayd.state.stored import storable_text
from relayd.state.transactor import OnCommit, Transactor, Tx
from relayd.state.writer import Chore, Writer

__all__ = ["DiskUse", "OnCommit", "State"]

OPEN_TIMEOUT_S = 30.0
PRUNE_EVERY_S = 10.0
TIDY_EVERY_S = 600.0
CHECKPOINT_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Bytes that the database and its WAL take, and bytes free beside them."""

    database_bytes: int
    free_bytes: int


class State:
    """The state directory in use by one daemon."""

    def __init__(
        self,
        path: Path,
        writer: Writer,
        log: RequestLog,
        ring: KeyRing,
        retention: Retention,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.path = path
        self.log = log
        self.ring = ring
        self.reader = LogReader(path, clock=clock)
        self._writer = writer
        self._retention = retention
        self._clock = clock

    @classmethod
    def open(
        cls,
        state_dir: Path,
        *,
        boot_id: str,
        keep_days: int,
        max_mib: int,
        on_commit: OnCommit,
        clock: Callable[[], float] = time.time,
        connect: Connect = sqlite3.connect,
    ) -> State:
        """Open or make `relayd.db`, close what a crash left open, load the ring, start the writer.

        Where the disk is full, what is to be noted of this start waits with the request log; a ring that
        can be read is enough to serve.

        `on_commit` is called on the writer thread after each commit, with its events in order; it
        must be quick. Blocks.

        Raises:
            StateError: in words, with what to do.
        """
        path = make_private(state_dir)
        connection = open_for_writing(path, connect)
        try:
            with in_words(path):
                stored = load_ring(connection)
        except BaseException:
            connection.close()
            raise
        writer = Writer(Transactor(connection, boot_id, on_commit))
        log = RequestLog(boot_id, writer.wake)
        ring = KeyRing(writer, stored, clock)
        retention = Retention(path, keep_days=keep_days, max_mib=max_mib, clock=clock)
        chores = [
            *ring.chores(),
            Chore("checkpoint", CHECKPOINT_EVERY_S, retention.checkpoint),
            Chore("retention", PRUNE_EVERY_S, retention.prune),
            Chore("old audit", TIDY_EVERY_S, retention.tidy),
        ]
        batches = BatchWriter(log, path, clock)
        writer.start(batches, chores)
        state = cls(path, writer, log, ring, retention, clock=clock)
        register = partial(boots.register, started_at=utc_text(clock()))
        try:
            with in_words(path):
                _register(writer, batches, register)
        except BaseException:
            state.close()
            raise
        return state

    async def audit(
        self,
        action: str,
        result: str,
        *,
        peer: Peer,
        client: str | None = None,
        key_ids: Sequence[str] = (),
        detail: str | None = None,
    ) -> AuditEntry:
        """Put an operator's action on disk; the entry with its place in the log.

        Raises:
            StateError: the disk refuses.
        """
        entry = msgspec.structs.replace(
            new_entry(action, result, peer, utc_text(self._clock()), self.ring.generation),
            client=client,
            key_ids=tuple(map(storable_text, key_ids)),
            detail=detail,
        )
        try:
            return await asyncio.wrap_future(self._writer.submit(lambda tx: tx.audit(entry)))
        except sqlite3.Error as error:
            raise explain(error, self.path) from error

    def keep(self, *, keep_days: int, max_mib: int) -> None:
        """How much of the request log is kept from now on."""
        self._retention.keep(keep_days=keep_days, max_mib=max_mib)

    def disk(self) -> DiskUse:
        """What the state takes of the disk, and what is left. A few quick system calls.

        Raises:
            StateBusy: the file system does not answer.
        """
        size = 0
        try:
            for file in (self.path, *side_files(self.path)):
                if file.exists():
                    size += file.stat().st_size
            beside = os.statvfs(self.path.parent)
        except OSError as error:
            raise StateBusy(f"The disk of {self.path} can't be examined: {error.strerror}.") from error
        return DiskUse(size, beside.f_bavail * beside.f_frsize)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Flush and let go; False when something could not be written in time. Blocks."""
        # First, so that the writer's connection is the last one and leaves no WAL behind.
        self.reader.close()
        return self._writer.close(timeout_s, last=self._sign_off)

    def _sign_off(self, transactor: Transactor) -> bool:
        transactor.run(partial(boots.sign_off, stopped_at=utc_text(self._clock())), durable=True)
        return False


def _register(writer: Writer, batches: BatchWriter, register: Callable[[Tx], None]) -> None:
    try:
        writer.submit(register).result(OPEN_TIMEOUT_S)
    except sqlite3.Error as error:
        if not disk_refuses(error):
            raise
        batches.first = register
        writer.wake()
