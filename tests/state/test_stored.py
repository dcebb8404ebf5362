"""What the database can hold of a value."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from relayd.state.stored import INT_MAX, fold_ascii, storable_int, storable_text

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)


@given(ANY_TEXT)
def test_storable_text_survives_the_database(text: str) -> None:
    """Any text, with NULs and lone surrogates too, becomes one that SQLite gives back unchanged."""
    clean = storable_text(text)
    with closing(sqlite3.connect(":memory:")) as connection:
        (back,) = connection.execute("SELECT lower(upper(?)) IS NOT NULL, ?", (clean, clean)).fetchone()[1:]
    assert back == clean
    assert len(clean) == len(text)
    assert "\0" not in clean


@given(st.integers())
def test_storable_int_fits_and_stays_in_order(number: int) -> None:
    """A number that does not fit becomes the nearest that does; all others stay as they are."""
    kept = storable_int(number)
    assert -INT_MAX <= kept <= INT_MAX
    assert kept == number or abs(number) > INT_MAX


@given(ANY_TEXT)
def test_folding_is_that_of_sqlite(text: str) -> None:
    """Case is folded for ASCII letters only, exactly as SQLite's LIKE does it."""
    clean = storable_text(text).replace("%", "").replace("_", "")
    with closing(sqlite3.connect(":memory:")) as connection:
        for other in (clean.lower(), clean.upper(), clean.swapcase(), fold_ascii(clean)):
            (alike,) = connection.execute("SELECT ? LIKE ?", (clean, other)).fetchone()
            assert bool(alike) is (fold_ascii(clean) == fold_ascii(other))
