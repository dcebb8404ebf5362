"""What each client used and reserved: checked before the provider is asked, corrected when all is known.

A request of a client with bounds reserves the most that it may use, in every window at once; its end
replaces the reservation by what it used. Money is whole nano-dollars: one token of the cheapest model counts.
"""

from __future__ import annotations

import asyncio
import copy
import math
import operator
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence, Sized
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cache, partial
from itertools import product
from typing import NamedTuple, TypeVar

import msgspec

from relayd.state.calendar import Window, WindowNames, local_date, resets_at_s, window_names
from relayd.state.columns import storable_int, storable_text
from relayd.state.database import Database, Transaction
from relayd.state.engine import Connection, Dialect, EngineError, Fault
from relayd.state.errors import StateBusy, StateUnreachable
from relayd.state.records import Client, RequestRecord, UsageSource, epoch_s
from relayd.state.writer import Task, Writer

T = TypeVar("T")
NANO = 1_000_000_000
RESERVE_TIMEOUT_S = 10.0
"""Less than the time after which a silent response gets a heartbeat, and with it its status."""
_GROUP = 256
"""Reservations of one transaction: bounds how long the first of them waits for the last."""
_MAX_WAITING = 10_000
"""What waits for a disk that hangs, of each kind; those who gave up waiting are among them."""
_LOST_AT_ONCE = 500
_MAX_TOKENS = 10**12
_MAX_NANO_USD = 10**15
"""The most that one request counts for, whatever it asks for or the provider claims: sums stay in 64 bits."""
_MAX_USAGE_ROWS = 300
"""Of one client in one period, by key and model; further models count together."""
_OTHER_MODELS = "(other)"
_CHUNK_ROWS = 500
_KEPT_DAYS = 3
"""A time zone that changes between two runs moves a day by one."""
_KEPT_MONTHS_DAYS = 62
_USAGE_DAYS = 400
_USAGE_MONTHS_DAYS = 5 * 366
_DAY_CHARS, _MONTH_CHARS = len("2026-11-27"), len("2026-11")

