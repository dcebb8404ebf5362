"""A provider's words, made fit to show."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.scrub import Scrubber

_KEY = "a-provider-key-of-any-form"
_scrub = Scrubber(_KEY)


def test_the_providers_key_never_comes_through() -> None:
    """The key itself and everything shaped like one is replaced, also where its middle is masked."""
    text = _scrub(f"Incorrect API key provided: sk-proj-AbC*****************xyz9. {_KEY} sk-live_123456789")
    assert text == "Incorrect API key provided: [key] [key] [key]"


def test_the_repr_shows_no_key() -> None:
    """A traceback or a log may show the object."""
    assert _KEY not in repr(_scrub)


@given(st.text(max_size=700))
def test_any_text_becomes_one_bounded_printable_line(text: str) -> None:
    """No control, no line break, no bidirectional override, at most 500 characters."""
    shown = _scrub(text)
    assert len(shown) <= 500
    assert not set(shown) & set("\n\r\x1b\x00\x9b\u202e\u200b\u2028")
