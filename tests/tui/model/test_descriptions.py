"""Records in words and numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.admin.schema import Outcome, Phase
from relayd.printable import plural
from tests.tui.samples import a_failure, a_record, an_open
from tui.model.descriptions import cause, path_kind, state_word, time_parts, where_the_time_went
from tui.model.units import age, bytes_text, count, countdown, duration, money


@given(
    connect=st.none() | st.integers(0, 10_000),
    first=st.none() | st.integers(0, 10_000),
    total=st.integers(0, 20_000),
    stalled=st.integers(0, 30_000),
)
@settings(max_examples=200, derandomize=True)
def test_the_parts_of_a_requests_time_add_up(
    connect: int | None, first: int | None, total: int, stalled: int
) -> None:
    """Connect, first token, stream and client never overlap, and make the whole duration."""
    record = a_record(1, connect_ms=connect, first_token_ms=first, duration_ms=total, stalled_ms=stalled)
    parts = time_parts(record)
    assert sum(part.ms for part in parts) == total
    assert all(part.ms >= 0 for part in parts)


def test_where_the_time_went_names_the_longest_part() -> None:
    """A slow reader is told apart from a slow provider."""
    assert "waiting for the client" in where_the_time_went(a_record(1, stalled_ms=1900))
    assert "first token" in where_the_time_went(a_record(1, first_token_ms=2400))


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_a_short_word_and_a_sentence(outcome: Outcome) -> None:
    """No outcome is left to be told by colour."""
    record = a_record(1, outcome=outcome)
    assert 0 < len(state_word(record)) <= 4
    assert cause(record).endswith(".")


def test_a_success_status_never_hides_a_failure() -> None:
    """A stream that broke after its 200 says `fail`."""
    assert state_word(a_failure(1, status=None)) == "fail"
    assert state_word(a_record(1, status=200, outcome=Outcome.UPSTREAM_ERROR)) == "fail"
    assert state_word(a_failure(1)) == "502"
    assert state_word(an_open(1, phase=Phase.STREAMING)) == "run"


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "—"),
        (7, "7ms"),
        (412, "0.4s"),
        (9_949, "9.9s"),
        (9_960, "10s"),
        (59_700, "1m00"),
        (187_000, "3m07"),
        (3_599_700, "1h00"),
        (7_500_000, "2h05"),
        (4 * 86_400_000, "4d"),
    ],
)
def test_durations_are_short(ms: int | None, text: str) -> None:
    """At most five characters, the unit always named."""
    assert duration(ms) == text


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (None, "—"),
        (0, "0"),
        (0.00003, "<.0001"),
        (0.00042, "0.0004"),
        (0.00996, "0.010"),
        (0.042, "0.042"),
        (0.996, "1.00"),
        (12.34, "12.3"),
        (99.96, "100"),
        (1234, "1.2k"),
    ],
)
def test_money_is_short_and_never_rounded_to_nothing(usd: float | None, text: str) -> None:
    """At most six characters, whatever a request or a month costs."""
    assert money(usd) == text


@given(st.floats(0, 1e9))
@settings(max_examples=200, derandomize=True)
def test_money_fits_its_column(usd: float) -> None:
    """Nothing is shown as `0` but nothing."""
    assert len(money(usd)) <= 6
    assert (money(usd) == "0") == (usd == 0)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/chat", "chat"),
        ("/v1/chat/completions", "v1 chat"),
        ("/v1/completions", "v1 text"),
        ("/v1/responses/resp_1/cancel", "responses"),
        ("/v1/embeddings", "embedding"),
        ("/v1/audio/speech", "audio"),
        ("/v1/images/edits", "images"),
        ("/v1/models/gpt-4o", "models"),
        ("/v1/files", "files"),
        ("", ""),
    ],
)
def test_a_path_has_a_word(path: str, kind: str) -> None:
    """What a request asked for, in a word that fits the list."""
    assert path_kind(path) == kind


def test_numbers_are_short() -> None:
    """Counts, ages and countdowns as an operator reads them."""
    assert [count(n) for n in (7, 999, 1000, 9_960, 38_000, 1_200_000)] == [
        "7",
        "999",
        "1.0k",
        "10k",
        "38k",
        "1.2M",
    ]
    assert [countdown(s) for s in (0, 5, 872, 3723, 3 * 86_400)] == [
        "now",
        "0:05",
        "14:32",
        "1:02:03",
        "3d 0h",
    ]
    assert [age(s) for s in (4, 700, 7300, 9 * 86_400)] == ["4s", "11m", "2h", "9d"]
    assert plural(1, "match", "matches") == "1 match"
    assert plural(12_481, "record") == "12,481 records"
    assert bytes_text(1434) == "1.4 KiB"
