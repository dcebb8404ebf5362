"""Records as rows, and back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, given, settings

from relayd.state.database import make_private, open_for_writing
from relayd.state.records import RecordedError, RequestRecord
from relayd.state.rows import COLUMNS, RECORD_JSON, as_started, to_row, upsert
from relayd.state.stored import storable_int, storable_text
from tests.state.room import a_record, as_ended
from tests.state.test_filterterms import connection, records

__all__ = ["connection"]


def as_storable(record: RequestRecord) -> RequestRecord:
    """The record with each value as the database can hold it."""
    clean = msgspec.structs.replace(record)
    for name in RequestRecord.__struct_fields__:
        value = getattr(record, name)
        if type(value) is str:
            setattr(clean, name, storable_text(value))
        elif type(value) is int:
            setattr(clean, name, storable_int(value))
    if record.error is not None:
        clean.error = RecordedError(storable_text(record.error.code), storable_text(record.error.message))
    return clean


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(record=records())
def test_a_record_comes_back_as_it_was(connection: sqlite3.Connection, record: RequestRecord) -> None:
    """Every field survives the row and the JSON that is read from it."""
    connection.execute("BEGIN")
    try:
        upsert(connection, [to_row(record, record.seq, None)])
        (text,) = connection.execute(f"SELECT {RECORD_JSON} FROM requests").fetchone()  # noqa: S608 - own columns
    finally:
        connection.execute("ROLLBACK")
    assert msgspec.json.decode(text, type=RequestRecord) == as_storable(record)


def test_any_number_of_rows_is_stored_in_order(tmp_path: Path) -> None:
    """Rows go in by groups of several sizes; none is left out, and later ones replace earlier ones."""
    with closing(open_for_writing(make_private(tmp_path / "state"))) as connection:
        upsert(connection, [to_row(a_record(n), n, None) for n in range(1, 78)])
        upsert(connection, [to_row(as_ended(a_record(n)), n, 100 + n) for n in range(1, 78, 2)])
        rows = connection.execute("SELECT start_seq, end_seq, status FROM requests ORDER BY 1").fetchall()
    assert rows == [(n, 100 + n, 200) if n % 2 else (n, None, None) for n in range(1, 78)]


def test_a_row_has_a_value_for_each_column() -> None:
    """The order of values is that of the columns."""
    row = dict(zip(COLUMNS, to_row(as_ended(a_record(), 502), 3, 9), strict=True))
    assert row["start_seq"] == 3
    assert row["end_seq"] == 9
    assert row["status"] == 502
    assert row["error_code"] == "upstream_failed"
    assert row["upstream_request_id"] is None


def test_the_start_of_an_ended_record_knows_no_end() -> None:
    """What a start shows later is the record without anything that only the end could know."""
    record = a_record()
    assert as_started(as_ended(a_record(), 502)) == record
