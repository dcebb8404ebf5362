"""The processes that share this relay: which of them live, and what one asks of the others.

The database is all that they share. Each has a row that says that it lives; a command is a row that the
others find when they look (`relayd.state.follower`), and so is its reply.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from relayd import __version__
from relayd.state.database import Database, Transaction
from relayd.state.engine import Connection, EngineError
from relayd.state.errors import StateError
from relayd.state.records import Instance, InstanceRing, utc_text
from relayd.state.writer import Task, Writer

HEARTBEAT_S = 2.0
DEAD_AFTER_S = 15.0
"""An instance whose last heartbeat is older is taken for dead, by the clock of the database."""
_MAX_GAP_S = 3 * HEARTBEAT_S
"""Between two heartbeats; after a longer one, an instance was out of touch."""
_FORGET_AFTER_S = 3600.0
_COMMANDS_KEPT_S = 60.0
_COMMANDS_AT_ONCE = 100

# {now}: the Unix time by the clock of the database.
_LIVE_BOOTS = f"""SELECT boot_id FROM instances
    WHERE ended_at IS NULL AND heartbeat_at > {{now}} - {DEAD_AFTER_S}"""  # noqa: S608 - own SQL
_HEARTBEAT = """INSERT INTO instances (boot_id, name, worker, address, pid, version, started_at,
        generation, intake, streams, heartbeat_at)
    VALUES (:boot_id, :name, :worker, :address, :pid, :version, :started_at,
        :generation, :intake, :streams, {now})
    ON CONFLICT (boot_id) DO UPDATE SET address = excluded.address, generation = excluded.generation,
        intake = excluded.intake, streams = excluded.streams, heartbeat_at = excluded.heartbeat_at"""
_END = "UPDATE instances SET ended_at = {now}, streams = 0 WHERE boot_id = ?"
_END_PREDECESSORS = """UPDATE instances SET ended_at = {now}, streams = 0
    WHERE ended_at IS NULL AND boot_id != :boot_id"""
_READ_INSTANCES = """SELECT boot_id, name, worker, address, pid, version, started_at,
        {now} - heartbeat_at, generation, intake, streams
    FROM instances WHERE ended_at IS NULL AND heartbeat_at > {now} - ?"""
_FORGET_INSTANCES = f"DELETE FROM instances WHERE heartbeat_at < {{now}} - {_FORGET_AFTER_S}"  # noqa: S608 - own SQL

_NEWEST_COMMAND = "SELECT value FROM meta WHERE name = 'command'"
_NEW_COMMAND = "UPDATE meta SET value = value + 1 WHERE name = 'command' RETURNING value"
_INSERT_COMMAND = """INSERT INTO commands (id, at, sender, target, kind, argument)
    VALUES (?, {now}, ?, ?, ?, ?)"""
_READ_COMMANDS = """SELECT id, kind, argument FROM commands
    WHERE id > ? AND sender != ? AND (target IS NULL OR target = ?) ORDER BY id LIMIT ?"""
_INSERT_REPLY = "INSERT INTO replies (command_id, boot_id, reply) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_READ_REPLIES = "SELECT boot_id, reply FROM replies WHERE command_id = ?"
_FORGET_REPLIES = f"""DELETE FROM replies WHERE command_id NOT IN
    (SELECT id FROM commands WHERE at >= {{now}} - {_COMMANDS_KEPT_S})"""  # noqa: S608 - own SQL
_FORGET_COMMANDS = f"DELETE FROM commands WHERE at < {{now}} - {_COMMANDS_KEPT_S}"  # noqa: S608 - own SQL

_log = logging.getLogger(__name__)

Handler = Callable[[Any], Awaitable[Any]]
"""Takes the argument of a command as JSON gives it, and returns a reply that JSON can hold."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which process of the relay this is."""

    boot_id: str
    worker: int | None = None
    """Its number among the processes of its machine, from 1; None if it is the only one."""
    is_shared: bool = False
    """Whether other processes may use the same database."""

    @property
    def name(self) -> str:
        """The host's name, and the number of the worker."""
        return socket.gethostname() if self.worker is None else f"{socket.gethostname()}-{self.worker}"


class Activity(NamedTuple):
    """What an instance does now."""

    intake: str
    streams: int


