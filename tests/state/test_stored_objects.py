"""Whose a stored object of the provider is: known at once, and after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.state.records import utc_text
from relayd.state.stored_objects import Owner
from tests.state.harness import ALICE, NOON_S, Clock, Disk, opened
from tests.wire import wait_until

pytestmark = pytest.mark.usefixtures("engine_kind")

_WEB = Owner("web", "first", "responses", utc_text(NOON_S))
_PHONE = Owner("phone", None, "conversations", utc_text(NOON_S))
_THIEF = Owner("thief", None, "responses", utc_text(NOON_S))
_DAY_S = 86_400


def test_an_owner_is_known_at_once_and_after_a_restart(tmp_path: Path) -> None:
    """From memory before it is on disk; the first one counts."""
    clock = Clock()
    with opened(tmp_path, clock=clock) as state:
        state.stored_objects.add("resp_1", _WEB)
        state.stored_objects.add("resp_1", _THIEF)
        assert state.stored_objects.recent("resp_1") == _WEB
        assert state.stored_objects.recent("resp_2") is None
        state.stored_objects.add("conv_1", _PHONE)
    with opened(tmp_path, clock=clock) as state:
        assert state.stored_objects.recent("resp_1") is None
        assert state.reader.object_owner("resp_1") == _WEB
        assert state.reader.object_owner("conv_1") == _PHONE
        assert state.reader.object_owner("resp_2") is None
        assert state.reader.object_owner("\ud800") is None
        state.stored_objects.add("resp_1", _THIEF)
        # Memory keeps no other owner than the disk.
        wait_until(lambda: state.stored_objects.recent("resp_1") is None)
        assert state.reader.object_owner("resp_1") == _WEB


async def test_a_new_client_of_the_same_name_owns_nothing_of_the_removed_one(tmp_path: Path) -> None:
    """Not from memory, not from disk, and not what a stream of the removed client still makes."""
    clock = Clock()
    with opened(tmp_path, clock=clock) as state:
        old = (await state.ring.add_client("web", {}, caller=ALICE)).client
        assert old is not None
        assert _WEB.is_of(old)
        assert not _PHONE.is_of(old)
        state.stored_objects.add("resp_1", _WEB)
        state.stored_objects.add("conv_1", _PHONE)
        wait_until(lambda: state.reader.object_owner("conv_1") is not None)
        clock.now_s += 1
        await state.ring.remove_client("web", cut=False, caller=ALICE)
        assert state.reader.object_owner("resp_1") is None
        assert state.reader.object_owner("conv_1") == _PHONE
        state.stored_objects.add("resp_2", _WEB)
        new = (await state.ring.add_client("web", {}, caller=ALICE)).client
        assert new is not None
        for object_id in ("resp_1", "resp_2"):
            owner = state.stored_objects.recent(object_id)
            assert owner is not None
            assert not owner.is_of(new)


def test_many_owners_stay_known_while_the_disk_refuses(tmp_path: Path) -> None:
    """Those that are not on disk yet leave memory last."""
    disk = Disk()
    with opened(tmp_path, clock=Clock(), disk=disk) as state:
        disk.full()
        for number in range(3000):
            state.stored_objects.add(f"resp_{number}", _WEB)
        assert state.stored_objects.recent("resp_0") == _WEB
        disk.mended()
        wait_until(lambda: state.reader.object_owner("resp_2999") == _WEB)
        wait_until(lambda: state.stored_objects.recent("resp_0") is None)
        assert state.stored_objects.recent("resp_2999") == _WEB
        assert state.reader.object_owner("resp_0") == _WEB


def test_an_id_that_no_index_could_hold_has_no_owner(tmp_path: Path) -> None:
    """It would keep all behind it from being stored."""
    long_id = "resp_" + "".join(chr(33 + (n * n) % 90) for n in range(6000))
    with opened(tmp_path, clock=Clock()) as state:
        state.stored_objects.add(long_id, _WEB)
        state.stored_objects.add("resp_1", _WEB)
        wait_until(lambda: state.reader.object_owner("resp_1") == _WEB)
        assert state.stored_objects.recent(long_id) is None
        assert state.reader.object_owner(long_id) is None


def test_what_the_provider_no_longer_has_is_forgotten(tmp_path: Path) -> None:
    """A response after two months; a conversation never."""
    clock = Clock()
    with opened(tmp_path, clock=clock) as state:
        state.stored_objects.add("resp_1", _WEB)
        state.stored_objects.add("conv_1", _PHONE)
    clock.now_s += 59 * _DAY_S
    with opened(tmp_path, clock=clock) as state:
        later = _WEB._replace(created_at=utc_text(clock.now_s))
        state.stored_objects.add("resp_2", later)
    with opened(tmp_path, clock=clock) as state:
        assert state.reader.object_owner("resp_1") == _WEB
    clock.now_s += 2 * _DAY_S
    with opened(tmp_path, clock=clock) as state:
        wait_until(lambda: state.reader.object_owner("resp_1") is None)
        assert state.reader.object_owner("resp_2") == later
        assert state.reader.object_owner("conv_1") is not None
