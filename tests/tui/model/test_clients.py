"""Bounds of clients as text, and how much of them is used."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.admin.schema import ClientInfo, PeriodUse, Usage, UsageRow, UsageSums, utc_text
from tests.tui.samples import NOON_S
from tui.model.clients import bar, by_day, has_expired, last_days, meters, nearest, parsed, texts_of


def a_client(**fields: Any) -> ClientInfo:
    """A client without bounds."""
    return ClientInfo(**{"name": "web", "created_at": utc_text(NOON_S), **fields})


counts = st.none() | st.integers(1, 10**15)
amounts = st.none() | st.decimals("0.000001", "1000000000", places=6).map(float)
clients = st.builds(
    ClientInfo,
    name=st.just("web"),
    created_at=st.just(utc_text(NOON_S)),
    models=st.lists(st.from_regex(r"[a-z0-9*.-]{1,20}", fullmatch=True), max_size=3).map(tuple),
    max_streams=counts,
    tokens_per_day=counts,
    usd_per_month=amounts,
    expires_at=st.none() | st.integers(int(NOON_S), int(NOON_S) + 10**8).map(utc_text),
)


@given(clients)
@settings(max_examples=150, derandomize=True)
def test_a_form_that_is_not_touched_changes_nothing_and_its_text_means_the_bound(client: ClientInfo) -> None:
    """What a line shows is read as the very bound that it shows."""
    texts = texts_of(client)
    assert parsed(texts, texts, NOON_S) == {}
    read = parsed(texts, {}, NOON_S)
    for name in ("max_streams", "tokens_per_day", "usd_per_month", "expires_at"):
        assert read.get(name) == getattr(client, name)
    assert tuple(read.get("models", ())) == client.models  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("tokens_per_day", "20k", 20_000),
        ("tokens_per_day", "2M", 2_000_000),
        ("tokens_per_day", "1,500", 1500),
        ("usd_per_month", "$20", 20.0),
        ("models", "gpt-4o*, o3", ["gpt-4o*", "o3"]),
        ("expires_at", "30d", utc_text(NOON_S + 30 * 86_400)),
        ("expires_at", "2027-01-31", "2027-02-01T00:00:00.000Z"),
        ("expires_at", "20270131", "2027-02-01T00:00:00.000Z"),
        ("expires_at", "400d", utc_text(NOON_S + 400 * 86_400)),
        ("expires_at", "2027-01-31 12:30", "2027-01-31T12:30:00.000Z"),
        ("note", "", None),
    ],
)
def test_bounds_are_written_as_people_write_them(name: str, text: str, value: object) -> None:
    """Thousands and millions, dollars, lists, spans and days; an empty line removes a bound."""
    before = texts_of(a_client(note="Ada"))
    assert parsed({**before, name: text}, before, NOON_S) == {name: value}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("tokens_per_day", "many", "tokens a day is a whole number, such as 500, 20k or 2M."),
        ("usd_per_day", "1e3", "US$ a day is an amount of US dollars, such as 20 or 1.50."),
        ("expires_at", "soon", "ends is 12h or 30d, or the last day, such as 2027-01-31."),
        ("expires_at", "5000d", "ends is a span of at most 3660d."),
        ("expires_at", "9999-12-31", "ends is 12h or 30d, or the last day, such as 2027-01-31."),
    ],
)
def test_what_cannot_be_read_is_named_with_how_it_is_written(name: str, text: str, sentence: str) -> None:
    """The sentence has the name of the line as the form shows it."""
    before = texts_of(a_client())
    with pytest.raises(ValueError, match=f"^{sentence.replace('$', '.')}$"):
        parsed({**before, name: text}, before, NOON_S)


def test_the_bound_that_is_nearest_is_named_from_four_fifths_on() -> None:
    """Of several bounds the one of which the largest part is used; below 80 % none."""
    month = PeriodUse(10, 900, 4.5)
    assert nearest(a_client(usd_per_month=10.0, month=month)) is None
    client = a_client(usd_per_month=5.0, tokens_per_month=1000, month=month)
    assert [(meter.amounts, round(meter.share, 2)) for meter in meters(client)] == [
        ("900/1.0k", 0.9),
        ("4.50/5", 0.9),
    ]
    near = nearest(a_client(usd_per_month=4.0, tokens_per_month=1000, month=month))
    assert near is not None
    assert (near.label, near.share) == ("US$ this month", 1.125)


@pytest.mark.parametrize(
    ("limit_usd", "shown"), [(20.0, "20"), (1.5, "1.5"), (2_500_000.0, "2500000"), (0.00001, "0.00001")]
)
def test_a_bound_of_money_is_shown_as_it_is_written(limit_usd: float, shown: str) -> None:
    """In plain digits, however large or small."""
    [meter] = meters(a_client(usd_per_month=limit_usd, month=PeriodUse(10, 900, 0.5)))
    assert meter.amounts == f"0.500/{shown}"


@given(st.floats(0, 3), st.integers(1, 40))
@settings(max_examples=100, derandomize=True)
def test_a_bar_is_as_wide_as_its_column_and_never_empty_if_some_is_used(share: float, cells: int) -> None:
    """Also beyond the bound."""
    drawn = bar(share, cells)
    assert len(drawn) == cells
    assert ("█" in drawn) == (share > 0)


def test_days_without_use_are_nothing_and_today_is_the_last() -> None:
    """The plot has every day, also those that the daemon has no row for."""
    assert last_days(3, date(2027, 3, 1)) == ["2027-02-27", "2027-02-28", "2027-03-01"]
    rows = [UsageRow(name="2027-02-28", prompt_tokens=3, completion_tokens=4, cost_usd=0.5)]
    usage = Usage("day", "2027-02-27", "2027-03-01", rows, UsageSums())
    assert by_day(usage, 3) == ([0, 7, 0], [0, 0.5, 0])


def test_a_client_has_expired_from_its_end_on() -> None:
    """Without an end it never has."""
    assert has_expired(a_client(expires_at=utc_text(NOON_S)), NOON_S)
    assert not has_expired(a_client(expires_at=utc_text(NOON_S + 1)), NOON_S)
    assert not has_expired(a_client(), NOON_S)
