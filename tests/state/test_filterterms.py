"""The two meanings of a filter, in memory and in SQL, held against each other."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relayd.state.database import make_private, open_for_writing
from relayd.state.filter import Filter, parse_filter
from relayd.state.filterterms import NUMBER_FIELDS, TEXT_FIELDS, Comparison, Op, Term, Word
from relayd.state.records import Outcome, Phase, RecordedError, RequestRecord
from relayd.state.rows import to_row, upsert
from relayd.state.stored import storable_text
from tests.state.room import a_record

# Few letters, so that things match often; each has been trouble for LIKE, lower() or C strings.
LETTERS = "aAbB%_\\'\"\0\ud800Ää\u0130\u0131\u017f\u212a日é"
TEXTS = st.text(st.sampled_from(LETTERS), max_size=4)
NUMBERS = st.integers(-3, 30) | st.sampled_from([200, 502, 2**63, -(2**70)])
MAYBE_TEXT = st.none() | TEXTS
MAYBE_NUMBER = st.none() | NUMBERS

RECORDS = st.builds(
    RequestRecord,
    id=TEXTS,
    boot_id=TEXTS,
    started_at=TEXTS,
    seq=st.integers(1, 5),
    client=MAYBE_TEXT,
    key_id=MAYBE_TEXT,
    ip=TEXTS,
    origin=MAYBE_TEXT,
    user_agent=MAYBE_TEXT,
    path=TEXTS,
    model=MAYBE_TEXT,
    phase=st.sampled_from(Phase),
    status=MAYBE_NUMBER,
    outcome=st.none() | st.sampled_from(Outcome),
    error=st.none() | st.builds(RecordedError, code=TEXTS, message=TEXTS),
    connect_ms=MAYBE_NUMBER,
    first_token_ms=MAYBE_NUMBER,
    duration_ms=MAYBE_NUMBER,
    stalled_ms=NUMBERS,
    deltas=NUMBERS,
    bytes_out=NUMBERS,
    prompt_tokens=MAYBE_NUMBER,
    completion_tokens=MAYBE_NUMBER,
    finish_reason=MAYBE_TEXT,
    upstream_request_id=MAYBE_TEXT,
)
VALUES = TEXTS.map(storable_text)
SUBSTRING = st.sampled_from([Op.HAS, Op.HAS_NOT])
ORDER = st.sampled_from([Op.EQ, Op.NE, Op.GT, Op.GE, Op.LT, Op.LE])
TERMS: st.SearchStrategy[Term] = st.one_of(
    st.builds(Comparison, st.sampled_from(TEXT_FIELDS), st.sampled_from(Op), VALUES),
    st.builds(Comparison, st.sampled_from(TEXT_FIELDS), ORDER, st.sampled_from([*Outcome, *Phase])),
    st.builds(Comparison, st.sampled_from(NUMBER_FIELDS), ORDER, st.integers(-3, 30) | st.just(2**63 - 1)),
    st.builds(Comparison, st.sampled_from(NUMBER_FIELDS), SUBSTRING, st.sampled_from(["2", "-", "00"])),
    st.builds(Word, VALUES.filter(bool) | st.sampled_from(["none", "200", "completed", "-3"])),
)
FILTERS = st.lists(st.lists(TERMS, min_size=1, max_size=3).map(tuple), max_size=3).map(
    lambda alternatives: Filter("", tuple(alternatives))
)


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A real database on disk."""
    path: Path = make_private(tmp_path_factory.mktemp("state"))
    with closing(open_for_writing(path)) as opened:
        yield opened


def in_sql(connection: sqlite3.Connection, where: Filter, record: RequestRecord) -> bool:
    """Whether the stored record passes in SQL; nothing is left behind."""
    clause, values = where.sql()
    connection.execute("BEGIN")
    try:
        upsert(connection, [to_row(record, record.seq, None)])
        found = connection.execute(f"SELECT count(*) FROM requests WHERE {clause}", values).fetchone()  # noqa: S608 - what is tested
    finally:
        connection.execute("ROLLBACK")
    return bool(found[0])


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(where=parse_filter("none"), record=a_record())
@given(where=FILTERS, record=RECORDS)
def test_memory_and_sql_give_the_same_answer(
    connection: sqlite3.Connection, where: Filter, record: RequestRecord
) -> None:
    """For any filter and any record, with any characters, the predicate and the WHERE clause agree."""
    assert in_sql(connection, where, record) is where.matches(record)


@pytest.mark.parametrize("field", [*TEXT_FIELDS, *NUMBER_FIELDS])
def test_every_field_can_be_filtered(connection: sqlite3.Connection, field: str) -> None:
    """Each field of a record is a field of the language, in memory and in SQL."""
    where = parse_filter(f"{field}!~x or {field}~x")
    assert where.matches(a_record()) is True
    assert in_sql(connection, where, a_record()) is True


def test_the_largest_filter_is_within_sqlite_s_limits(connection: sqlite3.Connection) -> None:
    """Fifty words, each searched in every field, still make a statement that SQLite takes."""
    where = parse_filter(" or ".join(f"word{n}" for n in range(50)))
    assert in_sql(connection, where, a_record()) is False
