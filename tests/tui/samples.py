"""Records and keys with sensible values, changed by name."""

from __future__ import annotations

from typing import Any

from relayd.admin.schema import KeyInfo, KeyState, Outcome, Phase, RecordedError, RequestRecord, utc_text

NOON_S = 1_790_000_000.0


def a_record(seq: int, **changes: Any) -> RequestRecord:
    """A completed request that started `seq` seconds after NOON_S."""
    values: dict[str, Any] = {
        "id": f"req{seq:06d}",
        "boot_id": "boot-1",
        "started_at": utc_text(NOON_S + seq),
        "seq": seq,
        "client": "web",
        "key_id": "key00001",
        "ip": "192.0.2.7",
        "origin": "https://example.org",
        "user_agent": "curl/8",
        "path": "/chat",
        "model": "gpt-4o",
        "phase": Phase.DONE,
        "status": 200,
        "outcome": Outcome.COMPLETED,
        "connect_ms": 100,
        "first_token_ms": 500,
        "duration_ms": 2500,
        "deltas": 40,
        "bytes_out": 2400,
        "prompt_tokens": 12,
        "completion_tokens": 40,
        "finish_reason": "stop",
        "upstream_request_id": "req_abc",
    }
    return RequestRecord(**{**values, **changes})


def a_failure(seq: int, code: str = "upstream_failed", **changes: Any) -> RequestRecord:
    """A request that the provider failed."""
    values: dict[str, Any] = {
        "status": 502,
        "outcome": Outcome.UPSTREAM_ERROR,
        "error": RecordedError(code, "The provider answered 500."),
    }
    return a_record(seq, **{**values, **changes})


def an_open(seq: int, **changes: Any) -> RequestRecord:
    """A request that has just started."""
    values: dict[str, Any] = {
        "phase": Phase.WAITING,
        "status": None,
        "outcome": None,
        "first_token_ms": None,
        "duration_ms": None,
        "deltas": 0,
        "bytes_out": 0,
        "completion_tokens": None,
        "finish_reason": None,
    }
    return a_record(seq, **{**values, **changes})


def a_key(key_id: str = "key00001", **changes: Any) -> KeyInfo:
    """An active key of the client `web`, made at NOON_S."""
    values: dict[str, Any] = {
        "id": key_id,
        "client": "web",
        "state": KeyState.ACTIVE,
        "fingerprint": "0a1b2c3d",
        "created_at": utc_text(NOON_S),
    }
    return KeyInfo(**{**values, **changes})
