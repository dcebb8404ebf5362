"""What was answered under an idempotency key, so that a repeated question changes nothing."""

from __future__ import annotations

import re

from relayd.state.columns import storable_text
from relayd.state.engine import Connection
from relayd.state.errors import BadChange, IdempotencyMismatch

_KEY = re.compile(r"[!-~]{1,200}")


def recall(connection: Connection, key: str, change: str) -> str | None:
    """Return the reply to the same change under this key; None if the key is new.

    Raises:
        BadChange: the key is not 1 to 200 visible ASCII characters.
        IdempotencyMismatch: it was used for another change.
    """
    if not _KEY.fullmatch(key):
        raise BadChange("An Idempotency-Key has 1 to 200 visible ASCII characters.")
    row = connection.execute("SELECT change, reply FROM idempotency WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    known, reply = row
    if known != storable_text(change):
        raise IdempotencyMismatch(
            f"This Idempotency-Key was used for another change ({known}); each change needs a new one."
        )
    return str(reply)


def remember(connection: Connection, key: str, change: str, reply: str, now: str) -> None:
    """Keep the reply to a change, as part of its transaction."""
    connection.execute(
        "INSERT INTO idempotency (key, change, reply, created_at) VALUES (?, ?, ?, ?)",
        (key, storable_text(change), reply, now),
    )
