"""What the command line says of the instances of a relay."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from relayd.admin.schema import InstanceRing
from relayd.commands.keys import have_it
from tests.admin.harness import AdminHarness, admin_apis, be_patient
from tests.commands.harness import relayd

_HOST = socket.gethostname()


def _ring(name: str, *, has_it: bool) -> InstanceRing:
    return InstanceRing(name=name, boot_id="boot", generation=7, has_it=has_it)


def test_a_change_names_the_instances_that_do_not_have_it_yet() -> None:
    """One alone is not worth a word."""
    assert have_it([_ring("a", has_it=True)]) == []
    assert have_it([_ring("a", has_it=True), _ring("b", has_it=True)]) == ["All 2 instances have it."]
    assert have_it([_ring("a", has_it=True), _ring("b", has_it=False), _ring("c", has_it=False)]) == [
        "1 of 3 instances have it; not yet: b, c. `relayd status` shows when all do."
    ]


async def test_commands_tell_of_all_instances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status counts them, a change says who has it, and a drain may name one."""
    be_patient(monkeypatch)
    async with admin_apis(tmp_path, 2) as [one, two]:
        status = await relayd(one.socket, "status")
        assert f"instances    2 of 2 have the newest keys; this is the answer of {_HOST}-1" in status.lines
        rotated = await relayd(one.socket, "keys", "rotate", "default")
        assert (rotated.status, len(rotated.lines)) == (0, 1)
        assert "All 2 instances have it." in rotated.err
        undone = await relayd(two.socket, "keys", "undo", "default")
        assert undone.out.endswith("All 2 instances have it.\n")
        added = json.loads((await relayd(two.socket, "clients", "add", "web", "--json")).out)
        assert [instance["has_it"] for instance in added["instances"]] == [True, True]
        drained = await relayd(one.socket, "drain", "--instance", f"{_HOST}-2")
        # Workers of one machine stop together.
        assert drained.out == (
            f"Draining all 2 workers of {_HOST} ({_HOST}-1, {_HOST}-2): "
            "their open streams may take 30 s more, then they stop.\n"
        )
        assert (one.stopped, two.stopped) == ([], [True])
        unknown = await relayd(one.socket, "drain", "--instance", "elsewhere")
        assert (unknown.status, unknown.out) == (1, "")


async def _never(_argument: object) -> None:
    await asyncio.Event().wait()


def _fall_silent(api: AdminHarness, kind: str) -> None:
    api.state.commands.handle(kind, _never)


async def test_an_instance_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have done what was asked, and the exit status says that it is not done everywhere."""
    be_patient(monkeypatch)
    monkeypatch.setattr("relayd.admin.all_instances.ANSWER_WITHIN_S", 0.1)
    async with admin_apis(tmp_path, 2) as [one, two]:
        _fall_silent(two, "intake")
        paused = await relayd(one.socket, "pause")
        assert paused.status == 1
        assert paused.out.startswith("Paused 1 of 2 instances: ")
        assert f"No answer came from {_HOST}-2 within a second" in paused.err
        assert (one.accepting.refusal is None, two.accepting.refusal is None) == (False, True)
        _fall_silent(two, "reload")
        reloaded = await relayd(one.socket, "reload")
        assert (reloaded.status, reloaded.out) == (1, "The configuration has not changed.\n")
        assert reloaded.err == f"relayd: Not reloaded on {_HOST}-2: no answer yet\n"
        _fall_silent(two, "cancel")
        cancelled = await relayd(one.socket, "cancel", "some-id")
        assert cancelled.status == 1
        assert f"No answer came from {_HOST}-2" in cancelled.err
        _fall_silent(two, "figures")
        status = await relayd(one.socket, "status")
        assert f"PROBLEM      No answer within a second from {_HOST}-2" in status.lines
