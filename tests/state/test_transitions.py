"""What may happen to a key, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.state.errors import BadChange, NoSuchKey, RingError, WrongState
from relayd.state.keys import digest, fingerprint
from relayd.state.records import Client, KeyInfo, KeyState, utc_text
from relayd.state.transitions import (
    MAX_SPAN_S,
    Decision,
    Rule,
    StoredRing,
    add,
    extend,
    make_key,
    revoke,
    rotate,
    seconds,
    undo,
)
from tests.state.harness import NOON_S


def key_of(decision: Decision) -> KeyInfo:
    """Return the key that a decision is about."""
    assert decision.key is not None
    return decision.key


class Ring:
    """A ring in memory, to which decisions are applied one key after the other, as on disk."""

    def __init__(self) -> None:
        self.now_s = NOON_S
        self.keys: dict[str, KeyInfo] = {}
        self.clients: dict[str, Client] = {}

    def do(self, rule: Callable[..., Decision], subject: str, **parameters: float) -> Decision:
        """Apply a rule now."""
        decision = rule(self.stored(), subject, self.now_s, **parameters)
        made = () if decision.made is None else (decision.made.info,)
        for key in (*decision.changed, *made):
            self.keys[key.id] = key
            active = [one.client for one in self.keys.values() if one.state is KeyState.ACTIVE]
            assert len(active) == len(set(active)), "two active keys for one client"
        if decision.client is not None:
            self.clients[decision.client.name] = decision.client
        assert decision.key is None or decision.key == self.keys[decision.key.id]
        return decision

    def stored(self) -> StoredRing:
        """Return the ring as it would be loaded."""
        keys = list(self.keys.values())
        clients = list(self.clients.values())
        return StoredRing(
            generation=1,
            changed_at=None,
            changed_by=None,
            change=None,
            keys=keys,
            digests={},
            clients=clients,
        )

    def add(self, client: str = "web") -> str:
        """Add a client; return the id of its key."""
        return key_of(self.do(add, client)).id

    def rotate(self, key_id: str, grace_s: float = 60) -> str:
        """Rotate; return the id of the new key."""
        return key_of(self.do(rotate, key_id, grace_s=grace_s)).id

    def states(self, *key_ids: str) -> list[str]:
        """Return the states of keys now."""
        return [self.keys[key_id].as_of(utc_text(self.now_s)).state.value for key_id in key_ids]


@pytest.fixture
def ring() -> Ring:
    """An empty ring."""
    return Ring()


def test_a_made_key_has_the_digest_of_its_secret(ring: Ring) -> None:
    """Nothing but the digest links a key to its secret, which no repr shows."""
    made = ring.do(add, "web-1.x_Y").made
    assert made is not None
    assert (made.info.state, made.info.client) == (KeyState.ACTIVE, "web-1.x_Y")
    assert made.info.created_at == utc_text(NOON_S)
    assert made.info.fingerprint == fingerprint(digest(made.secret.encode()))
    assert made.secret[4:12] == made.info.id
    assert made.secret not in repr(made)
    assert make_key("web", NOON_S).secret != made.secret


@pytest.mark.parametrize(
    "client", ["", "a b", "a" * 65, "a/b", "naïve", "a\n", "\x1b[31m", "-x", ".", "..", ".a"]
)
def test_a_client_s_name_is_short_and_plain(ring: Ring, client: str) -> None:
    """1 to 64 of letters, digits, dot, dash and underscore; neither an option nor a hidden file."""
    with pytest.raises(BadChange, match="1 to 64"):
        ring.add(client)
    assert ring.add("a" * 64)


def test_a_client_has_one_active_key(ring: Ring) -> None:
    """A second add is refused and says which key to rotate; after a revoke it is possible again."""
    first = ring.add()
    with pytest.raises(WrongState, match=f"{first}.*rotate"):
        ring.add()
    ring.do(revoke, first, cut=False)
    assert ring.states(first, ring.add()) == ["revoked", "active"]


def test_rotate_retires_the_old_key_for_the_grace(ring: Ring) -> None:
    """The new key is active at once; the old one works until the end of the grace and names its successor."""
    old = ring.add()
    rotated = ring.do(rotate, old, grace_s=60)
    assert (key_of(rotated).state, key_of(rotated).client) == (KeyState.ACTIVE, "web")
    assert rotated.old == ring.keys[old]
    assert (ring.keys[old].replaced_by, ring.keys[old].expires_at) == (
        key_of(rotated).id,
        utc_text(NOON_S + 60),
    )
    assert rotated.detail == f"grace 60 s, {old} works until {utc_text(NOON_S + 60)}"
    ring.now_s += 59.999
    assert ring.states(old) == ["retiring"]
    ring.now_s += 0.001
    assert ring.states(old) == ["expired"]


def test_a_grace_of_nothing_ends_the_old_key_at_once(ring: Ring) -> None:
    """With a grace of 0 the old key is expired in the same moment."""
    old = ring.add()
    ring.rotate(old, 0)
    assert ring.states(old) == ["expired"]


def test_a_retiring_key_is_not_rotated(ring: Ring) -> None:
    """A client may have several retiring keys; only its active one is rotated, and the refusal names it."""
    first = ring.add()
    second = ring.rotate(first, 600)
    third = ring.rotate(second, 600)
    assert ring.states(first, second, third) == ["retiring", "retiring", "active"]
    with pytest.raises(WrongState, match=f"already retiring; rotate its active key {third}"):
        ring.rotate(first)
    ring.do(revoke, third, cut=False)
    with pytest.raises(WrongState, match="already retiring; add a key for it"):
        ring.rotate(first)


def test_extend_moves_the_end_of_a_retiring_key(ring: Ring) -> None:
    """By so many seconds from where it was; an active key has no end."""
    old = ring.add()
    with pytest.raises(WrongState, match="active and has no end"):
        ring.do(extend, old, by_s=60)
    new = ring.rotate(old)
    assert key_of(ring.do(extend, old, by_s=30.5)).expires_at == utc_text(NOON_S + 90.5)
    assert ring.keys[new].expires_at is None


def test_extending_again_and_again_has_an_end(ring: Ring) -> None:
    """No chain of extensions keeps a retiring key for more than a year."""
    old = ring.add()
    ring.rotate(old, MAX_SPAN_S - 1)
    ring.do(extend, old, by_s=1)
    with pytest.raises(BadChange, match="366 days"):
        ring.do(extend, old, by_s=1)


@pytest.mark.parametrize("named", ["old", "new"])
def test_undo_swaps_the_keys_back(ring: Ring, named: str) -> None:
    """The old key is active again and the new one revoked, whichever of the two is named."""
    old = ring.add()
    new = ring.rotate(old)
    undone = ring.do(undo, old if named == "old" else new)
    assert (key_of(undone).id, undone.old and undone.old.id) == (old, new)
    assert ring.states(old, new) == ["active", "revoked"]
    assert (key_of(undone).expires_at, key_of(undone).replaced_by) == (None, None)


def test_undo_ends_with_the_grace(ring: Ring) -> None:
    """A key that expired does not come back, by its own id or by that of its successor."""
    old = ring.add()
    new = ring.rotate(old)
    ring.now_s += 60
    for key_id in (old, new):
        with pytest.raises(WrongState, match=f"{old} is expired since 20.* can't come back"):
            ring.do(undo, key_id)


def test_undo_unwinds_several_rotations_in_their_order(ring: Ring) -> None:
    """With two retiring keys, the later rotation is undone first; out of order is refused in words."""
    first = ring.add()
    second = ring.rotate(first, 600)
    third = ring.rotate(second, 600)
    with pytest.raises(WrongState, match=f"active key {third} now"):
        ring.do(undo, first)
    ring.do(undo, third)
    ring.do(undo, first)
    assert ring.states(first, second, third) == ["active", "revoked", "revoked"]


def test_undo_works_after_the_new_key_was_revoked(ring: Ring) -> None:
    """When the new key leaked and was revoked, the old one can still come back within its grace."""
    old = ring.add()
    new = ring.rotate(old)
    ring.do(revoke, new, cut=True)
    with pytest.raises(WrongState, match="revoked"):
        ring.do(undo, new)
    undone = ring.do(undo, old)
    assert ring.states(old) == ["active"]
    assert undone.old == ring.keys[new]


def test_a_key_that_replaced_none_has_nothing_to_undo(ring: Ring) -> None:
    """Undo of a first key is refused in words."""
    first = ring.add()
    with pytest.raises(WrongState, match="did not replace a key"):
        ring.do(undo, first)


CHANGES: list[tuple[Callable[..., Decision], dict[str, float]]] = [
    (rotate, {"grace_s": 1}),
    (extend, {"by_s": 1}),
    (undo, {}),
    (revoke, {"cut": False}),
]


@pytest.mark.parametrize(("rule", "parameters"), CHANGES)
def test_dead_and_unknown_keys_are_refused(ring: Ring, rule: Rule, parameters: dict[str, float]) -> None:
    """No action brings back a revoked or expired key; each refusal says since when it is dead, briefly."""
    revoked = ring.add("a")
    ring.do(revoke, revoked, cut=False)
    expired = ring.add("b")
    ring.rotate(expired, 0)
    for key_id, state in ((revoked, "revoked"), (expired, "expired")):
        with pytest.raises(WrongState, match=f"{key_id}.*is {state} since 20"):
            ring.do(rule, key_id, **parameters)
    with pytest.raises(NoSuchKey) as caught:
        ring.do(rule, "n" * 5000, **parameters)
    assert f"'{'n' * 40}'" in str(caught.value)


@pytest.mark.parametrize("span_s", [-1, math.nan, math.inf, -math.inf, MAX_SPAN_S + 1])
def test_impossible_spans_are_refused(ring: Ring, span_s: float) -> None:
    """A negative, endless or absurd grace or extension is a mistake; so is an extension by nothing."""
    old = ring.add()
    with pytest.raises(BadChange, match="grace"):
        ring.rotate(old, span_s)
    ring.rotate(old)
    for by_s in (span_s, 0):
        with pytest.raises(BadChange, match="extension"):
            ring.do(extend, old, by_s=by_s)


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
    ring = Ring()
    dead: set[str] = set()
    for action, pick, span_s in steps:
        key_id = [*ring.keys, "none"][pick % (len(ring.keys) + 1)]
        before = dict(ring.keys)
        try:
            if action == "add":
                ring.do(add, f"client-{pick % 2}")
            elif action == "rotate":
                ring.do(rotate, key_id, grace_s=span_s)
            elif action == "extend":
                ring.do(extend, key_id, by_s=span_s)
            elif action == "undo":
                ring.do(undo, key_id)
            elif action == "revoke":
                ring.do(revoke, key_id, cut=False)
            else:
                ring.now_s += span_s
        except RingError:
            assert ring.keys == before
        now_dead = {key for key in ring.keys if ring.states(key)[0] in ("expired", "revoked")}
        assert dead <= now_dead
        dead = now_dead


def test_spans_are_told_exactly() -> None:
    """Two spans that differ by a millisecond do not read the same."""
    spans = {0: "0", 60: "60", 3600.5: "3600.5", 1e7: "10000000", 0.001: "0.001"}
    assert {span: seconds(span) for span in spans} == spans
