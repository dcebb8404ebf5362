"""Texts from outside, made safe and bounded."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.admin.schema import RecordedError
from tests.tui.samples import a_key, a_record
from tui.model.text import FIELD_LIMIT, printable_struct, printable_text

HOSTILE = "\x1b]52;c;aGk=\x07\x9b31m\u202eevil\u200b\u2066\x00\r\n\u2028\U000e0041"


@given(st.text())
@settings(max_examples=300, derandomize=True)
def test_a_text_is_safe_and_bounded(text: str) -> None:
    """Whatever the text, what is shown of it is printable and at most the limit long."""
    shown = printable_text(text)
    assert shown.isprintable()
    assert len(shown) <= FIELD_LIMIT
    assert shown == text or not text.isprintable() or len(text) > FIELD_LIMIT


def test_a_megabyte_is_cut_before_it_is_looked_at() -> None:
    """A user agent of a megabyte becomes 200 characters with an ellipsis."""
    assert printable_text("a" * 1_000_000) == "a" * (FIELD_LIMIT - 1) + "…"


def test_every_text_of_a_record_is_made_safe() -> None:
    """A client controls many fields; none of them keeps a control character."""
    texts = [name for name in a_record(1).__struct_fields__ if type(getattr(a_record(1), name)) is str]
    error = RecordedError(HOSTILE, HOSTILE * 20)
    record = a_record(1, **dict.fromkeys(texts, HOSTILE), error=error)
    clean = printable_struct(record)
    assert clean.error is not None
    assert len(texts) > 8
    shown = [getattr(clean, name) for name in texts]
    assert all(text.isprintable() for text in (*shown, clean.error.code, clean.error.message))
    assert FIELD_LIMIT < len(clean.error.message) <= 500


def test_a_keys_client_name_is_made_safe() -> None:
    """A client's name is chosen by a person, and shown in dialogs."""
    assert printable_struct(a_key(client="we\x1bb")).client == "we\\x1bb"
