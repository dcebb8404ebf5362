"""Records as they are kept and sent: times, events, columns."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.state.columns import COLUMNS, INT_MAX, storable_int, storable_text, to_row
from relayd.state.records import (
    Audited,
    AuditEntry,
    Ended,
    Gap,
    KeyInfo,
    KeyState,
    LogEvent,
    Lost,
    RequestRecord,
    Started,
    epoch_s,
    utc_text,
)
from relayd.state.request_log import upsert
from tests.state.harness import a_record, as_ended, opened_database

NOON = "2027-01-15T08:00:00.000Z"
TIMES = st.integers(0, 4_102_444_800_000).map(lambda ms: ms / 1000)
ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)


def test_a_time_is_utc_with_milliseconds() -> None:
    """RFC 3339, always of the same length; what is no time is a ValueError."""
    assert utc_text(1_800_000_000.0) == NOON
    assert utc_text(1_800_000_000.9999) == "2027-01-15T08:00:00.999Z"
    with pytest.raises(ValueError, match="yesterday"):
        epoch_s("yesterday")


@given(TIMES, TIMES)
def test_texts_mean_and_sort_as_times_do(one: float, other: float) -> None:
    """A time comes back to the millisecond, and the database may compare times as text."""
    assert abs(epoch_s(utc_text(one)) - one) < 0.0011
    assert utc_text(epoch_s(utc_text(one))) == utc_text(one)
    if one < other:
        assert utc_text(one) <= utc_text(other)


@pytest.mark.parametrize(
    ("event", "tag"),
    [
        (Started(1, "boot-1", a_record()), "started"),
        (Ended(2, "boot-1", as_ended(a_record(), 502)), "ended"),
        (Audited(3, "boot-1", AuditEntry(seq=3, at=NOON, action="pause", result="done")), "audit"),
        (Lost(4, "boot-1", NOON, 7, "disk full"), "lost"),
        (Gap(1, 9), "gap"),
    ],
)
def test_an_event_is_sent_under_its_name(event: LogEvent | Gap, tag: str) -> None:
    """Each kind carries its name, and comes back as what it was."""
    encoded = msgspec.json.encode(event)
    assert msgspec.json.decode(encoded)["event"] == tag
    assert msgspec.json.decode(encoded, type=LogEvent | Gap) == event


def test_a_start_shows_nothing_that_only_the_end_could_know() -> None:
    """The start of a request that is known only as a whole is the record as it was admitted."""
    assert as_ended(a_record(), 502).as_started() == a_record()
    bare = RequestRecord(id="r", boot_id="b", started_at=NOON)
    assert (bare.seq, bare.stalled_ms, bare.deltas, bare.bytes_out) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("state", "ends_s", "shown"),
    [
        (KeyState.ACTIVE, None, KeyState.ACTIVE),
        (KeyState.RETIRING, 101, KeyState.RETIRING),
        (KeyState.RETIRING, 100, KeyState.EXPIRED),
        (KeyState.RETIRING, None, KeyState.EXPIRED),
        (KeyState.EXPIRED, 101, KeyState.EXPIRED),
        (KeyState.REVOKED, None, KeyState.REVOKED),
    ],
)
def test_a_retiring_key_is_expired_from_its_end_on(
    state: KeyState, ends_s: int | None, shown: KeyState
) -> None:
    """And only a retiring one: what was revoked stays revoked."""
    end = None if ends_s is None else utc_text(ends_s)
    key = KeyInfo(id="", client="", state=state, fingerprint="", created_at="", expires_at=end)
    assert key.as_of(utc_text(100)).state is shown


@given(ANY_TEXT)
def test_storable_text_survives_the_database(text: str) -> None:
    """Any text, with NULs and lone surrogates too, becomes one that SQLite gives back unchanged."""
    clean = storable_text(text)
    with closing(sqlite3.connect(":memory:")) as connection:
        assert connection.execute("SELECT ?, length(?)", (clean, clean)).fetchone() == (clean, len(text))
    assert all(kept == given for kept, given in zip(clean, text, strict=True) if kept != "\ufffd")


@given(st.integers())
def test_storable_int_fits_and_stays_in_order(number: int) -> None:
    """A number that does not fit becomes the nearest that does; all others stay as they are."""
    kept = storable_int(number)
    assert -INT_MAX <= kept <= INT_MAX
    assert kept == number or abs(number) > INT_MAX


def test_every_field_of_a_record_has_a_column() -> None:
    """A row has a value for each column, under the name of its field."""
    record = as_ended(a_record(), 502)
    row = dict(zip(COLUMNS, to_row(record, 3, 9), strict=True))
    assert (row.pop("start_seq"), row.pop("end_seq")) == (3, 9)
    assert (row.pop("error_code"), row.pop("error_message")) == ("upstream_failed", "The provider failed.")
    assert row == {name: getattr(record, name) for name in RequestRecord.__struct_fields__ if name in row}
    assert set(RequestRecord.__struct_fields__) - set(row) == {"seq", "error"}


def test_any_number_of_rows_is_stored_in_order(tmp_path: Path) -> None:
    """Rows go in by groups of several sizes; none is left out, and later ones replace earlier ones."""
    with opened_database(tmp_path / "state") as database:
        with database.transaction(durable=False) as transaction:
            upsert(transaction.connection, [to_row(a_record(n), n, None) for n in range(1, 78)])
            upsert(
                transaction.connection, [to_row(as_ended(a_record(n)), n, 100 + n) for n in range(1, 78, 2)]
            )
        rows = database.connection.execute("SELECT start_seq, end_seq, status FROM requests ORDER BY 1")
        assert rows.rows == [(n, 100 + n, 200) if n % 2 else (n, None, None) for n in range(1, 78)]
