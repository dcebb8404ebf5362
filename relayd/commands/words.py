"""Facts as people say them: times ago, sizes, the state of a key."""

from __future__ import annotations

from relayd.admin.schema import KeyInfo, KeyState, epoch_s
from relayd.durations import short

_KIB = 1024
_SECOND_MS = 1000
_LONG_MS = 100_000


def ago(utc: str, now_s: float) -> str:
    """`3s ago`."""
    return f"{short(now_s - epoch_s(utc))} ago"


def left(utc: str, now_s: float) -> str:
    """`42m left`."""
    return f"{short(epoch_s(utc) - now_s)} left"


def size(count: int) -> str:
    """`512 B`, `1.5 MiB`."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < _KIB:
            break
        amount, unit = amount / _KIB, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def counted(count: int, noun: str) -> str:
    """`1 stream`, `2 streams`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def millis(ms: int | None) -> str:
    """`412 ms`, `1.9 s`, `2m 5s`; a dash where it is not known."""
    if ms is None:
        return "-"
    if ms < _SECOND_MS:
        return f"{ms} ms"
    return f"{ms / 1000:.1f} s" if ms < _LONG_MS else short(ms / 1000)


def key_state(key: KeyInfo, now_s: float) -> str:
    """`retiring, 42m left, last used 3s ago from 1.2.3.4`."""
    parts = [key.state.value]
    if key.state is KeyState.RETIRING and key.expires_at is not None:
        parts.append(left(key.expires_at, now_s))
    elif key.state is KeyState.ACTIVE:
        parts.append(f"made {ago(key.created_at, now_s)}")
    else:
        end = key.revoked_at or key.expires_at
        parts[0] += f" {ago(end, now_s)}" if end is not None else ""
    if key.last_used_at is None:
        parts.append("never used")
    else:
        parts.append(f"last used {ago(key.last_used_at, now_s)} from {key.last_used_ip}")
    return ", ".join(parts)
