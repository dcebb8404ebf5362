"""The first key of an empty ring."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from relayd.files import DATABASE
from relayd.state.directory import LOCK_NAME
from relayd.state.errors import BadChange, RingUnavailable
from relayd.state.key_operations import InitialKeyOutcome
from relayd.state.keys import new_key
from relayd.state.records import KeyState
from tests.state.harness import ALICE, Clock, Disk, opened

pytestmark = pytest.mark.usefixtures("engine_kind")

GIVEN = "a-key-of-my-own-0123456789"


def test_without_a_key_a_first_one_is_made_and_told_once(tmp_path: Path) -> None:
    """The secret is in the result, works, and is told at the first start only."""
    with opened(tmp_path / "state") as state:
        first = state.ring.ensure_initial_key(None)
        assert first.outcome is InitialKeyOutcome.MADE
        assert first.secret is not None
        assert first.secret not in repr(first)
        admitted = state.ring.verify(first.secret.encode())
        assert admitted is not None
        assert admitted.client == "default"
        again = state.ring.ensure_initial_key(None)
        assert (again.outcome, again.secret) == (InitialKeyOutcome.KEPT, None)
    with opened(tmp_path / "state", boot_id="boot-2") as state:
        assert state.ring.ensure_initial_key(None).outcome is InitialKeyOutcome.KEPT
        assert state.ring.verify(first.secret.encode()) == admitted


def test_a_given_key_fills_an_empty_ring(tmp_path: Path) -> None:
    """Any form of at least 16 characters does; the audit has the act, without the key."""
    with opened(tmp_path / "state") as state:
        initial = state.ring.ensure_initial_key(GIVEN)
        assert (initial.outcome, initial.secret) == (InitialKeyOutcome.STORED, None)
        assert state.ring.verify(GIVEN.encode()) is not None
        assert state.ring.generation == 1
        (entry,) = state.reader.audit().entries
        assert (entry.action, entry.result, entry.client, entry.generation) == ("fill", "done", "default", 1)
        assert (entry.uid, entry.pid) == (os.getuid(), os.getpid())
        assert state.ring.ensure_initial_key(GIVEN).outcome is InitialKeyOutcome.KEPT
    for file in (tmp_path / "state").iterdir():
        assert GIVEN.encode() not in file.read_bytes()


@pytest.mark.parametrize("given", ["correct horse battery", "x" * 16, "!" * 4096], ids=len)
def test_a_given_key_may_have_any_form(tmp_path: Path, given: str) -> None:
    """A sentence too: whatever the configuration takes for a key."""
    with opened(tmp_path / "state") as state:
        initial = state.ring.ensure_initial_key(given)
        assert initial.key is not None
        assert state.ring.verify(given.encode()) is not None


def test_a_given_key_in_our_form_keeps_its_id(tmp_path: Path) -> None:
    """A key that relayd made elsewhere is known by the id that is written in it."""
    key_id, secret = new_key()
    with opened(tmp_path / "state") as state:
        initial = state.ring.ensure_initial_key(secret)
        assert initial.key is not None
        assert initial.key.id == key_id


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("short", "5 characters; at least 16"),
        ("", "0 characters"),
        ("nönäscii-and-long-enough", "printable ASCII"),
        ("has a\ttab in its middle", "printable ASCII"),
        ("has a space at its end ", "at either end"),
        ("bearer and-long-enough", '"Bearer"'),
        pytest.param("x" * 4097, "at most 4096", id="long"),
        pytest.param(new_key()[1][:-1], "checksum is wrong", id="cut"),
    ],
)
def test_a_key_that_can_t_work_is_refused_in_words(tmp_path: Path, given: str, says: str) -> None:
    """Too short, not sendable, or mistyped: the start stops, the text does not repeat the key."""
    with opened(tmp_path / "state") as state:
        with pytest.raises(BadChange, match=says) as caught:
            state.ring.ensure_initial_key(given)
        assert not given or given not in str(caught.value)
        assert state.ring.keys() == []
        assert state.ring.generation == 0


def test_a_differing_key_is_reported_and_ignored(tmp_path: Path) -> None:
    """The stored ring wins over the environment."""
    with opened(tmp_path / "state") as state:
        state.ring.ensure_initial_key(GIVEN)
        result = state.ring.ensure_initial_key("another-key-0123456789")
        assert result.outcome is InitialKeyOutcome.IGNORED
        assert "the stored keys take precedence" in (result.note or "")
        assert state.ring.verify(b"another-key-0123456789") is None
        assert state.ring.generation == 1


async def test_a_rotated_key_stays_dead_at_the_next_start(tmp_path: Path) -> None:
    """The old key in the environment is recognised: retiring, then expired, then never alive again."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        initial = state.ring.ensure_initial_key(GIVEN)
        assert initial.key is not None
        clock.now_s += 1
        await state.ring.rotate(initial.key.id, grace_s=60, caller=ALICE)
        retiring = state.ring.ensure_initial_key(GIVEN)
        assert retiring.outcome is InitialKeyOutcome.KEPT
        assert "retiring and works until" in (retiring.note or "")
    clock.now_s += 61
    with opened(tmp_path / "state", boot_id="boot-2", clock=clock) as state:
        result = state.ring.ensure_initial_key(GIVEN)
        assert result.outcome is InitialKeyOutcome.IGNORED
        assert "expired since" in (result.note or "")
        assert "no longer works" in (result.note or "")
        assert state.ring.verify(GIVEN.encode()) is None
        old, new = state.ring.keys()
        assert (old.state, new.state) == (KeyState.EXPIRED, KeyState.ACTIVE)


