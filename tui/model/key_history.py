"""What became of one key, and when: from the key itself and from the audit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from relayd.admin.schema import AuditEntry, KeyInfo, KeyState, epoch_s

_SAME_S = 2.0
"""What the audit and the key say within so long is the same event."""


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """One thing that happened to a key, or will."""

    at_s: float
    what: str
    by: str = ""
    """Who did it; empty if nobody did."""


def history_of(
    key: KeyInfo, keys: Iterable[KeyInfo], audit: Iterable[AuditEntry], now_s: float
) -> list[KeyEvent]:
    """Return what happened to a key and what is to come, the latest first.

    Args:
        key: the key.
        keys: all that are known: those it replaced, or that replaced it, tell when.
        audit: what operators did, as far as it is known.
        now_s: the Unix time.
    """
    done = [
        KeyEvent(epoch_s(entry.at), _action(entry, key.id), entry.login)
        for entry in audit
        if key.id in entry.key_ids
    ]
    told = [event for event in _facts(key, keys, now_s) if not _is_told(event, done)]
    return sorted([*done, *told], key=lambda event: -event.at_s)


def _action(entry: AuditEntry, key_id: str) -> str:
    """Return an audit entry as it concerns this key."""
    others = " ".join(other for other in entry.key_ids if other != key_id)
    is_first = bool(entry.key_ids) and entry.key_ids[0] == key_id
    words = {
        "rotate": f"made in place of {others}" if is_first else f"replaced by {others}",
        "undo": f"active again, {others} revoked" if is_first else f"revoked: {others} is active again",
    }
    what = (
        words.get(entry.action, entry.action.replace("_", " ")) if others else entry.action.replace("_", " ")
    )
    detail = f": {entry.detail}" if entry.detail and entry.action not in words else ""
    return f"{what}{detail}" if entry.result == "done" else f"{entry.action} refused ({entry.result}){detail}"


def _facts(key: KeyInfo, keys: Iterable[KeyInfo], now_s: float) -> list[KeyEvent]:
    made = {known.id: epoch_s(known.created_at) for known in keys}
    facts = [KeyEvent(epoch_s(key.created_at), "made")]
    if key.first_used_at is not None:
        facts.append(KeyEvent(epoch_s(key.first_used_at), f"first used, from {key.first_used_ip or '—'}"))
    if key.replaced_by in made:
        facts.append(KeyEvent(made[key.replaced_by], f"replaced by {key.replaced_by}"))
    if key.revoked_at is not None:
        facts.append(KeyEvent(epoch_s(key.revoked_at), "revoked"))
    elif key.expires_at is not None and key.state is not KeyState.ACTIVE:
        end_s = epoch_s(key.expires_at)
        facts.append(KeyEvent(end_s, "ends" if end_s > now_s else "ended: its grace was over"))
    return facts


def _is_told(fact: KeyEvent, done: Iterable[KeyEvent]) -> bool:
    """Return whether an operator's action says the same."""
    is_change = fact.what == "made" or fact.what.startswith(("replaced", "revoked"))
    return is_change and any(abs(event.at_s - fact.at_s) < _SAME_S for event in done)
