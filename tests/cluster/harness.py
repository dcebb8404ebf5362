"""Machines that share one relay, streams that are checked byte for byte, and an operator who changes keys.

A machine is a process with a loopback address and a state directory of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from relayd.admin.client import AdminClient, AdminClientError, Refused
from relayd.admin.schema import (
    LIVE_STATES,
    ClientChange,
    Ended,
    Gap,
    Hello,
    KeyChange,
    KeyState,
    LogEvent,
    Lost,
    Outcome,
    Progress,
)
from tests.e2e.daemon import KEY, Daemon
from tests.load.harness import fresh_address, provider, report
from tests.wire import DONE, PATIENCE_S, Wire, ask, body, eventually, post

HOLDS_AFTER_S = 1.0
"""A change of keys holds on every machine so long after it was acknowledged."""
_WORDS = 20
"""Of each question, which is also its answer: one delta a word, and as many completion tokens."""
_TOKENS = _WORDS + 2
"""What the scripted provider says that a request used."""
_RETRY_S = 0.25
_POLL_S = 0.05
_KEPT_KEYS = 10
_RING_UNAVAILABLE = "ring_unavailable"
"""The code of a change that the database cannot take."""
_MAY_BE_LOST_S = 3.0
"""Of the log of a process that is killed; it is written in groups, and others use the disk as well."""

T = TypeVar("T")


class Machine(Daemon):
    """One relayd of several.

    Args:
        home: an empty directory for all that it keeps.
        settings: configuration by dotted key.
    """

    @property
    def instances(self) -> int:
        """How many processes serve."""
        return int(self.settings["server.workers"])

    def __init__(self, home: Path, settings: Mapping[str, Any]) -> None:
        home.mkdir()
        super().__init__(
            home,
            settings={
                "server.host": fresh_address(),
                "server.max_streams_per_address": 1000,
                "log.level": "warning",
                **settings,
            },
        )


@contextmanager
def machines(home: Path, number: int, settings: Mapping[str, Any] | None = None) -> Iterator[list[Machine]]:
    """Run so many machines.

    Args:
        home: where their state directories are.
        number: how many.
        settings: of each, such as `state.url`.
    """
    with provider() as base_url, ExitStack() as stack:
        chosen = {"upstream.base_url": base_url, **(settings or {})}
        made = [Machine(home / f"machine-{n}", chosen) for n in range(number)]
        # The first one makes what they share.
        stack.enter_context(made[0])
        with ThreadPoolExecutor() as pool:
            list(pool.map(stack.enter_context, made[1:]))
        yield made


@dataclass(frozen=True, slots=True)
class Answer:
    """How one request of a load went."""

    machine: Machine
    request_id: str | None
    end: str
    """`whole`, the code of its error, `broken` (the connection ended early) or `refused` (there was none)."""
    began_s: float
    ended_s: float


class Load:
    """Clients that ask one question after another, each another one; use it as an async context manager.

    Leaving it waits for the open streams. An answer that is wrong, and not merely broken off, raises.

    Args:
        machines: each gets an equal share of the clients.
        streams: how many clients there are.
        key: returns the key for the next request to a machine.
    """

    def __init__(self, machines: Sequence[Machine], streams: int, *, key: Callable[[Machine], str]) -> None:
        self.answers: list[Answer] = []
        self._machines = [machines[n % len(machines)] for n in range(streams)]
        self._key = key
        # As many deltas a second as the machines, the provider and these clients can share two cores for.
        self._interval_ms = max(20, streams // 2)
        self._stopping = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._clients = [
            asyncio.create_task(self._client(machine, n), name=f"client {n}")
            for n, machine in enumerate(self._machines)
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        await _ended(self._clients, error, cancel=error is not None)

    async def more(self, *machines: Machine, end: str = "whole") -> None:
        """Wait until every client of these machines has seen such an end of a request that is yet to come."""
        now_s = time.monotonic()
        wanted = sum(machine in machines for machine in self._machines)
        while True:
            _raise_from(self._clients)
            ends = Counter(a.end for a in self.answers if a.began_s >= now_s and a.machine in machines)
            if ends[end] >= wanted:
                return
            late_s = time.monotonic() - now_s
            assert late_s < PATIENCE_S, f"{late_s:.0f} s, and not {wanted} times {end}, but {ends}"
            await asyncio.sleep(_POLL_S)

    def ends(self, *machines: Machine) -> Counter[str]:
        """Count how the requests of these machines ended."""
        return Counter(answer.end for answer in self.answers if answer.machine in machines)

    async def _client(self, machine: Machine, number: int) -> None:
        for n in count():
            if self._stopping.is_set():
                return
            answer = await self._ask(machine, f"client {number} question {n}:")
            self.answers.append(answer)
            if answer.end != "whole":
                await asyncio.sleep(_RETRY_S)

    async def _ask(self, machine: Machine, topic: str) -> Answer:
        question = f"{topic} {secrets.token_hex(4)} " + " ".join(f"word{n}" for n in range(_WORDS - 5))
        payload = json.dumps(
            {
                "model": f"demo:text=echo,interval_ms={self._interval_ms}",
                "messages": [{"role": "user", "content": question}],
                "max_tokens": _WORDS,
            }
        ).encode()
        began_s = time.monotonic()
        end, request_id = "refused", None
        try:
            async with await Wire.open(machine.port, machine.host) as wire, asyncio.timeout(PATIENCE_S):
                end = "broken"
                wire.send(post(self._key(machine), payload))
                reply = await wire.head()
                request_id = reply.header("X-Request-Id")
                await wire.rest(reply)
                if not reply.cut:
                    assert reply.lines[-1] == DONE, reply.body
                    assert reply.error is not None or reply.text == question, reply.body
                    end = "whole" if reply.error is None else reply.error.partition(":")[0]
        except TimeoutError:  # which is an OSError as well
            raise
        except (OSError, EOFError):
            pass
        return Answer(machine, request_id, end, began_s, time.monotonic())


@dataclass(frozen=True, slots=True)
class _Key:
    """One key of the operator's client, and its last change."""

    id: str
    secret: str
    at_s: float
    """When the change was acknowledged."""
    is_everywhere: bool
    """Whether every instance had it by then, as the answer said."""


