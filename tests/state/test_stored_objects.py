"""Whose a stored object of the provider is: known at once, and after a restart."""

from __future__ import annotations

from pathlib import Path

from relayd.state.stored_objects import Owner
from tests.state.harness import Clock, Disk, opened, wait_until

_WEB = Owner("web", "first", "responses")
_DAY_S = 86_400


def test_an_owner_is_known_at_once_and_after_a_restart(tmp_path: Path) -> None:
    """From memory before it is on disk; the first one counts."""
    with opened(tmp_path) as state:
        state.stored_objects.add("resp_1", _WEB)
        assert state.stored_objects.recent("resp_1") == _WEB
        assert state.stored_objects.recent("resp_2") is None
        state.stored_objects.add("conv_1", Owner("phone", None, "conversations"))
    with opened(tmp_path) as state:
        assert state.stored_objects.recent("resp_1") is None
        assert state.reader.object_owner("resp_1") == _WEB
        assert state.reader.object_owner("conv_1") == Owner("phone", None, "conversations")
        assert state.reader.object_owner("resp_2") is None
        assert state.reader.object_owner("\ud800") is None
        state.stored_objects.add("resp_1", Owner("thief", None))
    with opened(tmp_path) as state:
        assert state.reader.object_owner("resp_1") == _WEB


def test_many_owners_stay_known_while_the_disk_refuses(tmp_path: Path) -> None:
    """Those that are not on disk yet leave memory last."""
    disk = Disk()
    with opened(tmp_path, connect=disk.connect) as state:
        disk.full()
        for number in range(3000):
            state.stored_objects.add(f"resp_{number}", _WEB)
        assert state.stored_objects.recent("resp_0") == _WEB
        disk.mended()
        wait_until(lambda: state.reader.object_owner("resp_2999") == _WEB)
        wait_until(lambda: state.stored_objects.recent("resp_0") is None)
        assert state.stored_objects.recent("resp_2999") == _WEB
        assert state.reader.object_owner("resp_0") == _WEB


def test_what_the_provider_no_longer_has_is_forgotten(tmp_path: Path) -> None:
    """A response after two months; a conversation never."""
    clock = Clock()
    with opened(tmp_path, clock=clock) as state:
        state.stored_objects.add("resp_1", _WEB)
        state.stored_objects.add("conv_1", Owner("web", None, "conversations"))
    clock.now_s += 59 * _DAY_S
    with opened(tmp_path, clock=clock) as state:
        state.stored_objects.add("resp_2", _WEB)
    with opened(tmp_path, clock=clock) as state:
        assert state.reader.object_owner("resp_1") == _WEB
    clock.now_s += 2 * _DAY_S
    with opened(tmp_path, clock=clock) as state:
        wait_until(lambda: state.reader.object_owner("resp_1") is None)
        assert state.reader.object_owner("resp_2") == _WEB
        assert state.reader.object_owner("conv_1") is not None
