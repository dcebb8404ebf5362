"""Who uses which key."""

from __future__ import annotations

from relayd.admin.schema import KeyState, Outcome, utc_text
from tests.tui.samples import NOON_S, a_key, a_record, an_open
from tui.model.evidence import MAX_USERS, Evidence

OLD, NEW = "oldkey01", "newkey01"


def rotated(state: KeyState = KeyState.RETIRING) -> list[object]:
    """An old key and the one that replaced it 100 s after NOON_S."""
    old = a_key(OLD, state=state, replaced_by=NEW)
    return [old, a_key(NEW, created_at=utc_text(NOON_S + 100))]


def test_only_uses_after_the_rotation_make_a_straggler() -> None:
    """What used the old key before it was replaced is history."""
    evidence = Evidence()
    early = a_record(50, key_id=OLD, ip="192.0.2.1")
    evidence.saw(early)
    evidence.retire(rotated(), [early])  # type: ignore[arg-type]
    assert evidence.stragglers(OLD) == []
    evidence.saw(a_record(150, key_id=OLD, ip="192.0.2.2"))
    evidence.saw(a_record(160, key_id=OLD, ip="192.0.2.2"))
    [use] = evidence.stragglers(OLD)
    assert (use.ip, use.requests, use.last_s) == ("192.0.2.2", 2, NOON_S + 160)
    assert evidence.straggler_count(rotated()) == 1  # type: ignore[arg-type]


def test_records_seen_before_the_ring_was_known_count() -> None:
    """At start the backlog comes first; the ring then finds the stragglers in it."""
    evidence = Evidence()
    records = [a_record(seq, key_id=OLD) for seq in (130, 120, 90)]
    for record in records:
        evidence.saw(record)
    evidence.retire(rotated(), records)  # type: ignore[arg-type]
    assert evidence.stragglers(OLD)[0].requests == 2


def test_refusals_after_the_end_stay_visible() -> None:
    """After the grace, who is refused is shown, and no longer counted as a user."""
    evidence = Evidence()
    evidence.retire(rotated(KeyState.EXPIRED), [])  # type: ignore[arg-type]
    evidence.saw(a_record(500, key_id=OLD, outcome=Outcome.DENIED, status=401))
    [use] = evidence.stragglers(OLD)
    assert (use.requests, use.refused) == (0, 1)


def test_a_refusal_is_told_from_a_use_when_the_request_ends() -> None:
    """A start says nothing of how it ends: a refused one is counted as a use no longer than it is open."""
    evidence = Evidence()
    evidence.retire(rotated(KeyState.EXPIRED), [])  # type: ignore[arg-type]
    evidence.saw(an_open(500, key_id=OLD))
    evidence.ended(a_record(500, key_id=OLD, outcome=Outcome.DENIED, status=401))
    [use] = evidence.stragglers(OLD)
    assert (use.requests, use.refused, use.refused_last_s) == (0, 1, NOON_S + 500)


def test_refusals_of_a_key_that_was_revoked_without_a_successor_are_seen() -> None:
    """A leaked key's holder shows from its end on; what it did before is history."""
    evidence = Evidence()
    early, late = a_record(50, key_id=OLD), a_record(150, key_id=OLD, outcome=Outcome.DENIED, status=401)
    dead = a_key(OLD, state=KeyState.REVOKED, revoked_at=utc_text(NOON_S + 100))
    evidence.retire([dead], [late, early])
    [use] = evidence.stragglers(OLD)
    assert (use.requests, use.refused, use.refused_last_s) == (0, 1, NOON_S + 150)
    assert evidence.refused(OLD, NOON_S + 140) == [use]
    assert evidence.refused(OLD, NOON_S + 151) == []


def test_an_undone_rotation_leaves_no_stragglers() -> None:
    """When the old key is active again, using it is right."""
    evidence = Evidence()
    evidence.retire(rotated(), [])  # type: ignore[arg-type]
    evidence.saw(a_record(150, key_id=OLD))
    evidence.retire([a_key(OLD)], [])
    assert evidence.stragglers(OLD) == []


def test_a_flood_of_addresses_is_bounded() -> None:
    """Only the latest addresses of a key are kept."""
    evidence = Evidence()
    for seq in range(1, 5 * MAX_USERS + 50):
        evidence.saw(a_record(seq, key_id=NEW, ip=f"10.0.{seq // 250}.{seq % 250}"))
    users = evidence.users(NEW, NOON_S + 10_000)
    latest = range(5 * MAX_USERS + 49, 4 * MAX_USERS + 49, -1)
    assert [use.ip for use in users] == [f"10.0.{seq // 250}.{seq % 250}" for seq in latest]


def test_a_keys_last_use_is_the_newer_of_what_the_ring_and_the_records_tell() -> None:
    """A refusal is no use; the ring is asked less often than records come."""
    evidence, key = Evidence(), a_key(last_used_at=utc_text(NOON_S + 1), last_used_ip="192.0.2.1")
    assert evidence.last_use(a_key()) is None
    assert evidence.last_use(key) == (NOON_S + 1, "192.0.2.1")
    evidence.saw(a_record(14, ip="192.0.2.7"))
    evidence.saw(a_record(20, ip="192.0.2.9", outcome=Outcome.DENIED))
    assert evidence.last_use(key) == (NOON_S + 14, "192.0.2.7")
    assert evidence.last_use(a_key()) == (NOON_S + 14, "192.0.2.7")