class KeyChanges:
    """An operator who rotates and revokes keys without a pause, at one machine after the other.

    Use it as an async context manager. Whatever was acknowledged is remembered.

    Args:
        machines: whose admin sockets are used.
        late_s: how long after its acknowledgement a change may be unknown to some instance.
    """

    def __init__(self, machines: Sequence[Machine], late_s: float) -> None:
        self.failures = Counter[str]()
        self.accepted: list[str] = []
        """Where a revoked key was served although its revocation must have held."""
        self.acknowledged = 0
        self._live: list[_Key] = []
        self._revoked: list[_Key] = []
        self._machines = machines
        self._instances = sum(machine.instances for machine in machines)
        self._late_s = late_s
        self._stopping = asyncio.Event()
        self._outages: dict[Machine, list[tuple[float, float]]] = {machine: [] for machine in machines}
        self._silent: set[Machine] = set()

    async def __aenter__(self) -> Self:
        added = await add_client(self._machines[0], "operated")
        assert added.key is not None
        assert added.secret is not None
        self._live.append(self._key(added.key.id, added.secret, added))
        self._tasks = [
            asyncio.create_task(self._change_keys(), name="operator"),
            asyncio.create_task(self._use_revoked(), name="user of revoked keys"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # In Python before 3.12, `asyncio.wait_for` swallows a cancellation that comes with its result.
        self._stopping.set()
        await _ended(self._tasks, error, cancel=True)

    @asynccontextmanager
    async def outage(self, *machines: Machine, silent: bool = False) -> AsyncIterator[None]:
        """Excuse these machines: they cannot learn of changes in this time, nor of those just before it.

        Args:
            machines: which ones.
            silent: they do not answer the operator either.
        """
        began_s = time.monotonic()
        for machine in machines:
            self._outages[machine].append((began_s - self._late_s, inf))
        self._silent |= set(machines) if silent else set()
        yield
        self._silent -= set(machines)
        for machine in machines:
            self._outages[machine][-1] = began_s - self._late_s, time.monotonic()

    def valid(self) -> str:
        """Return a key that must work on every machine, and will for the next moments."""
        held = [key for key in self._live if all(self._holds(key, machine) for machine in self._machines)]
        return held[-1].secret if held else KEY

    def _holds(self, key: _Key, machine: Machine) -> bool:
        """Return whether the last change of a key must be known to a machine by now."""
        if key.is_everywhere:
            return True
        ends_s = [end_s for began_s, end_s in self._outages[machine] if began_s <= key.at_s <= end_s]
        return max([key.at_s, *ends_s]) + self._late_s < time.monotonic()

    async def more(self, number: int = 3) -> None:
        """Wait until so many more changes were acknowledged."""
        wanted = self.acknowledged + number
        async with asyncio.timeout(PATIENCE_S):
            while self.acknowledged < wanted:
                _raise_from(self._tasks)
                await asyncio.sleep(_POLL_S)

    async def refused(self) -> None:
        """Wait until a change was refused because the database is gone."""
        known = self.failures[_RING_UNAVAILABLE]

        async def happened() -> bool:
            _raise_from(self._tasks)
            return self.failures[_RING_UNAVAILABLE] > known

        await eventually_told(happened)

    async def known_to(self, machine: Machine) -> None:
        """Wait until a machine knows every change that was acknowledged; one that is lost never comes."""
        wanted = {key.id: LIVE_STATES for key in self._live}
        wanted |= {key.id: frozenset({KeyState.REVOKED}) for key in self._revoked}

        async def known() -> bool:
            states = {key.id: key.state for key in (await machine.admin.keys()).keys}
            return all(states.get(key_id) in allowed for key_id, allowed in wanted.items())

        await eventually_told(known)

    async def _change_keys(self) -> None:
        for n in count():
            if self._stopping.is_set():
                return
            machine = self._machines[n % len(self._machines)]
            if machine not in self._silent:
                try:
                    await self._change_one(machine.admin, f"change-{n}")
                except AdminClientError as error:
                    self.failures[error.code if isinstance(error, Refused) else type(error).__name__] += 1
            await asyncio.sleep(_POLL_S)

    async def _change_one(self, admin: AdminClient, name: str) -> None:
        """Rotate the active key, or revoke the oldest of too many."""
        ring = await admin.keys()
        if len(self._live) > _KEPT_KEYS:
            # From here on neither live nor revoked, until the answer says so.
            key = self._live.pop(0)
            change = await admin.revoke_key(
                key.id, cut=False, generation=ring.generation, idempotency_key=name
            )
            self._revoked.append(self._key(key.id, key.secret, change))
        else:
            mine = [key for key in ring.keys if key.client == "operated" and key.state is KeyState.ACTIVE]
            if not mine:
                return  # this machine does not know the client yet
            change = await admin.rotate_key(
                mine[0].id, grace_s=3600, generation=ring.generation, idempotency_key=name
            )
            assert change.secret is not None
            self._live.append(self._key(change.key.id, change.secret, change))
        self.acknowledged += 1

    def _key(self, key_id: str, secret: str, change: KeyChange | ClientChange) -> _Key:
        """Return a key whose change was acknowledged right now."""
        have_it = sum(instance.has_it for instance in change.instances)
        return _Key(key_id, secret, time.monotonic(), is_everywhere=have_it == self._instances)

    async def _use_revoked(self) -> None:
        """Ask every machine again and again with the newest key whose revocation must hold there."""
        while not self._stopping.is_set():
            await asyncio.sleep(_POLL_S)
            for machine in set(self._machines) - self._silent:
                for key in [key for key in self._revoked if self._holds(key, machine)][-1:]:
                    since_s = time.monotonic() - key.at_s
                    with suppress(OSError, EOFError):
                        reply = await ask(machine.port, key.secret, body("demo:deltas=1"), host=machine.host)
                        if reply.status == HTTPStatus.OK:
                            self.accepted.append(f"{machine.host}, {since_s:.2f} s after its revocation")


class Trial:
    """A relay at work. What must be true of it in the end, whatever breaks meanwhile, is in `check`.

    Args:
        machines: of the relay.
        streams: how many are open at a time.
        changes: its operator.
        bounded: the key of a client with a bound in tokens.
    """

    def __init__(self, machines: Sequence[Machine], streams: int, changes: KeyChanges, bounded: str) -> None:
        self.machines = machines
        self.changes = changes
        self.load = Load(machines, streams, key=self._valid_key)
        bounded_streams = max(len(machines), streams // 10)
        self.bounded = Load(machines, bounded_streams, key=lambda _: bounded)
        self._allowed: defaultdict[Machine, set[str]] = defaultdict(set)
        self._killed_at: dict[Machine, float] = {}
        self._killed_workers: set[str] = set()
        self._presumed_dead: set[Machine] = set()

    async def kill_worker(self, machine: Machine) -> None:
        """End the worker that has the most streams; only these may be broken, and none refused."""
        workers = (await machine.admin.instances()).instances
        killed = max(workers, key=lambda worker: worker.streams)
        self._killed_workers.add(killed.boot_id)
        self._allowed[machine] = {"broken"}
        self._killed_at[machine] = time.monotonic()
        os.kill(killed.pid, signal.SIGKILL)

    def kill(self, machine: Machine) -> None:
        """End a machine at once; from now on its streams may be broken, and refused."""
        self._allowed[machine] = {"broken", "refused"}
        self._killed_at[machine] = time.monotonic()
        machine.kill()

    async def freeze(self, machine: Machine) -> None:
        """Let a machine stand still; others may record what it has open as ended by a crash.

        When it goes on, its time limits are over for connections that it has not read from yet.
        """
        self._presumed_dead.add(machine)
        self._allowed[machine] = {"broken"}
        await self.load.more(machine)
        machine.signal(signal.SIGSTOP)

    def _valid_key(self, machine: Machine) -> str:
        """Return a key that is still valid when the machine reads it, however late that is."""
        return KEY if machine in self._presumed_dead else self.changes.valid()

    async def start(self, machine: Machine) -> None:
        """Start a machine again."""
        await asyncio.to_thread(machine.start)

    async def without_database(self) -> None:
        """Wait until every machine has noticed that the database is gone, and serves all the same."""
        await self.bounded.more(*self.machines, end="state_unavailable")
        await self.load.more(*self.machines)
        await self.changes.refused()

    async def connected(self) -> None:
        """Wait until every machine has its database again."""

        async def all_connected() -> bool:
            return all([(await machine.admin.status()).engine.ok for machine in self.machines])

        await eventually_told(all_connected)

    async def check(self, bound: int) -> str:
        """Check what must be true of every trial, when its load has ended; return a line for the report."""
        assert self.changes.accepted == [], self.changes.accepted
        for machine in self.machines:
            await self.changes.known_to(machine)
            ends = self.load.ends(machine)
            assert set(ends) <= {"whole"} | self._allowed[machine], (machine.host, ends)
        ends = self.load.ends(*self.machines)
        bounded = self.bounded.ends(*self.machines)
        assert set(bounded) <= {"whole", "broken", "refused", "over_budget", "state_unavailable"}, bounded
        assert bounded["whole"] * _TOKENS <= bound, "more was used than the bound allows"
        lost = await self._check_log()
        return (
            f"streams {dict(ends)}; with bounds {dict(bounded)}; {self.changes.acknowledged} changes of keys"
            f" acknowledged, others {dict(self.changes.failures)}; {lost} records lost and told"
        )

    async def _check_log(self) -> int:
        """Check that all machines show the same log, and that it has every request once, or counts it."""

        async def written() -> bool:
            health = [(await machine.admin.status()).log for machine in self.machines]
            return not any(log.queued or log.error for log in health)

        await eventually_told(written)
        logs = [await log_of(machine) for machine in self.machines]
        shortest = min(map(len, logs))
        assert all(log[:shortest] == logs[0][:shortest] for log in logs), "the machines show different logs"
        log = max(logs, key=len)
        ended = Counter(event.record.id for event in log if isinstance(event, Ended))
        outcomes = {event.record.id: event.record.outcome for event in log if isinstance(event, Ended)}
        boots = {event.record.id: event.boot_id for event in log if isinstance(event, Ended)}
        lost = sum(event.count for event in log if isinstance(event, Lost))
        assert set(ended.values()) == {1}, "a request ended more than once"
        missing = 0
        for answer in (*self.load.answers, *self.bounded.answers):
            killed_at_s = self._killed_at.get(answer.machine, inf)
            is_safe = not killed_at_s - _MAY_BE_LOST_S < answer.ended_s < killed_at_s + _MAY_BE_LOST_S
            if answer.request_id is None or not is_safe:
                continue
            missing += answer.request_id not in ended
            if answer.end == "whole" and answer.machine not in self._presumed_dead:
                assert outcomes.get(answer.request_id, Outcome.COMPLETED) is Outcome.COMPLETED
            if answer.end == "broken" and self._killed_workers:
                assert boots.get(answer.request_id) in {*self._killed_workers, None}
        assert missing <= lost, f"{missing} requests are not in the log, which counts {lost} as lost"
        return lost


@asynccontextmanager
async def trial(machines: Sequence[Machine], streams: int, *, strict: bool) -> AsyncIterator[Trial]:
    """Put a load on a relay, change its keys, and use up a bound; then check all that must be true.

    The block breaks something, and waits until all is well again.

    Args:
        machines: of one relay.
        streams: how many are open at a time; a tenth as many more are of a client with a bound.
        strict: whether a change must hold on time also where its answer does not say that it does: not if
            other tests keep the cores busy.
    """
    bound = _TOKENS * max(len(machines), streams // 10) * 5
    added = await add_client(machines[0], "bounded", {"tokens_per_month": bound})
    assert added.secret is not None
    await known_everywhere(machines, added.generation)
    async with KeyChanges(machines, HOLDS_AFTER_S if strict else inf) as changes:
        under_trial = Trial(machines, streams, changes, added.secret)
        async with under_trial.load, under_trial.bounded:
            await under_trial.load.more(*machines)
            await changes.more()
            yield under_trial
            await under_trial.load.more(*machines)
            await changes.more()
            await under_trial.bounded.more(*machines, end="over_budget")
    report(await under_trial.check(bound))


async def add_client(machine: Machine, name: str, bounds: Mapping[str, object] | None = None) -> ClientChange:
    """Add a client."""
    return await change(
        machine,
        lambda generation, idempotency_key: machine.admin.add_client(
            name, bounds or {}, generation=generation, idempotency_key=idempotency_key
        ),
    )


async def known_everywhere(machines: Sequence[Machine], generation: int) -> None:
    """Wait until all processes of these machines have a generation of the ring."""
    number = sum(machine.instances for machine in machines)

    async def known() -> bool:
        # One that has just begun to serve may not be listed yet.
        instances = (await machines[0].admin.instances()).instances
        return sum(instance.generation >= generation for instance in instances) == number

    await eventually_told(known)


async def change(machine: Machine, make: Callable[[int, str], Awaitable[T]]) -> T:
    """Make a change on a machine; again if it did not know what another one had changed.

    Args:
        machine: which one.
        make: makes it, given the generation and an idempotency key.
    """
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await make((await machine.admin.keys()).generation, secrets.token_hex())
            except Refused as refused:
                if refused.status != HTTPStatus.PRECONDITION_FAILED:
                    raise


async def log_of(machine: Machine) -> list[LogEvent]:
    """Return the whole log as this machine shows it; its places must be without gaps."""
    events: list[LogEvent] = []
    newest = 0
    async with asyncio.timeout(PATIENCE_S), aclosing(machine.admin.events(0)) as stream:
        async for event in stream:
            if isinstance(event, Hello):
                newest = event.seq
            elif not isinstance(event, Progress):
                assert not isinstance(event, Gap), event
                events.append(event)
            if newest <= (events[-1].seq if events else 0):
                break
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return events


async def eventually_told(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds that a daemon has to be asked for, which may be killed meanwhile."""

    async def is_told() -> bool:
        # A worker that is killed takes the connections of its readers along.
        with suppress(AdminClientError):
            return await holds()
        return False

    await eventually(is_told)


async def _ended(tasks: Sequence[asyncio.Task[None]], error: BaseException | None, *, cancel: bool) -> None:
    """Wait for the end of tasks; raise what one of them raised, unless there is an error already."""
    for task in tasks:
        if cancel:
            task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if error is None and isinstance(ended, Exception):
            raise ended


def _raise_from(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Raise what one of these tasks raised."""
    for task in tasks:
        if task.done():
            task.result()
