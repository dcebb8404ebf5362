"""Machines that share one relay, streams that are checked byte for byte, and an operator who changes keys.

A machine is a process with a loopback address and a state directory of its own.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from relayd.admin.client import AdminClient, AnswerUnknown, NoDaemon, Refused
from relayd.admin.schema import (
    LIVE_STATES,
    Ended,
    Gap,
    Hello,
    KeyState,
    LogEvent,
    Lost,
    Outcome,
    Progress,
)
from tests.e2e.daemon import KEY, Daemon
from tests.load.harness import provider, report
from tests.wire import DONE, PATIENCE_S, Wire, ask, body, post

HOLDS_AFTER_S = 1.0
"""A change of keys holds on every machine so long after it was acknowledged."""
_WORDS = 20
"""Of each question, which is also its answer: one delta a word, and as many completion tokens."""
_TOKENS = _WORDS + 2
"""What the scripted provider says that a request used."""
_RETRY_S = 0.25
_POLL_S = 0.05
_KEPT_KEYS = 10
_MAY_BE_LOST_S = 3.0
"""Of the log of a process that is killed; it is written in groups, and others use the disk as well."""
_addresses = count(1)


class Machine(Daemon):
    """One relayd of several.

    Args:
        home: an empty directory for all that it keeps.
        settings: configuration by dotted key.
    """

    def __init__(self, home: Path, settings: Mapping[str, Any]) -> None:
        home.mkdir()
        number = next(_addresses)
        super().__init__(
            home,
            settings={
                "server.host": f"127.65.{number >> 8 & 255}.{number & 255}",
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
        for machine in made:
            stack.enter_context(machine)
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
        key: returns the key for the next request.
    """

    def __init__(
        self, machines: Sequence[Machine], streams: int, *, key: Callable[[], str] = lambda: KEY
    ) -> None:
        self.answers: list[Answer] = []
        self._machines = [machines[n % len(machines)] for n in range(streams)]
        self._key = key
        # As many deltas a second as the machines, the provider and these clients can share two cores for.
        self._interval_ms = max(20, streams // 2)
        self._stopping = asyncio.Event()
        self._changed = asyncio.Condition()

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

        def seen() -> bool:
            _raise_from(self._clients)
            found = (a for a in self.answers if a.end == end and a.machine in machines)
            return sum(a.began_s >= now_s for a in found) >= wanted

        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(seen)

    def ends(self, *machines: Machine) -> Counter[str]:
        """Count how the requests of these machines ended."""
        return Counter(answer.end for answer in self.answers if answer.machine in machines)

    async def _client(self, machine: Machine, number: int) -> None:
        for n in count():
            if self._stopping.is_set():
                return
            answer = await self._ask(machine, f"client {number} question {n}:")
            self.answers.append(answer)
            async with self._changed:
                self._changed.notify_all()
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
                wire.send(post(self._key(), payload))
                reply = await wire.head()
                request_id = reply.header("X-Request-Id")
                async for _ in wire.pieces(reply):
                    pass
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
    """One key of the operator's client, and when its last change was acknowledged."""

    id: str
    secret: str
    at_s: float


class KeyChanges:
    """An operator who rotates and revokes keys without a pause, at one machine after the other.

    Use it as an async context manager. Whatever was acknowledged is remembered.

    Args:
        machines: whose admin sockets are used.
    """

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.failures = Counter[str]()
        self.accepted: list[str] = []
        """Where a revoked key was served although its revocation must have held."""
        self.acknowledged = 0
        self._live: list[_Key] = []
        self._revoked: list[_Key] = []
        self._machines = machines
        self._outages: dict[Machine, list[tuple[float, float]]] = {machine: [] for machine in machines}

    async def __aenter__(self) -> Self:
        change = await add_client(self._machines[0], "operated")
        self._live.append(_Key(*change, time.monotonic()))
        self._tasks = [
            asyncio.create_task(self._change_keys(), name="operator"),
            asyncio.create_task(self._use_revoked(), name="user of revoked keys"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _ended(self._tasks, error, cancel=True)

    @asynccontextmanager
    async def outage(self, *machines: Machine) -> AsyncIterator[None]:
        """Excuse these machines: they cannot know of changes around and in this time, nor of any at once."""
        began_s = time.monotonic()
        for machine in machines:
            self._outages[machine].append((began_s - HOLDS_AFTER_S, float("inf")))
        yield
        for machine in machines:
            self._outages[machine][-1] = began_s - HOLDS_AFTER_S, time.monotonic()

    def valid(self) -> str:
        """Return a key that must work on every machine, and will for the next moments."""
        held = [key for key in self._live if all(self._holds(key, machine) for machine in self._machines)]
        return held[-1].secret if held else KEY

    def _holds(self, key: _Key, machine: Machine) -> bool:
        """Return whether the last change of a key must be known to a machine by now."""
        ends_s = [end_s for began_s, end_s in self._outages[machine] if began_s <= key.at_s <= end_s]
        return max([key.at_s, *ends_s]) + HOLDS_AFTER_S < time.monotonic()

    async def more(self, number: int = 3) -> None:
        """Wait until so many more changes were acknowledged."""
        wanted = self.acknowledged + number
        async with asyncio.timeout(PATIENCE_S):
            while self.acknowledged < wanted:
                _raise_from(self._tasks)
                await asyncio.sleep(_POLL_S)

    async def known_to(self, machine: Machine) -> None:
        """Wait until a machine knows every change that was acknowledged; one that is lost never comes."""
        wanted = {key.id: LIVE_STATES for key in self._live}
        wanted |= {key.id: frozenset({KeyState.REVOKED}) for key in self._revoked}
        async with asyncio.timeout(PATIENCE_S):
            while True:
                states = {key.id: key.state for key in (await machine.admin.keys()).keys}
                if all(states.get(key_id) in known for key_id, known in wanted.items()):
                    return
                await asyncio.sleep(_POLL_S)

    async def _change_keys(self) -> None:
        for n in count():
            machine = self._machines[n % len(self._machines)]
            if not self._is_out(machine):
                try:
                    await self._change_one(machine.admin, f"change-{n}")
                except (AnswerUnknown, NoDaemon, Refused) as error:
                    self.failures[error.code if isinstance(error, Refused) else type(error).__name__] += 1
            await asyncio.sleep(_POLL_S)

    def _is_out(self, machine: Machine) -> bool:
        return any(end_s == float("inf") for _, end_s in self._outages[machine])

    async def _change_one(self, admin: AdminClient, name: str) -> None:
        """Rotate the active key, or revoke the oldest of too many."""
        ring = await admin.keys()
        if len(self._live) > _KEPT_KEYS:
            # From here on neither live nor revoked, until the answer says so.
            key = self._live.pop(0)
            await admin.revoke_key(key.id, cut=False, generation=ring.generation, idempotency_key=name)
            self._revoked.append(_Key(key.id, key.secret, time.monotonic()))
        else:
            active = next(k for k in ring.keys if k.client == "operated" and k.state is KeyState.ACTIVE)
            change = await admin.rotate_key(
                active.id, grace_s=3600, generation=ring.generation, idempotency_key=name
            )
            assert change.secret is not None
            self._live.append(_Key(change.key.id, change.secret, time.monotonic()))
        self.acknowledged += 1

    async def _use_revoked(self) -> None:
        """Ask every machine again and again with the newest key whose revocation must hold there."""
        while True:
            await asyncio.sleep(_POLL_S)
            for machine in self._machines:
                held = [] if self._is_out(machine) else [k for k in self._revoked if self._holds(k, machine)]
                for key in held[-1:]:
                    late_s = time.monotonic() - key.at_s
                    with suppress(OSError, EOFError):
                        reply = await ask(machine.port, key.secret, body("demo:deltas=1"), host=machine.host)
                        if reply.status == HTTPStatus.OK:
                            self.accepted.append(f"{machine.host}, {late_s:.2f} s after its revocation")


class Trial:
    """A relay at work, and what must be true of it in the end whatever breaks meanwhile. See `trial`."""

    def __init__(self, machines: Sequence[Machine], streams: int, changes: KeyChanges, bounded: str) -> None:
        self.machines = machines
        self.changes = changes
        self.load = Load(machines, streams, key=changes.valid)
        bounded_streams = max(len(machines), streams // 10)
        self.bounded = Load(machines, bounded_streams, key=lambda: bounded)
        self._killed_at: dict[Machine, float] = {}

    def kill(self, machine: Machine) -> None:
        """End a machine at once; from now on its streams may be broken, and refused."""
        self._killed_at[machine] = time.monotonic()
        machine.kill()

    async def start(self, machine: Machine) -> None:
        """Start a machine again."""
        await asyncio.to_thread(machine.start)

    async def check(self, bound: int) -> str:
        """Check what must be true of every trial, when its load has ended; return a line for the report."""
        assert self.changes.accepted == []
        for machine in self.machines:
            await self.changes.known_to(machine)
            broken = {"broken", "refused"} if machine in self._killed_at else set()
            assert set(self.load.ends(machine)) <= {"whole"} | broken, (machine.host, self.load.ends(machine))
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
        for machine in self.machines:
            await _written(machine)
        logs = [await log_of(machine) for machine in self.machines]
        shortest = min(map(len, logs))
        assert all(log[:shortest] == logs[0][:shortest] for log in logs), "the machines show different logs"
        log = max(logs, key=len)
        ended = Counter(event.record.id for event in log if isinstance(event, Ended))
        outcomes = {event.record.id: event.record.outcome for event in log if isinstance(event, Ended)}
        lost = sum(event.count for event in log if isinstance(event, Lost))
        assert set(ended.values()) == {1}, "a request ended more than once"
        missing = 0
        for answer in (*self.load.answers, *self.bounded.answers):
            killed_at_s = self._killed_at.get(answer.machine, float("inf"))
            is_safe = not killed_at_s - _MAY_BE_LOST_S < answer.ended_s < killed_at_s + _MAY_BE_LOST_S
            if answer.request_id is None or not is_safe:
                continue
            missing += answer.request_id not in ended
            if answer.end == "whole":
                assert outcomes.get(answer.request_id, Outcome.COMPLETED) is Outcome.COMPLETED
        assert missing <= lost, f"{missing} requests are not in the log, which counts {lost} as lost"
        return lost


@asynccontextmanager
async def trial(machines: Sequence[Machine], streams: int) -> AsyncIterator[Trial]:
    """Put a load on a relay, change its keys, and use up a bound; then check all that must be true.

    The block breaks something, and waits until all is well again.

    Args:
        machines: of one relay.
        streams: how many are open at a time; a tenth as many more are of a client with a bound.
    """
    bound = _TOKENS * max(len(machines), streams // 10) * 5
    _, bounded = await add_client(machines[0], "bounded", {"tokens_per_month": bound})
    async with KeyChanges(machines) as changes:
        under_trial = Trial(machines, streams, changes, bounded)
        async with under_trial.load, under_trial.bounded:
            await under_trial.load.more(*machines)
            await changes.more()
            yield under_trial
            await under_trial.load.more(*machines)
            await changes.more()
            await under_trial.bounded.more(*machines, end="over_budget")
    report(await under_trial.check(bound))


async def add_client(
    machine: Machine, name: str, bounds: Mapping[str, object] | None = None
) -> tuple[str, str]:
    """Add a client; return the id of its first key, and the key."""
    generation = (await machine.admin.keys()).generation
    added = await machine.admin.add_client(
        name, bounds or {}, generation=generation, idempotency_key=secrets.token_hex()
    )
    assert added.secret is not None
    assert added.key is not None
    return added.key.id, added.secret


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
            if len(events) >= newest:
                break
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return events


async def _written(machine: Machine) -> None:
    """Wait until the records of all requests are in the log."""
    async with asyncio.timeout(PATIENCE_S):
        while (log := (await machine.admin.status()).log).queued or log.error:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(_POLL_S)


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
