"""The filter language: what it accepts, what it refuses, and where it points."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.state.filter import FilterError, parse_filter
from relayd.state.filterterms import Comparison, Op, Word
from tests.state.room import a_record, as_ended


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
            ((Comparison("model", Op.HAS, "gpt-4"), Comparison("ip", Op.EQ, "1.2.3.4")),),
        ),
        (
            "model!~gpt client!=web",
            ((Comparison("model", Op.HAS_NOT, "gpt"), Comparison("client", Op.NE, "web")),),
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
        ("status~50", ((Comparison("status", Op.HAS, "50"),),)),
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
        ("status>=abc", "abc", "whole number"),
        ("deltas=99999999999999999999", "99999999999999999999", "whole number"),
        ("deltas=\u0661", "\u0661", "whole number"),
        ("outcome=compleeted", "compleeted", "one of completed"),
        ("phase!=gone", "gone", "one of connecting"),
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


def test_the_bounds() -> None:
    """2,000 characters and 50 terms pass; one more of either is refused."""
    parse_filter("x" * 2000)
    parse_filter(" ".join(["x"] * 50))
    with pytest.raises(FilterError, match="2,000 characters"):
        parse_filter("x" * 2001)
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
        ("started_at>=2027-01-15", True),
        ("none", False),
    ],
)
def test_which_records_pass(text: str, *, passes: bool) -> None:
    """A null field passes nothing but `!=` and `!~`; a bare word is found in texts and as a whole number."""
    assert parse_filter(text).matches(as_ended(a_record())) is passes