async def test_a_ring_of_dead_keys_is_not_empty(tmp_path: Path) -> None:
    """After the last key was revoked, a restart with the old key in the environment opens nothing."""
    with opened(tmp_path / "state") as state:
        initial = state.ring.ensure_initial_key(GIVEN)
        assert initial.key is not None
        await state.ring.revoke(initial.key.id, cut=False, caller=ALICE)
        result = state.ring.ensure_initial_key(GIVEN)
        assert result.outcome is InitialKeyOutcome.IGNORED
        assert "revoked since" in (result.note or "")
        assert state.ring.verify(GIVEN.encode()) is None


@pytest.mark.sqlite
@pytest.mark.parametrize("loss", ["the file", "the rows"])
async def test_a_ring_that_was_filled_is_never_filled_again(tmp_path: Path, loss: str) -> None:
    """Keys that are lost do not come back from the environment; the start says how to get a new one."""
    with opened(tmp_path) as state:
        state.ring.ensure_initial_key(GIVEN)
    if loss == "the file":
        (tmp_path / DATABASE).unlink()
    else:
        (tmp_path / LOCK_NAME).unlink()
        with closing(sqlite3.connect(tmp_path / DATABASE)) as connection, connection:
            connection.execute("DELETE FROM keys")
    for boot_id, given in (("boot-2", GIVEN), ("boot-3", None)):
        with opened(tmp_path, boot_id=boot_id) as state:
            initial = state.ring.ensure_initial_key(given)
            assert (initial.outcome, initial.secret) == (InitialKeyOutcome.LOST, None)
            assert "relayd keys add default" in (initial.note or "")
            assert state.ring.keys() == []
            assert state.ring.verify(GIVEN.encode()) is None
    with opened(tmp_path, boot_id="boot-4") as state:
        added = await state.ring.add("default", caller=ALICE)
        assert state.ring.ensure_initial_key(None).outcome is InitialKeyOutcome.KEPT
        assert added.secret is not None
        assert state.ring.verify(added.secret.encode()) is not None


def test_a_first_key_that_was_never_used_may_be_lost(tmp_path: Path) -> None:
    """A later start is told so, unless it brings the key, or the key was used meanwhile."""
    with opened(tmp_path) as state:
        key = state.ring.ensure_initial_key(GIVEN).key
        assert key is not None
        assert state.ring.ensure_initial_key(None).unused == key
        assert state.ring.ensure_initial_key("another-key-0123456789").unused == key
        assert state.ring.ensure_initial_key(GIVEN).unused is None
        state.ring.record_use(key.id, "192.0.2.1")
    with opened(tmp_path, boot_id="boot-2") as state:
        assert state.ring.ensure_initial_key(None).unused is None


def test_a_full_disk_makes_no_key(tmp_path: Path) -> None:
    """A first key that could not be stored is not told to anyone."""
    disk = Disk()
    with opened(tmp_path / "state", disk=disk) as state:
        disk.full(beginning=("INSERT INTO keys",))
        with pytest.raises(RingUnavailable, match="could not be written to disk"):
            state.ring.ensure_initial_key(None)
        disk.mended()
        assert state.ring.keys() == []
        assert state.ring.ensure_initial_key(None).outcome is InitialKeyOutcome.MADE
