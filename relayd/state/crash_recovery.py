"""The end of the requests that a crash left open."""

from __future__ import annotations

import math

import msgspec

from relayd.state.budget import NANO
from relayd.state.columns import record_json, to_row
from relayd.state.database import Database
from relayd.state.engine import Connection
from relayd.state.records import Ended, Outcome, Phase, RequestRecord, UsageSource
from relayd.state.request_log import upsert

_READ_RESERVATION = "SELECT prompt_tokens, completion_tokens, nano_usd FROM reservations WHERE id = ?"
_records = msgspec.json.Decoder(list[RequestRecord])


def close_crashed(database: Database) -> float:
    """Close as `crashed` what earlier runs of the daemon left open; return infinity: once is enough.

    The lock of the state directory says that none of them still runs.

    Raises:
        EngineError: nothing is done; call again.
    """
    connection = database.connection
    records_json = connection.dialect.json_list(record_json(connection.dialect))
    (text,) = connection.execute(
        f"SELECT {records_json} FROM requests WHERE end_seq IS NULL AND boot_id != ?",  # noqa: S608 - own columns
        (database.boot_id,),
    ).fetchone()
    rows = []
    if records := _records.decode(text):
        with database.transaction(durable=False) as transaction:
            for record in sorted(records, key=lambda record: record.seq):
                # The time of death is not known, so the duration stays empty.
                record.phase = Phase.DONE
                record.outcome = Outcome.CRASHED
                _add_reservation(transaction.connection, record)
                end_seq = transaction.next_seq()
                rows.append(to_row(record, record.seq, end_seq))
                transaction.events.append(Ended(end_seq, record.boot_id, record))
            upsert(transaction.connection, rows)
    return math.inf


def _add_reservation(connection: Connection, record: RequestRecord) -> None:
    """Record what the request had reserved: that is what its client is charged (`Budget.charge_orphans`)."""
    row = connection.execute(_READ_RESERVATION, (record.id,)).fetchone()
    if row is not None:
        record.prompt_tokens, record.completion_tokens, nano_usd = row
        record.cost_usd = nano_usd / NANO if nano_usd else None
        record.usage_source = UsageSource.ESTIMATE
