"""Neutralised text."""

from __future__ import annotations

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.admin.schema import RecordedError
from tests.tui.samples import a_key, a_record
from tui.model.text import FIELD_LIMIT, neutral, neutral_key, neutral_record

HOSTILE = "\x1b]52;c;aGk=\x07\x9b31m\u202eevil\u200b\u2066\x00\r\n\u2028\U000e0041"


@given(st.text())
@settings(max_examples=300, derandomize=True)
def test_nothing_that_a_terminal_acts_on_is_left(text: str) -> None:
    """Whatever the text, no control, format, private or surrogate character is left in it."""
    shown = neutral(text)
    assert not [c for c in shown if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}]
    assert len(shown) <= FIELD_LIMIT


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=FIELD_LIMIT))
@settings(max_examples=100, derandomize=True)
def test_plain_text_stays_as_it_is(text: str) -> None:
    """Printable ASCII within the limit is not touched."""
    assert neutral(text) == text


def test_a_megabyte_is_cut_before_it_is_looked_at() -> None:
    """A user agent of a megabyte becomes 200 characters with an ellipsis."""
    shown = neutral("a" * 1_000_000)
    assert len(shown) == FIELD_LIMIT
    assert shown.endswith("…")


def test_escape_sequences_stay_readable_as_pictures() -> None:
    """ESC shows as its picture: the operator sees that somebody tried."""
    assert neutral("\x1b[2J") == "␛[2J"


def test_marks_are_kept_but_not_piled_up() -> None:
    """Two combining marks on a letter are kept, a tower of them is not."""
    assert neutral("e\u0301\u0323") == "e\u0301\u0323"
    assert len(neutral("e" + "\u0301" * 50)) == 3


def test_shapeless_letters_are_replaced() -> None:
    """A Hangul filler has no shape, though Unicode calls it printable."""
    assert neutral("a\u3164b") == "a\ufffdb"


def test_every_text_of_a_record_is_neutralised() -> None:
    """A client controls many fields; none of them keeps a control character."""
    record = a_record(
        1,
        id=HOSTILE,
        client=HOSTILE,
        key_id=HOSTILE,
        ip=HOSTILE,
        origin=HOSTILE,
        user_agent=HOSTILE,
        path=HOSTILE,
        model=HOSTILE,
        finish_reason=HOSTILE,
        upstream_request_id=HOSTILE,
        error=RecordedError(HOSTILE, HOSTILE),
    )
    clean = neutral_record(record)
    assert clean.error is not None
    texts = [getattr(clean, name) for name in clean.__struct_fields__ if name != "error"]
    texts += [clean.error.code, clean.error.message]
    assert all(text.isprintable() for text in texts if isinstance(text, str))


def test_a_keys_client_name_is_neutralised() -> None:
    """A client's name is chosen by a person, and shown in dialogs."""
    assert neutral_key(a_key(client="we\x1bb")).client == "we␛b"
