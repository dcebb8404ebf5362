"""Log lines that nobody's value can break."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.logfmt import logfmt


def test_pairs_in_order_without_what_is_unknown() -> None:
    """Plain values stand as they are, others are quoted."""
    line = logfmt(id="abc", model=None, ip="::1", ms=7, detail='Say "hi" now.', empty="")
    assert line == r'id=abc ip=::1 ms=7 detail="Say \"hi\" now." empty=""'


def test_a_hostile_value_stays_in_its_place() -> None:
    """Line ends, escape sequences and direction marks are shown, not obeyed."""
    line = logfmt(model="a\nfake=1\x1b[2J\u202e\u009b", client="b")
    assert line == r'model="a\nfake=1\u001b[2J\u202e\u009b" client=b'


@given(st.text())
def test_any_value_is_printable_ascii(value: str) -> None:
    """Even one with halves of surrogate pairs."""
    line = logfmt(value=value, next=1)
    assert line.isascii()
    assert line.isprintable()
    assert re.fullmatch(r'value=(?:[A-Za-z0-9_.:/@+-]+|".*") next=1', line)
