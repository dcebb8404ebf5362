"""The facts that survive a restart, as the log keeps them and the admin socket sends them."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache

import msgspec


class Phase(StrEnum):
    """Where a request is now."""

    CONNECTING = "connecting"
    WAITING = "waiting"
    STREAMING = "streaming"
    DONE = "done"


class Outcome(StrEnum):
    """How a request ended. `completed` is the only success."""

    COMPLETED = "completed"
    CLIENT_CLOSED = "client_closed"
    CLIENT_STALLED = "client_stalled"
    DENIED = "denied"
    REJECTED = "rejected"
    UPSTREAM_ERROR = "upstream_error"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    CRASHED = "crashed"


class RecordedError(msgspec.Struct, frozen=True):
    """A failure as its client saw it: the code, and the sentence a person reads."""

    code: str
    message: str


class RequestRecord(msgspec.Struct, kw_only=True):
    """One request. No prompt, no reply and no key is ever in it.

    While the request runs, its stream is the only writer; the log keeps copies. Times are UTC with
    milliseconds (RFC 3339), durations are milliseconds, None means not known or not reached.
    """

    id: str
    boot_id: str
    started_at: str
    seq: int = 0
    """The place of its start in the log, given when the start is on disk; 0 until then."""
    client: str | None = None
    key_id: str | None = None
    ip: str = ""
    origin: str | None = None
    user_agent: str | None = None
    """At most 200 characters."""
    path: str = ""
    model: str | None = None
    phase: Phase = Phase.CONNECTING
    status: int | None = None
    outcome: Outcome | None = None
    error: RecordedError | None = None
    connect_ms: int | None = None
    first_token_ms: int | None = None
    duration_ms: int | None = None
    stalled_ms: int = 0
    """Time spent waiting for the client to read."""
    deltas: int = 0
    bytes_out: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    upstream_request_id: str | None = None


class KeyState(StrEnum):
    """A key works while it is active or retiring; expired and revoked are final."""

    ACTIVE = "active"
    RETIRING = "retiring"
    EXPIRED = "expired"
    REVOKED = "revoked"


class KeyInfo(msgspec.Struct, kw_only=True, frozen=True):
    """What may be shown of a key: never the key, only the first eight hex digits of its digest."""

    id: str
    client: str
    state: KeyState
    fingerprint: str
    created_at: str
    expires_at: str | None = None
    """When a retiring key stops, or an expired one stopped."""
    revoked_at: str | None = None
    replaced_by: str | None = None
    """The id of the key that a rotation put in its place."""
    first_used_at: str | None = None
    first_used_ip: str | None = None
    last_used_at: str | None = None
    last_used_ip: str | None = None


class Peer(msgspec.Struct, frozen=True):
    """Who asked for a change over the admin socket, as the kernel tells it (SO_PEERCRED)."""

    uid: int
    pid: int
    login: str


class AuditEntry(msgspec.Struct, kw_only=True, frozen=True):
    """One operator's action, kept in the same transaction as the change itself."""

    seq: int
    boot_id: str
    at: str
    action: str
    """`fill`, `add`, `rotate`, `extend`, `undo`, `revoke`, `pause`, `resume`, `drain` or `cancel`."""
    result: str
    """`done`, or the code of the refusal."""
    uid: int
    pid: int
    login: str
    client: str | None = None
    key_ids: tuple[str, ...] = ()
    generation: int = 0
    detail: str | None = None
    """In words: the grace, the new end, the id of a cancelled request."""


def utc_text(epoch_s: float) -> str:
    """A Unix time in seconds as RFC 3339 in UTC with milliseconds: `2026-01-31T23:59:59.999Z`."""
    ms = round(epoch_s * 1e6) // 1000
    return f"{_second_text(ms // 1000)}.{ms % 1000:03d}Z"


@lru_cache(8)
def _second_text(second: int) -> str:
    """Up to the second; what begins and ends in the same one is many."""
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}"


def epoch_s(utc: str) -> float:
    """The Unix time in seconds of a text that `utc_text` made.

    Raises:
        ValueError: the text is not such a time.
    """
    return datetime.fromisoformat(utc).timestamp()
