"""What real terminals send."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual import events
from textual._xterm_parser import XTermParser

from tui.driver import InputDecoder, SafeParser, TerminalFile


def keys(data: bytes, parser: SafeParser | None = None) -> list[str]:
    """The keys that these bytes are."""
    parser = parser or SafeParser(XTermParser)
    found = parser.feed(InputDecoder().feed(data, final=True))
    return [event.key for event in found if isinstance(event, events.Key)]


def test_an_x10_mouse_report_is_dropped() -> None:
    """Its bytes are not UTF-8, and the stock driver dies of them."""
    assert keys(b"a\x1b[M \xf0\xa1b") == ["a", "b"]


@given(st.binary(max_size=60), st.integers(0, 60))
@settings(max_examples=300, derandomize=True)
def test_no_bytes_make_the_input_fail(data: bytes, cut: int) -> None:
    """Whatever comes, in whatever pieces, reading goes on, and the next key is read."""
    decoder, parser = InputDecoder(), SafeParser(XTermParser)
    for part in (data[:cut], data[cut:]):
        list(parser.feed(decoder.feed(part)))
        list(parser.tick())


@pytest.mark.parametrize("cut", [2, 3, 4, 5])
def test_an_x10_report_in_two_pieces_is_dropped_too(cut: int) -> None:
    """A read may end inside the report; only a lone Escape is never held back."""
    report = b"\x1b[M \xf0\xa1"
    decoder = InputDecoder()
    assert decoder.feed(report[:cut]) + decoder.feed(report[cut:] + b"x") == "x"


def test_an_impossible_key_report_leaves_the_parser_working() -> None:
    """A code point that does not exist ends the sequence, not the app."""
    parser = SafeParser(XTermParser)
    list(parser.feed("\x1b[99999999999;1u"))
    assert keys(b"q", parser) == ["q"]


class _Broken(io.StringIO):
    def write(self, text: str) -> int:  # noqa: ARG002 - a file's signature
        raise OSError(5, "Input/output error")


def test_a_terminal_that_is_gone_becomes_a_hole() -> None:
    """Writing to it tells the app once and never fails again."""
    told: list[bool] = []
    file = TerminalFile(_Broken(), lambda: told.append(True))
    for _ in range(3):
        file.write("x")
        file.flush()
    assert told == [True]
