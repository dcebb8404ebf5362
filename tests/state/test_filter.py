"""The filter language: what it accepts and refuses, where it points, and that memory and SQL agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relayd.state.columns import REQUEST_FIELDS, fields_of, record_json, storable_int, storable_text, to_row
from relayd.state.engine import Connection
from relayd.state.filter import (
    Comparison,
    Filter,
    FilterError,
    Op,
    Term,
    Word,
    parse_filter,
    quoted,
)
from relayd.state.records import AuditEntry, Outcome, Phase, RecordedError, RequestRecord, UsageSource
from relayd.state.request_log import upsert
from relayd.state.sqlite import SQLITE
from tests.state.harness import a_record, as_ended, on_postgres, opened_database


@pytest.mark.parametrize(
    ("text", "alternatives"),
    [
        ("", ()),
        ("  \t ", ()),
        ("status>=500", ((Comparison("status", Op.GE, 500),),)),
        ("status >= 500", ((Comparison("status", Op.GE, 500),),)),
        ("STATUS<400", ((Comparison("status", Op.LT, 400),),)),
        (
            "model~gpt-4 ip=1.2.3.4",
            ((Comparison("model", Op.CONTAINS, "gpt-4"), Comparison("ip", Op.EQ, "1.2.3.4")),),
        ),
        (
            "model!~gpt client!=web",
            ((Comparison("model", Op.LACKS, "gpt"), Comparison("client", Op.NE, "web")),),
        ),
        (
            "a b or c",
            ((Word("a"), Word("b")), (Word("c"),)),
        ),
        ("a and b OR c", ((Word("a"), Word("b")), (Word("c"),))),
        ('"or" "status=1"', ((Word("or"), Word("status=1")),)),
        (r'client="say \"hi\" \\ there"', ((Comparison("client", Op.EQ, r'say "hi" \ there'),),)),
        ('origin=""', ((Comparison("origin", Op.EQ, ""),),)),
        ("hello! orange 10.0.0.4", ((Word("hello!"), Word("orange"), Word("10.0.0.4")),)),
        ("status~50", ((Comparison("status", Op.CONTAINS, "50"),),)),
        ("path=a=b", ((Comparison("path", Op.EQ, "a=b"),),)),
    ],
)
def test_what_the_language_means(text: str, alternatives: object) -> None:
    """Terms joined by spaces all must hold, `or` binds weaker, quotes make one value of anything."""
    assert parse_filter(text).alternatives == alternatives


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("status>=500 statsu=1", "statsu", "did you mean 'status'"),
        ("http://x/?q=1", "http://x/?q", "put the text in quotes"),
        ("model~gpt >5", ">", "needs a field"),
        ("status>=", ">=", "A value is missing"),
        ("ip=10.0.0/8", "10.0.0/8", "write it like 10.0.0.0/8"),
        ("status>=abc", "abc", "whole number"),
        ("deltas=99999999999999999999", "99999999999999999999", "whole number"),
        ("deltas=9223372036854775808", "9223372036854775808", "whole number"),
        ("deltas=\u0661", "\u0661", "whole number"),
        ("outcome=compleeted", "compleeted", "one of completed"),
        ("phase!=gone", "gone", "one of connecting"),
        ("cost_usd>cheap", "cheap", "compared with a number"),
        ("cost_usd~1", "1", "compared with a number"),
        ('client="night', '"night', "not closed"),
        ('client="a"b', "b", "space is missing"),
        ('a ""', '""', "empty"),
        ("or a", "or", "both sides"),
        ("a or or b", "or", "both sides"),
        ("a or", "or", "another term"),
        ("(a or b)", "(", "Parentheses"),
    ],
)
def test_a_wrong_filter_points_at_the_place(text: str, place: str, says: str) -> None:
    """The error is a sentence, and its pointer has carets exactly below what is wrong."""
    with pytest.raises(FilterError, match=says.replace("(", r"\(")) as caught:
        parse_filter(text)
    error = caught.value
    assert text[error.position : error.position + error.length].strip() == place
    line, carets = error.pointer().split("\n")
    assert carets.index("^") == line.rindex(place)
    assert carets.count("^") == error.length


def test_the_pointer_counts_columns_not_characters() -> None:
    """Wide characters before the place move the carets by two columns each."""
    with pytest.raises(FilterError) as caught:
        parse_filter("日本 foo=1")
    assert caught.value.pointer() == "日本 foo=1\n     ^^^"


def test_the_pointer_of_a_long_filter_is_short() -> None:
    """A long filter is cut to the part around the place, and control characters do not reach the screen."""
    with pytest.raises(FilterError) as caught:
        parse_filter("x " * 30 + "\x1b[31m foo=1")
    line, carets = caught.value.pointer().split("\n")
    assert len(line) <= 72
    assert "\x1b" not in line
    assert line[carets.index("^") :].startswith("foo")


@pytest.mark.parametrize("value", ["!x", "#1", "=", "~", "-1", "x'y"])
def test_a_value_may_begin_with_any_sign(value: str) -> None:
    """Only a double quote there has a meaning."""
    assert parse_filter(f"model={value}").sql(SQLITE) == ("((model = ?))", [value])


def test_the_bounds() -> None:
    """2,000 characters and 50 terms pass; one more of either is refused."""
    parse_filter("x" * 2000)
    parse_filter(" ".join(["x"] * 50))
    with pytest.raises(FilterError, match="2,000 characters") as caught:
        parse_filter("x" * 2001)
    assert (caught.value.position, caught.value.length) == (2000, 1)
    with pytest.raises(FilterError, match="50 terms"):
        parse_filter(" or ".join(["x"] * 51))


def fault_of(text: str) -> FilterError | None:
    """What is wrong with a filter, if anything."""
    try:
        parse_filter(text)
    except FilterError as error:
        return error
    return None


@given(st.text(max_size=60))
def test_any_text_parses_or_points_inside_itself(text: str) -> None:
    """Whatever is typed, the answer is a filter or an error with a place in the text."""
    error = fault_of(text)
    if error is not None:
        assert 0 <= error.position <= len(text)
        assert error.length >= 1
        assert "^" in error.pointer()


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("status=200 outcome=completed", True),
        ("ip=203.0.113.0/24", True),
        ("ip=203.0.113.99/24", True),
        ("ip=10.0.0.0/8", False),
        ("ip!=10.0.0.0/8", True),
        ("ip!=203.0.0.0/16", False),
        ("ip=2001:db8::/32", False),
        ("status>=500 or first_token_ms>100", True),
        ("status>=500 or first_token_ms>120", False),
        ("MOZILLA", True),
        ("mozilla/6", False),
        ("200", True),
        ("20", True),  # deltas is 20
        ("error=upstream_failed", False),
        ("error!=upstream_failed", True),
        ("prompt_tokens>0", False),
        ("prompt_tokens<=0", False),
        ("prompt_tokens!=7", True),
        ("prompt_tokens!~7", True),
        ("cost_usd>=0.0125", True),
        ("cost_usd<0.0125", False),
        ("0.0125", False),
        ("started_at>=2027-01-15", True),
        ("none", False),
    ],
)
def test_which_records_pass(connection: Connection, text: str, *, passes: bool) -> None:
    """A null field passes nothing but `!=` and `!~`; a bare word is found in texts and as a whole number.

    An address is in a network or is not.
    """
    where = parse_filter(text)
    assert where.matches(as_ended(FIRST)) is passes
    assert (stored(connection, as_ended(FIRST), where) is not None) is passes


# Few letters, so that things match often; each has been trouble for LIKE, lower() or C strings.
LETTERS = "aAbB%_\\'\"\0\ud800Ää\u0130\u0131\u017f\u212a日é"
TEXTS = st.text(st.sampled_from(LETTERS), max_size=4)
NUMBERS = st.integers(-3, 30) | st.sampled_from([200, 502, 2**63, -(2**70)])
ODD_ONES: dict[str, st.SearchStrategy[object]] = {
    "seq": st.integers(1, 5),
    "phase": st.sampled_from(Phase),
    "outcome": st.none() | st.sampled_from(Outcome),
    # What a cost is: a whole number of nano-dollars.
    "cost_usd": st.none() | st.integers(0, 10**13).map(lambda nano: nano / 1e9),
    "usage_source": st.none() | st.sampled_from(UsageSource),
    "error": st.none() | st.builds(RecordedError, code=TEXTS, message=TEXTS),
}


def values_of(field: str) -> st.SearchStrategy[object]:
    """What a field may hold."""
    if field in ODD_ONES:
        return ODD_ONES[field]
    values: st.SearchStrategy[object] = NUMBERS if REQUEST_FIELDS[field].is_number else TEXTS
    return values if "NOT NULL" in REQUEST_FIELDS[field].declaration else st.none() | values


@st.composite
def records(draw: st.DrawFn, fields: tuple[str, ...] = tuple(REQUEST_FIELDS)) -> RequestRecord:
    """A request that has just started or ended, with any values in these fields."""
    record = a_record() if draw(st.booleans()) else as_ended(a_record(), 502)
    record.seq = 1
    for field in fields:
        setattr(record, field, draw(values_of(field)))
    return record


SUBSTRING = st.sampled_from([Op.CONTAINS, Op.LACKS])
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
    if kind == "substring" and not REQUEST_FIELDS[field].is_real:
        return Comparison(field, draw(SUBSTRING), value)
    if REQUEST_FIELDS[field].is_real:
        near_usd = found if isinstance(found, float) else 0.5
        return Comparison(field, draw(ORDER), draw(st.sampled_from([near_usd, near_usd / 2, 0.0])))
    if REQUEST_FIELDS[field].is_number:
        near = found if isinstance(found, int) else 0
        return Comparison(field, draw(ORDER), draw(st.integers(-3, 30) | st.just(storable_int(near))))
    return Comparison(field, draw(ORDER), value)


@st.composite
def cases(draw: st.DrawFn) -> tuple[RequestRecord, Filter]:
    """A record, and a filter that has a chance to pass it."""
    fields = draw(st.lists(st.sampled_from(list(REQUEST_FIELDS)), min_size=1, max_size=3, unique=True))
    record = draw(records(tuple(fields)))
    some = st.lists(terms(record, fields), min_size=1, max_size=2).map(tuple)
    return record, Filter("", tuple(draw(st.lists(some, max_size=2))))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def connection(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Connection]:
    """A real database of each kind."""
    with ExitStack() as stack:
        if request.param == "postgresql":
            stack.enter_context(on_postgres(request.getfixturevalue("postgres_databases")))
        database = stack.enter_context(opened_database(tmp_path_factory.mktemp("state")))
        yield database.connection


def stored(connection: Connection, record: RequestRecord, where: Filter) -> RequestRecord | None:
    """Return the record as the database gives it back if it passes in SQL; nothing is left behind."""
    clause, values = where.sql(connection.dialect)
    connection.execute("BEGIN")
    try:
        upsert(connection, [to_row(record, record.seq, None)])
        query = f"SELECT {record_json(connection.dialect)} FROM requests WHERE {clause}"  # noqa: S608 - what is tested
        found = connection.execute(query, values).fetchone()
    finally:
        connection.execute("ROLLBACK")
    return None if found is None else msgspec.json.decode(found[0], type=RequestRecord)


def as_storable(record: RequestRecord) -> RequestRecord:
    """Return the record with each value as the database can hold it."""
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


FIRST = msgspec.structs.replace(a_record(), seq=1)
FAILED = as_ended(msgspec.structs.replace(FIRST), 502)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@example(case=(FIRST, parse_filter("none")))
@example(case=(FIRST, parse_filter("model~gpt_4o or model~g%i or client~\\")))
@example(case=(msgspec.structs.replace(FIRST, deltas=-3), parse_filter("-3")))
@example(case=(msgspec.structs.replace(FIRST, deltas=7), parse_filter("007 or -0")))
@example(case=(FAILED, parse_filter("error~provider")))
@example(case=(FAILED, parse_filter("error!=upstream_failed")))
@example(case=(FAILED, parse_filter('"the provider failed"')))
@given(case=cases())
def test_memory_and_sql_give_the_same_answer(
    connection: Connection, case: tuple[RequestRecord, Filter]
) -> None:
    """For any filter and any record, with any characters, the predicate and the WHERE clause agree."""
    record, where = case
    expected = as_storable(record) if where.matches(record) else None
    assert stored(connection, record, where) == expected


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(record=records())
def test_a_record_comes_back_as_it_was(connection: Connection, record: RequestRecord) -> None:
    """Every field survives the row and the JSON that is read from it."""
    assert stored(connection, record, parse_filter("")) == as_storable(record)


@pytest.mark.parametrize("field", REQUEST_FIELDS)
def test_every_field_can_be_filtered(connection: Connection, field: str) -> None:
    """Each field of a record is a field of the language, in memory and in SQL."""
    text = f"{field}!=1 or {field}=1" if REQUEST_FIELDS[field].is_real else f"{field}!~x or {field}~x"
    where = parse_filter(text)
    assert where.matches(FIRST)
    assert stored(connection, FIRST, where) == FIRST


def test_the_largest_filter_is_within_sqlite_s_limits(connection: Connection) -> None:
    """Fifty words, each searched in every field, still make a statement that SQLite takes."""
    where = parse_filter(" or ".join(f"word{n}" for n in range(50)))
    assert stored(connection, FIRST, where) is None


_ROTATED = AuditEntry(
    at="2026-01-31T12:00:00.000Z", action="rotate", result="done", client="web", key_ids=("new1", "old1")
)


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("action=rotate client~WE", True),
        ("result!=done", False),
        ("key_ids=old1", True),
        ("key_ids=old", False),
        ("key_ids~old", True),
        ("key_ids!=old1", False),
        ("key_ids!=other", True),
        ("key_ids!~new", False),
        ("old1", True),
        ("detail=x or generation<1", True),
        ("at>2026-01-31T11 at<2026-02", True),
    ],
)
def test_rows_of_another_kind_have_fields_of_their_own(text: str, *, passes: bool) -> None:
    """One language for all lists; of several values in a row one has to be equal, for `!=` none."""
    assert parse_filter(text, fields_of(AuditEntry)).matches(_ROTATED) is passes


def test_a_field_of_another_kind_of_row_is_refused_at_its_place() -> None:
    """The audit has no status; the error says what was meant, if that can be guessed."""
    with pytest.raises(FilterError, match="no field 'acton'; did you mean 'action'") as caught:
        parse_filter("done acton=rotate", fields_of(AuditEntry))
    assert caught.value.position == 5
    with pytest.raises(FilterError, match="no field 'status'"):
        parse_filter("status=200", fields_of(AuditEntry))


@given(st.text(max_size=20).map(storable_text))
def test_any_value_can_be_written_into_a_filter(value: str) -> None:
    """A list filters for exactly what a row of it has."""
    assert parse_filter(f"client={quoted(value)}").alternatives == ((Comparison("client", Op.EQ, value),),)
