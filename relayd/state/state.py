"""All that survives a restart, opened and closed in one place."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import ClassVar, Self

from relayd.state.audit import Audit
from relayd.state.budget import Budget
from relayd.state.crash_recovery import CrashRecovery
from relayd.state.database import Database, OnCommit
from relayd.state.directory import StateDirectory
from relayd.state.engine import Engine, EngineError, Fault, as_state_errors
from relayd.state.follower import Follower
from relayd.state.instances import Commands, Identity, Instances, News, read_live_boots
from relayd.state.keyring import KeyRing
from relayd.state.reader import LogReader
from relayd.state.records import DiskUse
from relayd.state.request_log import RequestLog
from relayd.state.retention import Retention
from relayd.state.sqlite import Sqlite, require_in_place
from relayd.state.stored_objects import StoredObjects
from relayd.state.writer import Task, Writer

_RECOVER_EVERY_S = 5.0
"""With `DEAD_AFTER_S`, the requests of a dead instance are closed within 30 s."""
_CATCH_UP_S = 2.0
_log = logging.getLogger(__name__)


class State:
    """The state directory in use by one daemon; `open` makes one."""

    ring_class: ClassVar[type[KeyRing]] = KeyRing

    def __init__(
        self,
        directory: StateDirectory,
        database: Database,
        identity: Identity,
        *,
        keep_days: int,
        max_mib: int,
        clock: Callable[[], float],
    ) -> None:
        self.path = directory.database
        self.clock = clock
        self.engine = database.engine
        self._directory = directory
        self._database = database
        self._writer = Writer(database)
        self._retention = Retention(database, keep_days=keep_days, max_mib=max_mib, clock=clock)
        self.ring = self.ring_class(self._writer, database, directory, clock)
        self._news = news = News()
        self.instances = Instances(
            identity, self._writer, database, news, lambda: self.ring.agreed_generation, clock
        )
        self.commands = Commands(self._writer, self.instances, news)
        self.follower: Follower | None = None
        """None in the only process of a database."""
        self.audit = Audit(self._writer, lambda: self.ring.generation, clock)
        self.budget = Budget(self._writer, database, clock)
        self._crash_recovery = CrashRecovery(
            database, self.budget, read_live_boots if identity.is_shared else None
        )
        self.log = RequestLog(
            database,
            lambda: self._writer.wake(log_task),
            clock,
            self.budget.settle,
            self.budget.settle_lost,
        )
        self.reader = LogReader(database.engine, clock)
        self.stored_objects = StoredObjects(
            database, lambda: self._writer.wake(stored_task), self.reader.object_owner, clock
        )
        stored_task = Task("stored objects", math.inf, self.stored_objects.write)
        log_task = Task("request log", math.inf, self.log.write)
        self._tasks = [
            log_task,
            self.budget.lost_task,
            stored_task,
            self.ring.expiry_task,
            Task("key uses", 1.0 if identity.is_shared else 5.0, self.ring.store_uses),
            Task("crash recovery", _RECOVER_EVERY_S if identity.is_shared else 1.0, self._close_crashed),
            Task("windows that are over", 60.0, self.budget.prune),
            Task("retention", 10.0, self._retention.prune_requests),
            Task("retention of the audit", 600.0, self._retention.prune_audit),
            Task("retention of stored objects", 3600.0, self.stored_objects.prune),
        ]
        if identity.is_shared:
            self.follower = Follower(database, self.ring, self.instances, self.commands, news)
            self.ring.on_change = self.instances.announce
            self._tasks += [self.instances.heartbeat_task, self.instances.forget_task]

    @classmethod
    def open(  # noqa: PLR0913 - each is a fact of its own, by name
        cls,
        directory: StateDirectory,
        *,
        boot_id: str,
        keep_days: int,
        max_mib: int,
        on_commit: OnCommit,
        worker: int | None = None,
        is_shared: bool = False,
        is_first: bool = False,
        clock: Callable[[], float] = time.time,
        engine: Engine | None = None,
    ) -> Self:
        """Open or make the database, load the ring, close what a crash left open, start the writer. Blocks.

        A full disk does not stop the start: a ring that can be read is enough to serve.

        Args:
            directory: in use by this process; closed with the state, and if it can't be opened.
            boot_id: of this run of the daemon.
            keep_days: how long request records are kept.
            max_mib: how large the database may grow.
            on_commit: called after each commit, on this thread or the writer's, with its events in order; it
                must be quick.
            worker: the number of this process among those of its machine, from 1; None: it is the only one.
            is_shared: whether other processes may use the same database; then `follow` must be called, too.
            is_first: whether no other process can use the state directory yet, as its lock says.
            clock: returns the Unix time.
            engine: the database; None: `relayd.db` in the directory.

        Raises:
            StateError: the message says what to do.
        """
        with ExitStack() as undo:
            undo.enter_context(directory)
            engine = engine or Sqlite(directory.database)
            with as_state_errors(engine):
                if directory.database_id is not None:
                    require_in_place(directory.database, directory.database_id)
                connection = undo.enter_context(closing(engine.open()))
                is_shared = is_shared or engine.is_shared
                database = Database(engine, connection, boot_id, on_commit, is_shared=is_shared)
                identity = Identity(boot_id, worker, is_shared)
                state = cls(directory, database, identity, keep_days=keep_days, max_mib=max_mib, clock=clock)
                # Only a file is guarded by the lock.
                state._recover(is_first=is_first and not engine.is_shared)
            undo.pop_all()
        state._writer.start(state._tasks)
        return state

    def _recover(self, *, is_first: bool) -> None:
        is_shared = self.instances.identity.is_shared
        try:
            if is_shared:
                self.commands.begin(self._database.connection)
                if not self.engine.is_shared:
                    self.instances.end_predecessors(of_all_workers=is_first)
                self.instances.send_heartbeat()
                self.instances.read(self._database.connection)
            self.ring.store_expired()
            if is_first or not is_shared:
                while self._crash_recovery.run() == 0.0:
                    pass
        except EngineError as error:
            if error.fault is not Fault.FULL:
                raise
            # The tasks try again.
            _log.error("Work that an earlier run left can't be written yet: %s", error)

    def _close_crashed(self) -> float | None:
        if self.instances.identity.is_shared and not self.instances.can_judge:
            return None
        return self._crash_recovery.run()

    def follow(self, on_news: Callable[[int], None], on_outdated: Callable[[], None] = lambda: None) -> None:
        """Take part in what other instances do, from now on; nothing to do in the only process.

        Args:
            on_news: called on the running loop with the newest place in the log, when others wrote to it.
            on_outdated: called on the running loop when a newer relayd has changed the tables so that this
                one would spoil them.
        """
        if self.follower is not None:
            self.follower.start(on_news, on_outdated)

    async def caught_up(self) -> None:
        """Wait until what others changed during the start is known here, at most 2 s; after `follow`."""
        follower = self.follower
        if follower is not None:
            await self._news.wait_until(lambda: follower.has_looked, _CATCH_UP_S)

    def set_retention(self, *, keep_days: int, max_mib: int) -> None:
        """Set how much of the request log is kept from now on."""
        self._retention.set_limits(keep_days=keep_days, max_mib=max_mib)

    def disk_use(self) -> DiskUse | None:
        """Return what the state takes of the disk, and what is left; None if it is on no disk of ours.

        A few quick system calls.

        Raises:
            StateBusy: the file system does not answer.
            StateReplaced: the files at the path are not those in use.
        """
        with as_state_errors(self.engine):
            self._database.connection.check_in_place()
        return self.engine.disk_use()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Write what waits and release the file; False if something could not be written in time. Blocks."""
        if self.follower is not None:
            self.follower.close()
        is_ended = self._writer.close(timeout_s, self._finish)
        if is_ended:
            # Else the thread still writes: the lock is held until the process ends.
            self._directory.close()
            self.engine.close()
        return is_ended and not self.log.queued

    def _finish(self, until: float) -> None:
        self.log.drain(until)
        if self.instances.identity.is_shared:
            try:
                self.instances.end()
            except EngineError as error:
                _log.warning("That this instance has ended could not be stored: %s", error)
