"""What Tab makes of a filter that is being typed."""

from __future__ import annotations

import pytest

from relayd.admin.schema import REQUEST_FIELDS, parse_filter
from tui.model.completion import completions

_VALUES = {"client": ["web", "night batch", 'a "b"', "Laptop"], "status": ["200", "502"]}


def ways(text: str) -> list[str]:
    """The whole filter, each way that it may go on."""
    return [found.text for found in completions(text, REQUEST_FIELDS, lambda name: _VALUES.get(name, []))]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("cl", "client"),
        ("client", "client="),
        ("first_token_ms", "first_token_ms>"),
        ("TOK", "first_token_ms"),
        ("client=", "client=web"),
        ("client = w", "client = web"),
        ("client=ni", 'client="night batch"'),
        ('client="ni', 'client="night batch"'),
        ("client=a", r'client="a \"b\""'),
        ("client~apt", "client~Laptop"),
        ("status>=500 or client=l", "status>=500 or client=Laptop"),
        ("status!=5", "status!=502"),
        ("outcome=can", "outcome=cancelled"),
        ('"night batch" ou', '"night batch" outcome'),
    ],
)
def test_the_last_term_goes_on(text: str, first: str) -> None:
    """Fields, then operators, then values of the rows that are loaded, in quotes where they need them."""
    found = ways(text)
    assert found[0] == first
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "text",
    ["", "client=web ", "client=web", 'client="night batch"', "bogus=w", '"cl', "x", "upstream failed"],
)
def test_what_is_complete_or_unknown_does_not_go_on(text: str) -> None:
    """Tab then keeps the filter instead of changing it."""
    assert ways(text) == []


def test_every_value_that_is_offered_makes_a_filter() -> None:
    """What Tab writes is never refused."""
    for text in ways("client="):
        assert parse_filter(text).alternatives
