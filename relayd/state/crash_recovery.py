"""The end of the requests that dead runs of the daemon left open."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import msgspec

from relayd.state.budget import NANO, Budget
from relayd.state.columns import record_json, to_row
from relayd.state.database import Database, Transaction
from relayd.state.engine import Connection
from relayd.state.records import Ended, Outcome, Phase, RequestRecord, UsageSource
from relayd.state.request_log import upsert

_CHUNK_ROWS = 500
"""Bounds how long others wait for the log."""
_records = msgspec.json.Decoder(list[RequestRecord])


class CrashRecovery:
    """Closes as `crashed` what dead runs left open, and charges what they had reserved. A task of the writer.

    Args:
        database: the log.
        budget: knows what they had reserved.
        live: returns the boot ids of the other runs that may still write; None: there are none, as the lock
            of the state directory says.
    """

    def __init__(
        self, database: Database, budget: Budget, live: Callable[[Connection], Collection[str]] | None
    ) -> None:
        self._database = database
        self._budget = budget
        self._live = live

    def run(self) -> float | None:
        """Do a piece of the work; return 0 if more waits, infinity if there will never be more, else None.

        Raises:
            EngineError: nothing is done; call again.
        """
        connection = self._database.connection
        if _has_work(connection, self._live_list(connection)):
            with self._database.transaction(durable=False) as transaction:
                # First: of several instances, one does it, and sees who is alive at this moment.
                transaction.lock()
                live = self._live_list(connection)
                is_whole = _close(transaction, live)
                if is_whole:
                    self._budget.charge_orphans(transaction, live)
            if not is_whole:
                return 0.0
        return math.inf if self._live is None else None

    def _live_list(self, connection: Connection) -> str:
        live = () if self._live is None else self._live(connection)
        return msgspec.json.encode([self._database.boot_id, *live]).decode()


def _has_work(connection: Connection, live: str) -> bool:
    listed = connection.dialect.listed("?")
    for table, condition in (("requests", "end_seq IS NULL AND"), ("reservations", "")):
        query = f"SELECT 1 FROM {table} WHERE {condition} boot_id NOT IN ({listed}) LIMIT 1"  # noqa: S608 - own names
        if connection.execute(query, (live,)).rows:
            return True
    return False


def _close(transaction: Transaction, live: str) -> bool:
    """Close some of the requests of runs that are not live; return whether these were all."""
    connection = transaction.connection
    dialect = connection.dialect
    dead = (
        f"SELECT {record_json(dialect)} AS item FROM requests"  # noqa: S608 - own columns
        f" WHERE end_seq IS NULL AND boot_id NOT IN ({dialect.listed('?')})"
        f" ORDER BY start_seq LIMIT {_CHUNK_ROWS}"
    )
    (text,) = connection.execute(
        f"SELECT {dialect.json_list('item')} FROM ({dead}) AS dead",  # noqa: S608 - own columns
        (live,),
    ).fetchone()
    records = sorted(_records.decode(text), key=lambda record: record.seq)
    reserved = _read_reservations(connection, live) if records else {}
    rows = []
    for record in records:
        # The time of death is not known, so the duration stays empty.
        record.phase = Phase.DONE
        record.outcome = Outcome.CRASHED
        if record.id in reserved:
            # What its client is charged.
            record.prompt_tokens, record.completion_tokens, nano_usd = reserved[record.id]
            record.cost_usd = nano_usd / NANO if nano_usd else None
            record.usage_source = UsageSource.ESTIMATE
        end_seq = transaction.next_seq()
        rows.append(to_row(record, record.seq, end_seq))
        transaction.events.append(Ended(end_seq, record.boot_id, record))
    upsert(connection, rows)
    return len(records) < _CHUNK_ROWS


def _read_reservations(connection: Connection, live: str) -> dict[str, tuple[int, int, int]]:
    """Return what each request of runs that are not live had reserved."""
    rows = connection.execute(
        "SELECT id, prompt_tokens, completion_tokens, nano_usd FROM reservations"  # noqa: S608 - a placeholder
        f" WHERE boot_id NOT IN ({connection.dialect.listed('?')})",
        (live,),
    )
    return {request_id: (prompt, completion, nano_usd) for request_id, prompt, completion, nano_usd in rows}
