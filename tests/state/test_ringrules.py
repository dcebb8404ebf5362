"""What may happen to a key, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.state.errors import BadChange, NoSuchKey, RingError, WrongState
from relayd.state.records import KeyState, utc_text
from relayd.state.ringrules import (
    MAX_SPAN_S,
    Decision,
    Moment,
    add,
    extend,
    make_key,
    revoke,
    rotate,
    seconds,
    undo,
)
from relayd.state.ringstore import StoredKey, StoredRing
from tests.state.room import NOON_S


class Desk:
    """A ring in memory, to which decisions are applied."""

    def __init__(self) -> None:
        self.now_s = NOON_S
        self.keys: dict[str, StoredKey] = {}

    @property
    def moment(self) -> Moment:
        """Now."""
        ring = StoredRing(
            generation=1, changed_at=None, changed_by=None, change=None, keys=list(self.keys.values())
        )
        return Moment(ring, self.now_s, lambda _: None)

    def apply(self, decision: Decision) -> Decision:
        """Store what was decided, one key after the other, as the database would."""
        for key in decision.store:
            self.keys[key.id] = key
            active = [one.client for one in self.keys.values() if one.state is KeyState.ACTIVE]
            assert len(active) == len(set(active)), "two active keys for one client"
        return decision

    def state(self, key_id: str) -> KeyState:
        """The state of a key now."""
        return self.keys[key_id].state_at(self.moment.now)


@pytest.fixture
def desk() -> Desk:
    """An empty ring."""
    return Desk()


def test_add_makes_an_active_key_for_a_new_client(desk: Desk) -> None:
    """The decision has the secret, and the key has only its digest."""
    made = desk.apply(add(desk.moment, "web-1.x_Y"))
    assert made.secret is not None
    assert made.key.state is KeyState.ACTIVE
    assert made.secret not in repr(made)
    assert made.secret not in repr(made.key)


@pytest.mark.parametrize("client", ["", "a b", "a" * 65, "a/b", "naïve", "a\n", "\x1b[31m"])
def test_a_client_s_name_is_short_and_plain(desk: Desk, client: str) -> None:
    """1 to 64 of letters, digits, dot, dash and underscore; nothing that a terminal could trip over."""
    with pytest.raises(BadChange, match="1 to 64"):
        add(desk.moment, client)


def test_a_client_has_one_active_key(desk: Desk) -> None:
    """A second add is refused and says which key to rotate; after a revoke it is possible again."""
    first = desk.apply(add(desk.moment, "web"))
    with pytest.raises(WrongState, match=f"{first.key.id}.*rotate"):
        add(desk.moment, "web")
    desk.apply(revoke(desk.moment, first.key.id, cut=False))
    desk.apply(add(desk.moment, "web"))


def test_rotate_retires_the_old_key_for_the_grace(desk: Desk) -> None:
    """The new key is active at once; the old one works until the end of the grace and names its successor."""
    old = desk.apply(add(desk.moment, "web")).key
    rotated = desk.apply(rotate(desk.moment, old.id, 60))
    assert rotated.old is not None
    assert (rotated.key.state, rotated.key.client) == (KeyState.ACTIVE, "web")
    assert (rotated.old.id, rotated.old.replaced_by) == (old.id, rotated.key.id)
    assert rotated.old.expires_at == utc_text(NOON_S + 60)
    assert desk.state(old.id) is KeyState.RETIRING
    desk.now_s += 59.999
    assert desk.state(old.id) is KeyState.RETIRING
    desk.now_s += 0.001
    assert desk.state(old.id) is KeyState.EXPIRED


def test_a_grace_of_nothing_ends_the_old_key_at_once(desk: Desk) -> None:
    """With a grace of 0 the old key is expired in the same moment."""
    old = desk.apply(add(desk.moment, "web")).key
    desk.apply(rotate(desk.moment, old.id, 0))
    assert desk.state(old.id) is KeyState.EXPIRED


def test_several_keys_may_retire_at_once(desk: Desk) -> None:
    """Rotating again while an older key is still retiring is fine; only the active one can be rotated."""
    first = desk.apply(add(desk.moment, "web")).key
    second = desk.apply(rotate(desk.moment, first.id, 600)).key
    third = desk.apply(rotate(desk.moment, second.id, 600)).key
    assert [desk.state(key.id) for key in (first, second, third)] == ["retiring", "retiring", "active"]
    with pytest.raises(WrongState, match=f"already retiring; rotate its active key {third.id}"):
        rotate(desk.moment, first.id, 600)


def test_extend_moves_the_end_of_a_retiring_key(desk: Desk) -> None:
    """By so many seconds from where it was; an active key has no end."""
    old = desk.apply(add(desk.moment, "web")).key
    with pytest.raises(WrongState, match="active and has no end"):
        extend(desk.moment, old.id, 60)
    new = desk.apply(rotate(desk.moment, old.id, 60)).key
    assert desk.apply(extend(desk.moment, old.id, 30.5)).key.expires_at == utc_text(NOON_S + 90.5)
    assert new.expires_at is None


def test_undo_swaps_the_keys_back(desk: Desk) -> None:
    """The old key is active again and the new one revoked, whichever of the two is named."""
    for named_is_old in (True, False):
        desk.keys.clear()
        old = desk.apply(add(desk.moment, "web")).key
        new = desk.apply(rotate(desk.moment, old.id, 60)).key
        undone = desk.apply(undo(desk.moment, old.id if named_is_old else new.id))
        assert undone.old is not None
        assert (undone.key.id, undone.old.id) == (old.id, new.id)
        assert (desk.state(old.id), desk.state(new.id)) == (KeyState.ACTIVE, KeyState.REVOKED)
        assert (undone.key.expires_at, undone.key.replaced_by) == (None, None)


def test_undo_ends_with_the_grace(desk: Desk) -> None:
    """A key that expired does not come back, by its own id or by that of its successor."""
    old = desk.apply(add(desk.moment, "web")).key
    new = desk.apply(rotate(desk.moment, old.id, 60)).key
    desk.now_s += 60
    for key_id in (old.id, new.id):
        with pytest.raises(WrongState, match=f"{old.id} is expired .* can't come back"):
            undo(desk.moment, key_id)


def test_undo_unwinds_several_rotations_in_their_order(desk: Desk) -> None:
    """With two retiring keys, the later rotation is undone first; out of order is refused in words."""
    first = desk.apply(add(desk.moment, "web")).key
    second = desk.apply(rotate(desk.moment, first.id, 600)).key
    third = desk.apply(rotate(desk.moment, second.id, 600)).key
    with pytest.raises(WrongState, match=f"active key {third.id} now"):
        undo(desk.moment, first.id)
    desk.apply(undo(desk.moment, third.id))
    desk.apply(undo(desk.moment, first.id))
    assert [desk.state(key.id) for key in (first, second, third)] == ["active", "revoked", "revoked"]


def test_undo_works_after_the_new_key_was_revoked(desk: Desk) -> None:
    """When the new key leaked and was revoked, the old one can still come back within its grace."""
    old = desk.apply(add(desk.moment, "web")).key
    new = desk.apply(rotate(desk.moment, old.id, 60)).key
    desk.apply(revoke(desk.moment, new.id, cut=True))
    with pytest.raises(WrongState, match="revoked"):
        undo(desk.moment, new.id)
    undone = desk.apply(undo(desk.moment, old.id))
    assert desk.state(old.id) is KeyState.ACTIVE
    assert undone.old is not None
    assert undone.old.id == new.id


def test_a_key_that_replaced_none_has_nothing_to_undo(desk: Desk) -> None:
    """Undo of a first key is refused in words."""
    first = desk.apply(add(desk.moment, "web")).key
    with pytest.raises(WrongState, match="replaced no key"):
        undo(desk.moment, first.id)


def changes_of_a_key(desk: Desk) -> list[Callable[[str], Decision]]:
    """Every action that names a key."""
    moment = desk.moment
    return [
        lambda key_id: rotate(moment, key_id, 1),
        lambda key_id: extend(moment, key_id, 1),
        lambda key_id: undo(moment, key_id),
        lambda key_id: revoke(moment, key_id, cut=False),
    ]


def test_dead_keys_stay_dead(desk: Desk) -> None:
    """No action brings back a revoked or expired key, and each refusal says since when it is dead."""
    revoked = desk.apply(add(desk.moment, "a")).key
    desk.apply(revoke(desk.moment, revoked.id, cut=False))
    expired = desk.apply(add(desk.moment, "b")).key
    desk.apply(rotate(desk.moment, expired.id, 0))
    for key, word in ((revoked, "revoked"), (expired, "expired")):
        for change in changes_of_a_key(desk):
            with pytest.raises(WrongState, match=f"{key.id}.*is {word} since 20"):
                change(key.id)


def test_an_unknown_key_is_not_found(desk: Desk) -> None:
    """Every action on an id that no key has says so, without repeating long text."""
    for change in changes_of_a_key(desk):
        with pytest.raises(NoSuchKey) as caught:
            change("n" * 5000)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("span_s", [-1, math.nan, math.inf, -math.inf, MAX_SPAN_S + 1])
def test_impossible_spans_are_refused(desk: Desk, span_s: float) -> None:
    """A negative, endless or absurd grace or extension is a mistake."""
    old = desk.apply(add(desk.moment, "web")).key
    with pytest.raises(BadChange, match="grace"):
        rotate(desk.moment, old.id, span_s)
    desk.apply(rotate(desk.moment, old.id, 60))
    with pytest.raises(BadChange, match="extension"):
        extend(desk.moment, old.id, span_s)
    with pytest.raises(BadChange, match="extension"):
        extend(desk.moment, old.id, 0)


def test_extending_again_and_again_has_an_end(desk: Desk) -> None:
    """No chain of extensions keeps a retiring key for more than a year."""
    old = desk.apply(add(desk.moment, "web")).key
    desk.apply(rotate(desk.moment, old.id, MAX_SPAN_S))
    with pytest.raises(BadChange, match="366 days"):
        extend(desk.moment, old.id, 1)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "rotate", "extend", "undo", "revoke", "wait"]),
        st.integers(0, 30),
        st.sampled_from([0, 5, 60]),
    ),
    max_size=25,
)


@given(STEPS)
def test_whatever_operators_do_the_ring_stays_sound(steps: list[tuple[str, int, int]]) -> None:
    """Any sequence of changes: one active key a client at every point, and the dead never return."""
    desk = Desk()
    dead: set[str] = set()
    for action, pick, span_s in steps:
        key_id = [*desk.keys, "none"][pick % (len(desk.keys) + 1)]
        moment = desk.moment
        try:
            if action == "add":
                desk.apply(add(moment, f"client-{pick % 2}"))
            elif action == "rotate":
                desk.apply(rotate(moment, key_id, span_s))
            elif action == "extend":
                desk.apply(extend(moment, key_id, span_s))
            elif action == "undo":
                desk.apply(undo(moment, key_id))
            elif action == "revoke":
                desk.apply(revoke(moment, key_id, cut=False))
            else:
                desk.now_s += span_s
        except RingError:
            assert desk.moment.ring == moment.ring
        now_dead = {key for key in desk.keys if desk.state(key) in (KeyState.EXPIRED, KeyState.REVOKED)}
        assert dead <= now_dead
        dead = now_dead


def test_spans_are_told_exactly() -> None:
    """Two spans that differ by a millisecond do not read the same."""
    assert [seconds(span) for span in (0, 60, 3600.5, 1e7, 0.001)] == [
        "0",
        "60",
        "3600.5",
        "10000000",
        "0.001",
    ]


def test_a_made_key_has_the_digest_of_its_secret() -> None:
    """Nothing but the digest links a key to its secret."""
    key, secret = make_key("web", utc_text(NOON_S))
    assert len(bytes.fromhex(key.digest_hex)) == 32
    assert secret[4:12] == key.id