_READ_WINDOW = 'SELECT requests, tokens, nano_usd FROM windows WHERE "window" = ? AND client = ?'
_INSERT_RESERVATION = """INSERT INTO reservations
    (id, boot_id, client, key_id, model, day, prompt_tokens, completion_tokens, nano_usd)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_ON_SAME_USAGE = """ON CONFLICT (period, client, key_id, model) DO UPDATE SET
    requests = usage.requests + excluded.requests,
    prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens,
    cached_tokens = usage.cached_tokens + excluded.cached_tokens,
    completion_tokens = usage.completion_tokens + excluded.completion_tokens,
    nano_usd = usage.nano_usd + excluded.nano_usd, estimated = usage.estimated + excluded.estimated"""
_USAGE_COLUMNS = (
    *("period", "client", "key_id", "model"),
    *("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "nano_usd", "estimated"),
)
_ADD_TO_USAGE = f"""INSERT INTO usage ({", ".join(_USAGE_COLUMNS)})
    SELECT :period, :client, :key_id, CASE
        WHEN :model = '' OR EXISTS (SELECT 1 FROM usage
                WHERE period = :period AND client = :client AND key_id = :key_id AND model = :model)
            OR (SELECT count(*) FROM usage WHERE period = :period AND client = :client) < {_MAX_USAGE_ROWS}
        THEN :model ELSE '{_OTHER_MODELS}' END,
        :requests, :prompt_tokens, :cached_tokens, :completion_tokens, :nano_usd, :estimated
    WHERE true {_ON_SAME_USAGE}"""  # noqa: S608 - own columns
_PRUNE_WINDOWS = """DELETE FROM windows WHERE ("window", client) IN (
    SELECT "window", client FROM windows
    WHERE "window" < :before AND length("window") = :length LIMIT :rows)"""
_PRUNE_USAGE = """DELETE FROM usage WHERE (period, client, key_id, model) IN (
    SELECT period, client, key_id, model FROM usage
    WHERE period < :before AND length(period) = :length ORDER BY period LIMIT :rows)"""


@cache
def _add_to_window(dialect: Dialect) -> str:
    """Return the statement that adds to what a client used, or takes from it, but never below zero."""
    names = ("requests", "tokens", "nano_usd")
    added = ", ".join(dialect.greatest("0", f":{name}") for name in names)
    sums = ", ".join(f"{name} = {dialect.greatest('0', f'windows.{name} + :{name}')}" for name in names)
    return (
        f'INSERT INTO windows ("window", client, {", ".join(names)}) VALUES (:window, :client, {added})'  # noqa: S608 - own columns
        f' ON CONFLICT ("window", client) DO UPDATE SET {sums}'
    )


@cache
def _lock_windows(count: int) -> str:
    """Return the statement that reads and locks this many windows, missing ones too.

    It takes them in the order of the parameters: in the same order everywhere, no two wait for each other.
    """
    return (
        'INSERT INTO windows ("window", client, requests, tokens, nano_usd)'  # noqa: S608 - placeholders
        f" VALUES {', '.join(['(?, ?, 0, 0, 0)'] * count)}"
        ' ON CONFLICT ("window", client) DO UPDATE SET requests = windows.requests'
        ' RETURNING "window", client, requests, tokens, nano_usd'
    )


@cache
def _charge_orphans(dialect: Dialect) -> str:
    """Return the statement that adds what runs of the daemon that are not live had reserved to the usage."""
    return (
        f"INSERT INTO usage ({', '.join(_USAGE_COLUMNS)})"  # noqa: S608 - own columns
        " SELECT substr(day, 1, :length), client, key_id, model, count(*), sum(prompt_tokens), 0,"
        " sum(completion_tokens), sum(nano_usd), count(*)"
        f" FROM reservations WHERE boot_id NOT IN ({dialect.listed(':live')})"
        f" GROUP BY 1, 2, 3, 4 {_ON_SAME_USAGE}"
    )


class Use(NamedTuple):
    """What is counted in a window."""

    requests: int = 0
    tokens: int = 0
    """In and out."""
    nano_usd: int = 0

    def plus(self, other: Use) -> Use:
        """Return the sum."""
        return Use(*map(operator.add, self, other))

    def minus(self, other: Use) -> Use:
        """Return the difference, which may be negative."""
        return Use(*map(operator.sub, self, other))

    def clamped(self) -> Use:
        """Return it with no more than one request counts for."""
        return Use(self.requests, min(self.tokens, _MAX_TOKENS), min(self.nano_usd, _MAX_NANO_USD))


class Bound(NamedTuple):
    """A bound of a client: its field, how long it counts, and what."""

    field: str
    window: Window
    unit: str
    """`requests`, `tokens` or `nano_usd`."""


BOUNDS = (
    # The longest first: the refusal names the bound that lasts.
    Bound("usd_per_month", Window.MONTH, "nano_usd"),
    Bound("tokens_per_month", Window.MONTH, "tokens"),
    Bound("usd_per_day", Window.DAY, "nano_usd"),
    Bound("tokens_per_day", Window.DAY, "tokens"),
    Bound("tokens_per_minute", Window.MINUTE, "tokens"),
    Bound("requests_per_minute", Window.MINUTE, "requests"),
)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request may use."""

    request_id: str
    client: Client
    key_id: str
    model: str
    most: Use
    least: Use
    """Equal to `most`; but if the length of the answer is a guess, without the answer."""
    prompt_tokens: int = 0
    streams: int = 1
    """How many requests of the client this process has open, with this one."""


class Standing(NamedTuple):
    """Where a client stands with one bound."""

    bound: Bound
    limit: int
    used: int
    """With what is reserved."""
    resets_at_s: float

    @property
    def remaining(self) -> int:
        """What is left until the window ends."""
        return max(0, self.limit - self.used)


class OverBudget(Exception):
    """A bound does not allow the request."""

    def __init__(self, standing: Standing, wanted: int) -> None:
        super().__init__(f"{standing.bound.field}: {standing.used} + {wanted} > {standing.limit}")
        self.standing = standing
        self.wanted = wanted


class TooManyStreams(Exception):
    """The client has as many requests open as it may have, those of other processes among them."""


class _Reservation(NamedTuple):
    client: str
    windows: WindowNames
    use: Use


class _Ask(NamedTuple):
    demand: Demand
    answer: asyncio.Future[list[Standing]]


_Answer = list[Standing] | Exception


