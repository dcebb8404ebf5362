"""What is on its way to the terminal is bounded, and what the terminal says is understood."""

from __future__ import annotations

import os
import select
import time

import pytest

from tests.wire import PATIENCE_S
from tui.driver import InputFilter
from tui.model.glyphs import UTF_8, Repertoire
from tui.painter import PIECE_BYTES, UNANSWERED_BYTES, Painter

MARK = "\x1b]2;mark\x07"


def until_mark(fd: int) -> str:
    """What was written until a sequence that is never held back."""
    written = ""
    while MARK not in written:
        assert select.select([fd], [], [], PATIENCE_S)[0]
        written += os.read(fd, 65536).decode(errors="replace")
    return written


def test_a_terminal_that_does_not_answer_any_more_is_sent_no_more_than_half_a_second_carries() -> None:
    """Whatever is drawn: the rest waits for its answer; a control sequence does not wait."""
    there, written_to = os.pipe()
    painter = Painter(written_to, (200, 60), Repertoire(UTF_8))
    painter.answered(1)
    for number in range(20):
        frame = "".join(f"\x1b[{y + 1};1H{number} {y} " + "x" * 190 for y in range(60))
        painter.draw(frame, (200, 60), urgent=False)
    painter.control(MARK)
    assert len(until_mark(there)) < UNANSWERED_BYTES + 2 * PIECE_BYTES
    painter.close()
    os.close(written_to)
    os.close(there)


def test_a_terminal_that_stops_answering_is_written_to_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However often something is drawn meanwhile: the picture must not stand still for good."""
    monkeypatch.setattr("tui.painter.ANSWER_WITHIN_S", 0.05)
    there, written_to = os.pipe()
    painter = Painter(written_to, (80, 24), Repertoire(UTF_8))
    painter.answered(1)
    written, number, end_s = "", 0, time.monotonic() + PATIENCE_S
    while len(written) < 3 * (UNANSWERED_BYTES + PIECE_BYTES):
        assert time.monotonic() < end_s
        number += 1
        painter.draw(
            "".join(f"\x1b[{y + 1};1H{number}".ljust(80, "x") for y in range(24)), (80, 24), urgent=False
        )
        if select.select([there], [], [], 0.005)[0]:
            written += os.read(there, 65536).decode()
    painter.close()
    os.close(written_to)
    os.close(there)


@pytest.mark.parametrize(
    "pieces",
    [(b"\x1b[0n",), (b"\x1b", b"[0n"), (b"\x1b[", b"0n"), (b"\x1b[0", b"n"), (b"\x1b", b"[", b"0", b"n")],
)
def test_an_answer_is_counted_however_it_comes(pieces: tuple[bytes, ...]) -> None:
    """Between keys, and in pieces; the keys stay."""
    input_filter = InputFilter()
    passed = b"".join(input_filter.feed(piece) for piece in (b"a", *pieces, b"b"))
    assert input_filter.answers == 1
    assert passed in {b"ab", b"a\x1b[0nb"}
    assert input_filter.feed(b"n") == b"n"
    assert input_filter.answers == 1


def test_an_escape_is_never_held_back() -> None:
    """The key acts at once, also if an answer follows later."""
    input_filter = InputFilter()
    assert input_filter.feed(b"\x1b") == b"\x1b"


@pytest.mark.parametrize(
    ("pieces", "kept"),
    [
        ((b"\x1b!",), False),
        ((b"\x1b", b"D"), False),
        ((b"a\x1b\r",), False),
        ((b"\x1b\xc3\xa9",), False),
        ((b"\x1bf",), True),
        ((b"\x1b", b"[A"), True),
        ((b"\x1b", b"OP"), True),
        ((b"\x1b\x1b[A",), True),
    ],
)
def test_escape_and_a_key_are_two_keys(pieces: tuple[bytes, ...], *, kept: bool) -> None:
    """In one read or two; what begins as a sequence, and Alt keys in use stay as they are."""
    input_filter = InputFilter(takes_alt="f".__eq__)
    typed = b"".join(pieces)
    apart = typed.replace(b"\x1b", b"\x1b\x1b[?0;0$y")
    assert b"".join(map(input_filter.feed, pieces)) == (typed if kept else apart)


def test_a_paste_is_text_to_its_end() -> None:
    """No Escape in it makes keys of the rest, such as an Enter; wherever two reads meet."""
    typed = b"a\x1b[200~b\x1b[31m\x1b\rc\x1b[201~\x1b[A\x1bd"
    for cut in range(3, len(typed)):
        input_filter = InputFilter()
        passed = input_filter.feed(typed[:cut]) + input_filter.feed(typed[cut:])
        assert passed == b"a\x1b[200~b[31m\rc\x1b[201~\x1b[A\x1b\x1b[?0;0$yd", cut


@pytest.mark.parametrize(
    ("env", "encoding", "shown", "escaped"),
    [
        ({"LANG": "de_DE.ISO-8859-1", "LC_CTYPE": "C.UTF-8"}, "iso8859-1", "+->#~é?", "é\\u4e2d"),
        ({"LC_ALL": "C"}, "ascii", "+->#~??", "\\xe9\\u4e2d"),
        ({"LANG": "POSIX"}, "ascii", "+->#~??", "\\xe9\\u4e2d"),
        ({"LANG": "en_US.UTF-8"}, UTF_8, "┌─▶▓…éЖ", "é中"),
        ({}, UTF_8, "┌─▶▓…éЖ", "é中"),
        ({"LANG": "C.UTF-8", "TERM": "linux"}, UTF_8, "┌─>▓~éЖ", "é中"),
        ({"LC_ALL": "C", "TERM": "linux"}, "ascii", "+->#~??", "\\xe9\\u4e2d"),
        ({"LANG": "x.no-such-charset"}, UTF_8, "┌─▶▓…éЖ", "é中"),
    ],
)
def test_what_the_terminal_cannot_show_is_replaced_cell_by_cell(
    env: dict[str, str], encoding: str, shown: str, escaped: str
) -> None:
    """By the locale that the environment names; a client's text becomes escapes."""
    terminal = Repertoire("")
    terminal.adapt(env, UTF_8)
    assert terminal.encoding == encoding
    assert terminal.shown("┌─▶▓…éЖ") == shown
    assert terminal.escaped("é中") == escaped
    terminal.shown("┌─▶▓…é中").encode(encoding)
