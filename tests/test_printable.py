"""Behaviour of `relayd.printable`: no text from outside can act on a terminal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.printable import printable, printable_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, déjà vu, 日本語, 🙂", "plain text, déjà vu, 日本語, 🙂"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b2J", r"\x9b2J"),
        ("a\nb\tc\x7f", r"a\nb\tc\x7f"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("line\u2028separator\u2029", r"line\u2028separator\u2029"),
        ("half \ud83d pair", r"half \ud83d pair"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("tag \U000e0041", r"tag \U000e0041"),
    ],
)
def test_unsafe_characters_become_escapes_and_all_others_stay(text: str, shown: str) -> None:
    """Controls, bidirectional marks, separators and surrogates are shown; words of any script are kept."""
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_one_printable_line(text: str) -> None:
    """Whatever the input, the result can be shown, encoded as UTF-8, and is a single line."""
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown


@given(st.dictionaries(st.text(), st.text() | st.integers(-(2**53), 2**53) | st.none() | st.floats(0, 1)))
def test_any_document_becomes_one_ascii_line_of_the_same_json(document: dict[str, object]) -> None:
    """A terminal finds nothing to act on in it, and a program reads back what went in."""
    line = printable_json(document)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == document
