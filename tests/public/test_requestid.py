"""The names of requests."""

from __future__ import annotations

import re
import time

from relayd.public.requestid import new_request_id


def test_a_name_is_short_plain_and_new() -> None:
    """16 characters without those that people mistake for one another."""
    names = {new_request_id() for _ in range(5000)}
    assert len(names) == 5000
    assert all(re.fullmatch(r"[0-9a-hjkmnp-tv-z]{16}", name) for name in names)


def test_names_sort_by_time() -> None:
    """A later millisecond has the greater name."""
    earlier = new_request_id()
    time.sleep(0.002)
    assert earlier < new_request_id()
