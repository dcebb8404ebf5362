"""The names of requests."""

from __future__ import annotations

import os
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 35


def new_request_id() -> str:
    """16 characters that sort by time: 45 bits of milliseconds, 35 random ones (Crockford's base 32)."""
    number = (time.time_ns() // 1_000_000) << _RANDOM_BITS | int.from_bytes(os.urandom(5)) >> 5
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(75, -1, -5))
