"""What became of a key, told from the key and from the audit."""

from __future__ import annotations

from relayd.admin.schema import AuditEntry, KeyState, utc_text
from tests.tui.samples import NOON_S, a_key
from tui.model.key_history import history_of

OLD, NEW = "oldkey01", "newkey01"


def an_entry(action: str, at_s: float, *key_ids: str, **changes: object) -> AuditEntry:
    """What an operator did."""
    values: dict[str, object] = {
        "at": utc_text(NOON_S + at_s),
        "action": action,
        "result": "done",
        "generation": 1,
        "client": "web",
        "key_ids": key_ids,
        "login": "ada",
        "detail": None,
    }
    return AuditEntry(**{**values, **changes})  # type: ignore[arg-type]


def told(key_id: str, *entries: AuditEntry, **changes: object) -> list[tuple[float, str, str]]:
    """The history of one of two keys of a rotation, 200 s after noon."""
    old = a_key(OLD, state=KeyState.RETIRING, replaced_by=NEW, expires_at=utc_text(NOON_S + 300), **changes)
    new = a_key(NEW, created_at=utc_text(NOON_S + 100))
    key = old if key_id == OLD else new
    events = history_of(key, [old, new], entries, NOON_S + 200)
    return [(event.at_s - NOON_S, event.what, event.by) for event in events]


def test_a_change_is_told_once_with_who_made_it() -> None:
    """The audit says who; what the key itself says of the same moment is left out; the latest is first."""
    rotation = an_entry("rotate", 100, NEW, OLD)
    assert told(OLD, rotation, an_entry("add", 0, OLD)) == [
        (300, "ends", ""),
        (100, f"replaced by {NEW}", "ada"),
        (0, "add", "ada"),
    ]
    assert told(NEW, rotation) == [(100, f"made in place of {OLD}", "ada")]


def test_without_the_audit_the_key_tells_what_it_knows() -> None:
    """Made, first used, replaced and its end, without a name; another key's changes are not told."""
    used = {"first_used_at": utc_text(NOON_S + 10), "first_used_ip": "192.0.2.7"}
    assert told(OLD, an_entry("revoke", 50, "another1"), **used) == [
        (300, "ends", ""),
        (100, f"replaced by {NEW}", ""),
        (10, "first used, from 192.0.2.7", ""),
        (0, "made", ""),
    ]


def test_a_refused_change_and_an_undone_rotation_are_told_as_such() -> None:
    """An undo reads from each key's side; a refusal names its reason and keeps what the key says."""
    undo = an_entry("undo", 150, OLD, NEW)
    assert (150, f"active again, {NEW} revoked", "ada") in told(OLD, undo)
    assert (150, f"revoked: {OLD} is active again", "ada") in told(NEW, undo)
    refused = an_entry("revoke", 120, NEW, result="generation_mismatch")
    assert (120, "revoke refused (generation_mismatch)", "ada") in told(NEW, refused)