class Budget:
    """Reserves and settles. What comes after `settle_lost` runs on the writer's thread.

    Args:
        clock: returns the Unix time.
    """

    def __init__(self, writer: Writer, database: Database, clock: Callable[[], float]) -> None:
        self._writer = writer
        self._database = database
        self._clock = clock
        # Appended on the event loop, taken by the writer.
        self._asks: deque[_Ask] = deque()
        self._open: dict[str, _Reservation] = {}
        """What this process reserved and did not settle, by request id; changed by the writer alone."""
        self._lost: deque[tuple[str, RequestRecord | None]] = deque()
        """Requests whose end the log will not bring: what to charge, or None for what never began."""
        self.lost_task = Task("charges of lost requests", math.inf, self._settle_lost)
        self._reads: set[Future[tuple[list[Standing], tuple[Use, Use, Use]]]] = set()

    def counts(self, client: Client) -> bool:
        """Return whether requests of a client have to be reserved."""
        return client.bounded or (self._database.is_shared and client.max_streams is not None)

    async def reserve(self, demand: Demand) -> list[Standing]:
        """Put a reservation on disk; return where the client stands with each of its bounds then.

        What comes while the last commit runs shares the next one. Cancelled, it takes back what was reserved.

        Raises:
            OverBudget, TooManyStreams: a bound does not allow it; nothing is reserved.
            StateError: it can't be stored.
        """
        error = self._database.engine.error
        if error is not None:
            # At once: the writer may wait for a connection.
            raise StateUnreachable(error)
        if self._database.is_undecided:
            # The transaction would wait for what the server makes of the last one.
            raise StateUnreachable(
                "The database did not answer a commit, and does not say yet what became of it."
            )
        _check_room(self._asks)
        loop = asyncio.get_running_loop()
        demand = replace(demand, most=demand.most.clamped(), least=demand.least.clamped())
        ask = _Ask(demand, loop.create_future())
        self._asks.append(ask)
        # In this order: with more than one, the writer has not yet looked for the last time.
        if len(self._asks) == 1:
            self._writer.call(partial(self._reserve_waiting, loop))
        return await _in_time(ask.answer)

    async def standing(self, client: Client) -> tuple[list[Standing], tuple[Use, Use, Use]]:
        """Return where a client stands with its bounds, and what it used this minute, today, this month.

        Raises:
            StateError: it can't be read.
        """

        def read() -> tuple[list[Standing], tuple[Use, Use, Use]]:
            now_s = self._clock()
            try:
                used = _Ledger(self._database.connection).used(client.name, window_names(now_s))
            except EngineError as error:
                raise error.told from error
            return _standings(client, used, now_s), used

        _check_room(self._reads)
        reading = self._writer.call(read)
        self._reads.add(reading)
        reading.add_done_callback(self._reads.discard)
        # Shielded: it counts until the writer has come to it.
        return await _in_time(asyncio.shield(asyncio.wrap_future(reading)))

    def settle_lost(self, record: RequestRecord) -> None:
        """Settle a request whose end finds no room in the log, or that no disk takes; in any thread.

        Beyond 10,000 of them, only what was reserved is settled.
        """
        if record.id in self._open or (_is_charged(record) and len(self._lost) < _MAX_WAITING):
            self._lost.append((record.id, copy.copy(record)))
            self._writer.wake(self.lost_task)

    # All below runs on the writer's thread.

    def _reserve_waiting(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._asks:
            asks = [self._asks.popleft() for _ in range(min(len(self._asks), _GROUP))]
            asks = [ask for ask in asks if not ask.answer.cancelled()]
            answers: list[_Answer]
            try:
                answers = self._reserve(asks)
            except EngineError as error:
                answers = [error.told] * len(asks)
            except Exception as error:  # noqa: BLE001 - a bug; it belongs to those who wait
                answers = [error] * len(asks)
            # The loop may be closed; then no request waits for an answer.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._deliver, asks, answers)

    def _reserve(self, asks: Sequence[_Ask]) -> list[_Answer]:
        made: dict[str, _Reservation] = {}
        answers: list[_Answer] = []
        now_s = self._clock()
        windows = window_names(now_s)
        transaction = None
        try:
            with self._database.transaction(durable=False) as transaction:
                ledger = _Ledger(transaction.connection)
                ledger.lock({demand.client.name for demand, _ in asks}, windows)
                elsewhere = self._count_elsewhere(transaction, [demand.client for demand, _ in asks])
                # Looked at only beside those of other processes.
                reserved = Counter(each.client for each in self._open.values() if each.client in elsewhere)
                rows = []
                for demand, _ in asks:
                    client = demand.client
                    used = ledger.used(client.name, windows)
                    try:
                        _check_streams(demand, reserved[client.name], elsewhere.get(client.name, 0))
                        use = _check(demand, used, now_s)
                    except (OverBudget, TooManyStreams) as refusal:
                        answers.append(refusal)
                        continue
                    ledger.add(client.name, windows, use)
                    reserved[client.name] += 1
                    made[demand.request_id] = _Reservation(client.name, windows, use)
                    prompt = min(demand.prompt_tokens, use.tokens)
                    model = storable_text(demand.model)
                    asked = (demand.request_id, transaction.boot_id, client.name, demand.key_id, model)
                    rows.append((*asked, windows.day, prompt, use.tokens - prompt, use.nano_usd))
                    answers.append(_standings(client, ledger.used(client.name, windows), now_s))
                ledger.store()
                transaction.connection.executemany(_INSERT_RESERVATION, rows)
        except EngineError as error:
            if transaction is not None and error.fault is Fault.UNKNOWN:
                # They are refused: if it took place, they are taken back.
                transaction.after_commit.append(partial(self._give_up, made))
                self._writer.wake(self.lost_task)
            raise
        self._open |= made
        return answers

    def _count_elsewhere(self, transaction: Transaction, clients: Iterable[Client]) -> dict[str, int]:
        """Return how many requests of each client other processes have open, if its streams are bounded.

        Args:
            transaction: which holds the clients' rows.
            clients: those that ask.
        """
        if not self._database.is_shared:
            return {}
        names = {client.name for client in clients if client.max_streams is not None}
        if not names:
            return {}
        listed = transaction.connection.dialect.listed("?")
        rows = transaction.connection.execute(
            f"SELECT client, count(*) FROM reservations WHERE client IN ({listed}) AND boot_id != ?"  # noqa: S608 - a placeholder
            " GROUP BY client",
            (msgspec.json.encode(sorted(names)).decode(), transaction.boot_id),
        )
        return dict(rows)

    def _deliver(self, asks: Sequence[_Ask], answers: Sequence[_Answer]) -> None:
        """Answer those who wait; on the event loop."""
        for ask, answer in zip(asks, answers, strict=True):
            if not ask.answer.done():
                if isinstance(answer, Exception):
                    ask.answer.set_exception(answer)
                else:
                    ask.answer.set_result(answer)
            elif isinstance(answer, list):
                # Its request has ended meanwhile, perhaps before this reservation was made.
                self._lost.append((ask.demand.request_id, None))
                self._writer.wake(self.lost_task)

    def _settle_lost(self) -> float | None:
        """Settle some of what the log will not bring; return 0 if more waits.

        Raises:
            EngineError: the rest waits on.
        """
        for _ in range(_LOST_AT_ONCE):
            # First: an earlier attempt may have settled it.
            self._database.settle_unknown()
            if not self._lost:
                return None
            self._settle_first()
        return 0.0

    def _give_up(self, made: dict[str, _Reservation]) -> None:
        self._open |= made
        self._lost.extend((request_id, None) for request_id in made)

    def _settle_first(self) -> None:
        request_id, record = self._lost[0]
        with self._database.transaction(durable=False) as transaction:
            transaction.after_commit.append(self._lost.popleft)
            # What changes more than reservations and windows waits for the log first.
            transaction.lock()
            if record is None:
                self._take_back(transaction, request_id)
            else:
                self.settle(transaction, [record])

    def _take_back(self, transaction: Transaction, request_id: str) -> None:
        """Remove the reservation of a request that ended while it was made, if its end did not."""
        reservation = self._open.get(request_id)
        if reservation is not None:
            if _remove_reservations(transaction.connection, [request_id]):
                ledger = _Ledger(transaction.connection)
                ledger.add(reservation.client, reservation.windows, Use().minus(reservation.use))
                ledger.store()
            transaction.after_commit.append(partial(self._forget, [request_id]))

    def settle(self, transaction: Transaction, records: Sequence[RequestRecord]) -> None:
        """Replace the reservations of requests that ended by what they used, in the transaction of their end.

        A reservation that is gone was charged in full by another instance, which took this one for dead.

        Raises:
            EngineError: roll back; nothing is settled.
        """
        ledger = _Ledger(transaction.connection)
        usage = _UsageSums()
        settled = [record.id for record in records if record.id in self._open]
        removed = _remove_reservations(transaction.connection, settled)
        for record in records:
            reservation = self._open.get(record.id)
            if record.id not in removed and (reservation is not None or not _is_charged(record)):
                continue
            client = storable_text(record.client or "")
            used = _use_of(record)
            if reservation is None:
                windows = window_names(epoch_s(record.started_at))
                ledger.add(client, windows, used)
            else:
                windows = reservation.windows
                # It counts as a request, whatever became of it.
                ledger.add(client, windows, used.minus(reservation.use)._replace(requests=0))
            usage.add(windows.day, record, used)
        ledger.store()
        usage.store(transaction.connection)
        transaction.after_commit.append(partial(self._forget, settled))

    def _forget(self, settled: Sequence[str]) -> None:
        for request_id in settled:
            del self._open[request_id]

    def charge_orphans(self, transaction: Transaction, live: str) -> None:
        """Charge in full what dead runs of the daemon reserved and did not settle.

        Args:
            transaction: of the end of their requests; it has the lock of the log.
            live: the boot ids of all others, as JSON.

        Raises:
            EngineError: roll back; nothing is charged.
        """
        connection = transaction.connection
        for length in (_DAY_CHARS, _MONTH_CHARS):
            connection.execute(_charge_orphans(connection.dialect), {"live": live, "length": length})
        listed = connection.dialect.listed("?")
        connection.execute(f"DELETE FROM reservations WHERE boot_id NOT IN ({listed})", (live,))  # noqa: S608 - a placeholder

    def prune(self) -> float | None:
        """Remove windows that are long over, and old usage; return 0 if more wait.

        Sums of a day are kept for 400 days, of a month for five years.

        Raises:
            EngineError: nothing is removed.
        """
        now_s = self._clock()
        today = local_date(now_s)
        minute = window_names(now_s - 300).minute
        with self._database.transaction(durable=False) as transaction:
            transaction.lock()
            execute = transaction.connection.execute
            removed = [
                execute(statement, {"before": before, "length": len(before), "rows": _CHUNK_ROWS}).rowcount
                for statement, before in (
                    (_PRUNE_WINDOWS, minute),
                    (_PRUNE_WINDOWS, _ago(today, _KEPT_DAYS)),
                    (_PRUNE_WINDOWS, _ago(today, _KEPT_MONTHS_DAYS)[:_MONTH_CHARS]),
                    (_PRUNE_USAGE, _ago(today, _USAGE_DAYS)),
                    (_PRUNE_USAGE, _ago(today, _USAGE_MONTHS_DAYS)[:_MONTH_CHARS]),
                )
            ]
        return 0.0 if _CHUNK_ROWS in removed else None


class _Ledger:
    """The windows as one transaction sees them: what is on disk, and what it adds."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stored: dict[tuple[str, str], Use] = {}
        self._added: dict[tuple[str, str], Use] = {}

    def lock(self, clients: Collection[str], windows: WindowNames) -> None:
        """Read the windows of clients; nothing else changes them before the transaction ends."""
        # Where a transaction locks the whole database, each is read when it is needed.
        if clients and self._connection.dialect.for_update:
            places = [place for at in sorted(product(windows, clients)) for place in at]
            for window, client, *counts in self._connection.execute(_lock_windows(len(places) // 2), places):
                self._stored[window, client] = Use(*counts)

    def used(self, client: str, windows: WindowNames) -> tuple[Use, Use, Use]:
        """Return what a client used and reserved in each window."""
        minute, day, month = (self._used(client, window) for window in windows)
        return minute, day, month

    def _used(self, client: str, window: str) -> Use:
        at = (window, client)
        if at not in self._stored:
            row = self._connection.execute(_READ_WINDOW, at).fetchone()
            self._stored[at] = Use() if row is None else Use(*row)
        added = self._added.get(at)
        return self._stored[at] if added is None else self._stored[at].plus(added)

    def add(self, client: str, windows: WindowNames, use: Use) -> None:
        """Add to each window; what is negative takes away."""
        for window in windows:
            at = (window, client)
            added = self._added.get(at)
            self._added[at] = use if added is None else added.plus(use)

    def store(self) -> None:
        """Write what was added."""
        rows = [
            {"window": window, "client": client}
            | {name: storable_int(n) for name, n in use._asdict().items()}
            for (window, client), use in sorted(self._added.items())
        ]
        self._connection.executemany(_add_to_window(self._connection.dialect), rows)


class _UsageSums:
    """What one transaction adds to the usage of each day and month, client, key and model."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str, str, str], tuple[int, ...]] = {}

    def add(self, day: str, record: RequestRecord, use: Use) -> None:
        # Any text may be asked for: only models that the provider served, or that have a price, are listed.
        model = ""
        if record.usage_source is UsageSource.PROVIDER or record.cost_usd is not None:
            model = storable_text(record.model or "")
        elif record.usage_source is not None:
            model = _OTHER_MODELS
        who = (storable_text(record.client or ""), storable_text(record.key_id or ""), model)
        prompt = min(record.prompt_tokens or 0, use.tokens)
        is_estimated = record.usage_source is UsageSource.ESTIMATE
        counts = (
            1,
            prompt,
            min(record.cached_tokens or 0, prompt),
            use.tokens - prompt,
            use.nano_usd,
            int(is_estimated),
        )
        for period in (day, day[:_MONTH_CHARS]):
            at = (period, *who)
            self._sums[at] = tuple(map(operator.add, self._sums.get(at, (0,) * len(counts)), counts))

    def store(self, connection: Connection) -> None:
        rows = [
            dict(zip(_USAGE_COLUMNS, (*at, *map(storable_int, sums)), strict=True))
            for at, sums in sorted(self._sums.items())
        ]
        connection.executemany(_ADD_TO_USAGE, rows)


def _remove_reservations(connection: Connection, request_ids: Sequence[str]) -> set[str]:
    """Remove reservations; return the ids of those that were there."""
    if not request_ids:
        return set()
    listed = connection.dialect.listed("?")
    rows = connection.execute(
        f"DELETE FROM reservations WHERE id IN ({listed}) RETURNING id",  # noqa: S608 - a placeholder
        (msgspec.json.encode(request_ids).decode(),),
    )
    return {request_id for (request_id,) in rows}


async def _in_time(answer: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(RESERVE_TIMEOUT_S):
            return await answer
    except TimeoutError:
        raise StateBusy(f"The disk did not answer within {RESERVE_TIMEOUT_S:g} s.") from None


def _check_room(waiting: Sized) -> None:
    if len(waiting) >= _MAX_WAITING:
        raise StateBusy("The disk does not answer, and too many requests wait for it already.")


def _is_charged(record: RequestRecord) -> bool:
    """Return whether the provider was asked for a client."""
    return record.client is not None and record.connect_ms is not None


def _use_of(record: RequestRecord) -> Use:
    """Return what a request that has ended used."""
    tokens = (record.prompt_tokens or 0) + (record.completion_tokens or 0)
    return Use(1, tokens, round((record.cost_usd or 0) * NANO)).clamped()


def _limit(client: Client, bound: Bound) -> int | None:
    limit: float | None = getattr(client, bound.field)
    return None if limit is None else round(limit * NANO) if bound.unit == "nano_usd" else int(limit)


def _standings(client: Client, used: Sequence[Use], now_s: float) -> list[Standing]:
    """Return where a client stands with each bound that it has."""
    return [
        Standing(bound, limit, getattr(used[bound.window], bound.unit), resets_at_s(bound.window, now_s))
        for bound in BOUNDS
        if (limit := _limit(client, bound)) is not None
    ]


def _check_streams(demand: Demand, reserved: int, elsewhere: int) -> None:
    """Raise TooManyStreams if other processes have what is left of the client's streams.

    Args:
        demand: what is asked.
        reserved: how many requests of the client this process has reserved and not settled.
        elsewhere: how many other processes have open; 0 if there are none.
    """
    most = demand.client.max_streams
    # Of the open ones, some wait to be reserved like this one; of the reserved ones, some have ended.
    if most is not None and elsewhere and elsewhere + min(demand.streams, reserved + 1) > most:
        raise TooManyStreams


def _check(demand: Demand, used: Sequence[Use], now_s: float) -> Use:
    """Return what to reserve. A guess of the answer's length never asks for more than a bound has in all.

    Raises:
        OverBudget: a bound has not that much left.
    """
    standings = _standings(demand.client, used, now_s)
    wanted = demand.most._asdict()
    for standing in standings:
        unit = standing.bound.unit
        wanted[unit] = max(getattr(demand.least, unit), min(wanted[unit], standing.limit))
    for standing in standings:
        more = wanted[standing.bound.unit]
        # What needs nothing of a bound passes, also if the bound was overshot.
        if more and standing.used + more > standing.limit:
            raise OverBudget(standing, more)
    return Use(**wanted)


def _ago(today: date, days: int) -> str:
    return (today - timedelta(days=days)).isoformat()
