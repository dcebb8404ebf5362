"""The line of each key in relayd.toml."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.config.toml import KeyPath, key_lines

FORMS = [
    pytest.param("", {}, id="nothing"),
    pytest.param(r'"\u0061\"\t" = 1', {('a"\t',): 1}, id="escapes in a quoted key"),
    pytest.param("\n[ a . 'b' ]\nc = 1", {("a",): 2, ("a", "b"): 2, ("a", "b", "c"): 3}, id="dotted table"),
    pytest.param(
        "a = {\n b = 1,\n c = {\n d = 2 } }\ne = 1",
        {("a",): 1, ("a", "b"): 1, ("a", "c"): 1, ("a", "c", "d"): 1, ("e",): 5},
        id="inline over several lines",
    ),
    pytest.param(
        "a = '''\n''b = 1'''''\nd = 1", {("a",): 1, ("d",): 3}, id="long literal string with quotes"
    ),
    pytest.param("a = '\\'\nb = \"\\\\\"\nc = 1", {("a",): 1, ("b",): 2, ("c",): 3}, id="backslashes"),
    pytest.param("a = 1979-05-27 07:32:00 # x\nb = 1", {("a",): 1, ("b",): 2}, id="date with a space"),
    pytest.param(
        "[[a]]\nb = 1\n[c]\n[[ a ]]\n[[c.d]]\nb = 2",
        {
            ("a",): 1,
            ("a", 0): 1,
            ("a", 0, "b"): 2,
            ("c",): 3,
            ("a", 1): 4,
            ("c", "d"): 5,
            ("c", "d", 0): 5,
            ("c", "d", 0, "b"): 6,
        },
        id="arrays of tables, by number",
    ),
]
"""What the mixture of `test_any_document` does not hold."""


@pytest.mark.parametrize(("text", "lines"), FORMS)
def test_every_form(text: str, lines: dict[KeyPath, int]) -> None:
    """Each way to write a key in TOML gives the line on which the key stands."""
    tomli.loads(text)
    assert key_lines(text) == lines


BLANKS = st.sampled_from(["", "\n", "# a = 0\n", "\n  \t\n", "# [x]\n\n"])
VALUES = st.sampled_from(
    [
        "1",
        "-2.5e3",
        "true",
        "'x # y'",
        '"\\" = [x]"',
        "'''\n[x]\na = 1\n'''",
        '"""\n\\""" # """',
        "[\n1, # ]\n'}',\n]",
        "[{ a = 1 }, { a = [2] }]",
        "1979-05-27T07:32:00Z",
        "[]",
        "{}",
        "{ a.b = 1, 'c' = [ {} ] }",
    ]
)
QUOTES = st.sampled_from(["{}", '"{}"', "'{}'"])


@st.composite
def numbered(draw: st.DrawFn) -> str:
    """A TOML text in which the value of each key `lineN` is the line that the key stands on."""
    text = ""
    for table in range(draw(st.integers(0, 4))):
        if table:
            text += draw(BLANKS) + draw(QUOTES).format(f"t{table}").join(["[", "]\n"])
        for row in range(draw(st.integers(0, 4))):
            text += draw(BLANKS)
            dots = draw(st.sampled_from(["", f"p{row}.", f"p{row} . 'q' ."]))
            pair = f"{dots}{draw(QUOTES).format(f'line{row}')} = {text.count(chr(10)) + 1}"
            inline = draw(st.booleans())
            text += f"in{row} = {{ {pair}, x = {draw(VALUES)} }}\n" if inline else f"{pair}\n"
            text += f"other{row} = {draw(VALUES)}\n"
    return text


def leaves(table: dict[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every key of a parsed document that is not inside an array, tables included."""
    for name, value in table.items():
        yield (*path, name), value
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(numbered())
def test_any_document(text: str) -> None:
    """In any mixture of forms every key has a line, and each `lineN` has the line it carries as its value."""
    lines = key_lines(text)
    found = dict(leaves(tomli.loads(text)))
    assert set(found) == set(lines)
    for path, value in found.items():
        if str(path[-1]).startswith("line"):
            assert lines[path] == value
