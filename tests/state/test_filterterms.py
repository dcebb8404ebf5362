"""The two meanings of a filter, in memory and in SQL, held against each other."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relayd.state.database import make_private, open_for_writing
from relayd.state.filter import Filter, parse_filter
from relayd.state.filterterms import NUMBER_FIELDS, TEXT_FIELDS, Comparison, Op, Term, Word
from relayd.state.records import Outcome, Phase, RecordedError, RequestRecord
from relayd.state.rows import to_row, upsert
from relayd.state.stored import storable_int, storable_text
from tests.state.room import a_record, as_ended

# Few letters, so that things match often; each has been trouble for LIKE, lower() or C strings.
LETTERS = "aAbB%_\\'\"\0\ud800Ää\u0130\u0131\u017f\u212a日é"
TEXTS = st.text(st.sampled_from(LETTERS), max_size=4)
NUMBERS = st.integers(-3, 30) | st.sampled_from([200, 502, 2**63, -(2**70)])
MAY_BE_NULL = {
    "client",
    "key_id",
    "origin",
    "user_agent",
    "model",
    "finish_reason",
    "upstream_request_id",
} | {*("status", "connect_ms", "first_token_ms", "duration_ms", "prompt_tokens", "completion_tokens")}
ODD_ONES: dict[str, st.SearchStrategy[object]] = {
    "seq": st.integers(1, 5),
    "phase": st.sampled_from(Phase),
    "outcome": st.none() | st.sampled_from(Outcome),
    "error": st.none() | st.builds(RecordedError, code=TEXTS, message=TEXTS),
}
FIELDS = (*TEXT_FIELDS, *NUMBER_FIELDS)


def values_of(field: str) -> st.SearchStrategy[object]:
    """What a field may hold."""
    if field in ODD_ONES:
        return ODD_ONES[field]
    values: st.SearchStrategy[object] = NUMBERS if field in NUMBER_FIELDS else TEXTS
    return st.none() | values if field in MAY_BE_NULL else values


@st.composite
def records(draw: st.DrawFn, fields: tuple[str, ...] = FIELDS) -> RequestRecord:
    """A request that has just started or ended, with any values in these fields."""
    record = a_record() if draw(st.booleans()) else as_ended(a_record(), 502)
    record.seq = 1
    for field in fields:
        setattr(record, field, draw(values_of(field)))
    return record


SUBSTRING = st.sampled_from([Op.HAS, Op.HAS_NOT])
ORDER = st.sampled_from([Op.EQ, Op.NE, Op.GT, Op.GE, Op.LT, Op.LE])


@st.composite
def terms(draw: st.DrawFn, record: RequestRecord, fields: list[str]) -> Term:
    """A term whose value is often a piece of what the record has, in any case."""
    field = draw(st.sampled_from(fields))
    found = record.error and record.error.message if field == "error" else getattr(record, field)
    text = "" if found is None else str(found)
    value = storable_text(draw(st.sampled_from([text, text[1:], text[:1], text[-1:]]) | TEXTS))
    value = draw(st.sampled_from([value, value.lower(), value.upper(), value.swapcase()]))
    kind = draw(st.sampled_from(["substring", "order", "word"]))
    if kind == "word":
        return Word(value or "none")
    if kind == "substring":
        return Comparison(field, draw(SUBSTRING), value)
    if field in NUMBER_FIELDS:
        near = found if isinstance(found, int) else 0
        return Comparison(field, draw(ORDER), draw(st.integers(-3, 30) | st.just(storable_int(near))))
    return Comparison(field, draw(ORDER), value)


@st.composite
def cases(draw: st.DrawFn) -> tuple[RequestRecord, Filter]:
    """A record, and a filter that has a chance to pass it."""
    fields = draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3, unique=True))
    record = draw(records(tuple(fields)))
    some = st.lists(terms(record, fields), min_size=1, max_size=2).map(tuple)
    return record, Filter("", tuple(draw(st.lists(some, max_size=2))))


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


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@example(case=(a_record(), parse_filter("none")))
@example(case=(a_record(), parse_filter("model~gpt_4o or model~g%i or client~\\")))
@example(case=(msgspec.structs.replace(a_record(), seq=1, deltas=-3), parse_filter("-3")))
@example(case=(msgspec.structs.replace(a_record(), seq=1, deltas=7), parse_filter("007 or -0")))
@example(case=(as_ended(msgspec.structs.replace(a_record(), seq=1), 502), parse_filter("error~provider")))
@example(
    case=(as_ended(msgspec.structs.replace(a_record(), seq=1), 502), parse_filter('"the provider failed"'))
)
@given(case=cases())
def test_memory_and_sql_give_the_same_answer(
    connection: sqlite3.Connection, case: tuple[RequestRecord, Filter]
) -> None:
    """For any filter and any record, with any characters, the predicate and the WHERE clause agree."""
    record, where = case
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