class News:
    """Lets coroutines wait until the follower has read something new.

    While one waits, the follower looks more often.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Event] = set()
        self.hurry: Callable[[], None] = lambda: None
        """Makes the follower look now; set by the follower."""

    @property
    def is_awaited(self) -> bool:
        """Return whether a coroutine waits."""
        return bool(self._waiting)

    def open(self) -> None:
        """Wake coroutines of the running loop from now on."""
        self._loop = asyncio.get_running_loop()

    def tell(self, function: Callable[..., object], *args: object) -> None:
        """Call a function on the loop, if it still runs, and let all who wait look again. For any thread."""
        with suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._tell, function, *args)

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        function(*args)
        for event in self._waiting:
            event.set()

    async def wait_until(self, holds: Callable[[], bool], timeout_s: float) -> None:
        """Return as soon as something holds, or the time is over."""
        event = asyncio.Event()
        self._waiting.add(event)
        self.hurry()
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    event.clear()
                    await event.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(event)


class Instances:
    """This process and the others that share its relay, as far as it has heard of them.

    Args:
        generation: returns that of the ring in force here; -1 if the database has another ring.
        clock: returns the Unix time.
    """

    def __init__(
        self,
        identity: Identity,
        writer: Writer,
        database: Database,
        news: News,
        generation: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self.identity = identity
        self.address = ""
        """Where this process serves clients; set when it does."""
        self.activity: Callable[[], Activity] = lambda: Activity("live", 0)
        """Returns what this process does now, on any thread; set when it serves."""
        self.heartbeat_task = Task("heartbeat", HEARTBEAT_S, self.send_heartbeat)
        self.forget_task = Task("instances and commands that are over", 60.0, self.forget)
        self._writer = writer
        self._database = database
        self._news = news
        self._generation = generation
        self._started_at = utc_text(clock())
        self._others: tuple[Sequence[Instance], float] = ((), time.monotonic())
        """The others that lived when they were read, and the monotonic time of that."""
        self._beaten_at = self._in_touch_since = time.monotonic()

    @property
    def can_judge(self) -> bool:
        """Return whether this process was in touch for long enough to say which of the others are dead.

        After the database was down, or this process stood still, the heartbeats of all are old.
        """
        now = time.monotonic()
        return now - self._beaten_at < _MAX_GAP_S and now - self._in_touch_since > DEAD_AFTER_S

    @property
    def own(self) -> Instance:
        """Return this process."""
        identity, activity = self.identity, self.activity()
        return Instance(
            boot_id=identity.boot_id,
            name=identity.name,
            worker=identity.worker,
            address=self.address,
            pid=os.getpid(),
            version=__version__,
            started_at=self._started_at,
            heartbeat_age_s=time.monotonic() - self._beaten_at if identity.is_shared else 0.0,
            generation=self._generation(),
            intake=activity.intake,
            streams=activity.streams,
        )

    def announce(self) -> None:
        """Let the others see at once what has changed here. For any thread."""
        if self.identity.is_shared:
            self._writer.wake(self.heartbeat_task)

    def others(self) -> list[Instance]:
        """Return the other live instances, as they were at their last heartbeats. No I/O."""
        others, read_at = self._others
        age_s, dead_after_s = time.monotonic() - read_at, self._dead_after_s
        return [
            replace(other, heartbeat_age_s=other.heartbeat_age_s + age_s)
            for other in others
            if other.heartbeat_age_s + age_s < dead_after_s
        ]

    @property
    def _dead_after_s(self) -> float:
        """Return how old heartbeats may be: while this process writes none, it reads only old ones, too."""
        own_age_s = time.monotonic() - self._beaten_at
        return DEAD_AFTER_S if own_age_s < _MAX_GAP_S else DEAD_AFTER_S + own_age_s

    def last_known(self) -> dict[str, Instance]:
        """Return the others, by boot id, that lived when the database last told of them. No I/O."""
        others, _ = self._others
        return {other.boot_id: other for other in others}

    def live(self) -> list[Instance]:
        """Return all live instances, this one among them, by name. No I/O."""
        return sorted([self.own, *self.others()], key=lambda one: (one.name, one.worker or 0, one.boot_id))

    async def with_ring(self, generation: int, timeout_s: float = 1.0) -> list[InstanceRing]:
        """Return which live instances have a generation of the ring, once all have it or the time is over."""

        def is_everywhere() -> bool:
            return all(one.generation >= generation for one in self.live())

        if not is_everywhere():
            await self._news.wait_until(is_everywhere, timeout_s)
        return [
            InstanceRing(
                name=one.name,
                boot_id=one.boot_id,
                generation=one.generation,
                has_it=one.generation >= generation,
            )
            for one in self.live()
        ]

    def read(self, connection: Connection) -> None:
        """Read which others live; on the follower's thread.

        Raises:
            EngineError: it can't be read.
        """
        read_at = time.monotonic()
        rows = connection.execute(_by_clock(connection, _READ_INSTANCES), (self._dead_after_s,)).rows
        others = [one for one in map(_instance, rows) if one.boot_id != self.identity.boot_id]
        self._others = others, read_at

    # Tasks of the writer.

    def send_heartbeat(self) -> None:
        """Write that this process lives, and what it does.

        Raises:
            EngineError: nothing is written.
        """
        beaten_at = time.monotonic()
        with self._database.transaction(durable=False) as transaction:
            transaction.connection.execute(
                _by_clock(transaction.connection, _HEARTBEAT), msgspec.structs.asdict(self.own)
            )
        if beaten_at - self._beaten_at > _MAX_GAP_S:
            self._in_touch_since = beaten_at
        self._beaten_at = beaten_at

    def end(self) -> None:
        """Mark this process as ended, in good order.

        Raises:
            EngineError: nothing is written; the others notice by the missing heartbeats.
        """
        with self._database.transaction(durable=False) as transaction:
            transaction.connection.execute(_by_clock(transaction.connection, _END), (self.identity.boot_id,))

    def end_predecessors(self, *, of_all_workers: bool) -> None:
        """Mark the processes as ended whose place this one takes: a dead one cannot do so itself.

        Args:
            of_all_workers: whether this is the first process of all; else it has the place of one worker.

        Raises:
            EngineError: nothing is written.
        """
        statement = _END_PREDECESSORS if of_all_workers else f"{_END_PREDECESSORS} AND worker = :worker"
        mine = {"boot_id": self.identity.boot_id, "worker": self.identity.worker}
        with self._database.transaction(durable=False) as transaction:
            transaction.connection.execute(_by_clock(transaction.connection, statement), mine)

    def forget(self) -> None:
        """Remove the rows of instances that are long over, and of old commands. All instances do it.

        Raises:
            EngineError: nothing is removed.
        """
        with self._database.transaction(durable=False) as transaction:
            for statement in (_FORGET_REPLIES, _FORGET_COMMANDS, _FORGET_INSTANCES):
                transaction.connection.execute(_by_clock(transaction.connection, statement))


def _by_clock(connection: Connection, statement: str) -> str:
    return statement.format(now=connection.dialect.now_s)


def read_live_boots(connection: Connection) -> set[str]:
    """Return the boots that live; a boot that is not among them is over. Raises EngineError."""
    return {boot_id for (boot_id,) in connection.execute(_by_clock(connection, _LIVE_BOOTS))}


def _instance(row: Sequence[Any]) -> Instance:
    return Instance(**dict(zip(Instance.__struct_fields__, row, strict=True)))


class Replies(dict[str, Any]):
    """The replies to a command by boot id."""

    others: frozenset[str] | None = frozenset()
    """The boot ids of the other instances that were asked; None: they could not be asked."""


class Commands:
    """Asks all instances, or one, to do something; does what others ask of this one.

    A command is done at most once by each instance. It can be lost, if an instance does not get to it within
    a minute: what must not be lost belongs into the state itself.
    """

    def __init__(self, writer: Writer, instances: Instances, news: News) -> None:
        self._writer = writer
        self._instances = instances
        self._boot_id = instances.identity.boot_id
        self._news = news
        self._handlers: dict[str, Handler] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._newest = 0
        """Of the commands that this instance has seen; changed by the follower's thread alone."""
        self._replies: dict[int, dict[str, Any]] = {}
        """What came of the commands that are waited for, by their ids."""

    def handle(self, kind: str, function: Handler) -> None:
        """Answer commands of this kind with a function; it is called on the event loop."""
        self._handlers[kind] = function

    async def ask(
        self, kind: str, argument: object = None, *, instance: str | None = None, timeout_s: float = 1.0
    ) -> Replies:
        """Return the replies of all live instances by boot id, this one's among them.

        An instance that failed, does not know this kind of command or took too long has no reply. The only
        process of a database does not touch the disk. If the database does not answer, there is only the
        reply of this instance.

        Args:
            kind: what `handle` was told.
            argument: for the function; what JSON can hold.
            instance: the boot id of the only one to ask.
            timeout_s: how long the others have.

        Raises:
            StateBusy: the state is closed.
        """
        own = asking = storing = None
        if self._instances.identity.is_shared and instance != self._boot_id:
            row = self._boot_id, instance, kind, msgspec.json.encode(argument).decode()
            storing = self._writer.submit(partial(_insert_command, row=row), durable=False)
        async with asyncio.TaskGroup() as group:
            if storing is not None:
                asking = group.create_task(self._ask_others(storing, timeout_s), name=f"ask {kind}")
            if instance in (None, self._boot_id):
                own = await self._do(kind, msgspec.to_builtins(argument))
        replies = Replies() if asking is None else asking.result()
        if own is not None:
            replies[self._boot_id] = msgspec.json.decode(own)
        return replies

    async def _ask_others(self, storing: Future[_Asked], timeout_s: float) -> Replies:
        """Return the replies to a command that is being stored."""
        replies = Replies()
        end = time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                asked = await asyncio.wrap_future(storing)
        except (EngineError, StateError, TimeoutError) as error:
            _log.warning("The other instances can't be asked: %s", str(error) or "the database is too slow")
            replies.others = None
            return replies
        command_id, others = asked
        replies.others = frozenset(others)
        found = self._replies[command_id] = {}
        try:
            await self._news.wait_until(lambda: others <= found.keys(), end - time.monotonic())
        finally:
            del self._replies[command_id]
        replies.update(found)
        return replies

    async def _do(self, kind: str, argument: Any) -> bytes | None:
        """Return this instance's reply as JSON; None if it has none."""
        handler = self._handlers.get(kind)
        if handler is None:
            _log.info("The command '%s' is not known to this version of relayd", kind)
            return None
        try:
            return msgspec.json.encode(await handler(argument))
        except Exception:  # noqa: BLE001 - a bug in a handler; the one who asked sees that the reply is missing
            _log.exception("The command '%s' failed", kind)
            return None

    async def close(self) -> None:
        """End what others asked for and is not done."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # On the follower's thread.

    def begin(self, connection: Connection) -> None:
        """Skip the commands so far: they were asked before this instance began.

        Raises:
            EngineError: they can't be read.
        """
        self._newest = connection.execute(_NEWEST_COMMAND).fetchone()[0]

    def read(self, connection: Connection, newest: int) -> None:
        """Begin what others ask of this instance, and take replies.

        Args:
            connection: the follower's.
            newest: the id of the newest command in the database.

        Raises:
            EngineError: it can't be read.
        """
        # Its newest command is an older one if the database lost some.
        self._newest = min(self._newest, newest)
        if newest > self._newest:
            place = self._newest, self._boot_id, self._boot_id, _COMMANDS_AT_ONCE
            rows = connection.execute(_READ_COMMANDS, place).rows
            # There may be newer ones by now than the newest that was seen.
            last: int = rows[-1][0] if rows else newest
            self._newest = last if len(rows) == _COMMANDS_AT_ONCE else max(last, newest)
            self._news.tell(self._start, rows)
        for command_id in tuple(self._replies):
            replies = connection.execute(_READ_REPLIES, (command_id,)).rows
            if replies:
                self._news.tell(self._take, command_id, replies)

    # On the event loop.

    def _start(self, rows: Sequence[tuple[int, str, str]]) -> None:
        for command_id, kind, argument in rows:
            task = asyncio.create_task(self._answer(command_id, kind, argument), name=f"command {kind}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, command_id: int, kind: str, argument: str) -> None:
        reply = await self._do(kind, msgspec.json.decode(argument))
        if reply is None:
            return
        work = partial(_insert_reply, row=(command_id, self._boot_id, reply.decode()))
        try:
            # An instance that was asked to stop still says that it does.
            await asyncio.shield(asyncio.wrap_future(self._writer.submit(work, durable=False)))
        except (EngineError, StateError) as error:
            _log.warning("The reply to the command '%s' could not be stored: %s", kind, error)

    def _take(self, command_id: int, rows: Sequence[tuple[str, str]]) -> None:
        replies = self._replies.get(command_id)
        if replies is not None:
            replies.update((boot_id, msgspec.json.decode(reply)) for boot_id, reply in rows)


class _Asked(NamedTuple):
    command_id: int
    others: set[str]
    """The boot ids of those that are to reply."""


def _insert_command(transaction: Transaction, row: tuple[str, str | None, str, str]) -> _Asked:
    command_id: int = transaction.connection.execute(_NEW_COMMAND).fetchone()[0]
    insert = _by_clock(transaction.connection, _INSERT_COMMAND)
    transaction.connection.execute(insert, (command_id, *row))
    transaction.connection.notify()
    sender, target, *_ = row
    # Not those that this process has heard of: one that has just joined would be left out.
    others = read_live_boots(transaction.connection) - {sender}
    return _Asked(command_id, others if target is None else others & {target})


def _insert_reply(transaction: Transaction, row: tuple[int, str, str]) -> None:
    transaction.connection.execute(_INSERT_REPLY, row)
