"""Killed or refused by the disk at every step of a rotation: the ring is the old or the new one, whole."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from relayd.state.records import Gap, KeyState
from tests.state.harness import opened
from tests.support.programs import reason

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60


@dataclass(frozen=True)
class Template:
    """A state directory with one key, to be copied for each run."""

    state_dir: Path
    key: str
    key_id: str

    def copy(self, name: str) -> Path:
        """A fresh copy, closed to others like the original."""
        target = self.state_dir.with_name(name)
        target.mkdir(mode=0o700)
        shutil.copy(self.state_dir / "relayd.db", target / "relayd.db")
        return target


@pytest.fixture
def template(tmp_path: Path) -> Template:
    """One client, one key, a clean end."""
    with opened(tmp_path / "template", boot_id="boot-0") as state:
        initial = state.ring.ensure_initial_key(None)
        assert initial.secret is not None
        assert initial.key is not None
        return Template(tmp_path / "template", initial.secret, initial.key.id)


@functools.cache
def why_no_strace() -> str | None:
    """Why system calls can't be broken here, or None."""
    if missing := reason("strace"):
        return missing
    probe = subprocess.run(
        ["strace", "-o", "/dev/null", "true"], capture_output=True, timeout=TIMEOUT_S, check=False
    )
    return None if probe.returncode == 0 else "ptrace is not permitted here"


def rotate_under(
    state_dir: Path, key: str, prefix: Sequence[str] = (), *, times: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run a child that rotates; `prefix` goes before its command."""
    return subprocess.run(
        [
            *prefix,
            sys.executable,
            "-m",
            "tests.state.rotation_child",
            str(state_dir),
            state_dir.name,
            str(times),
        ],
        input=f"{key}\n",
        text=True,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def strace(state_dir: Path, *options: str) -> list[str]:
    """Follow the calls that write the WAL, where all of a rotation goes."""
    log = state_dir.with_suffix(".strace")
    wal = state_dir / "relayd.db-wal"
    follow = ("-f", "-e", "trace=pwrite64,fdatasync", "-P", str(wal))
    return ["strace", "-o", str(log), *follow, *options]


@dataclass(frozen=True)
class Steps:
    """Which of the process's writes and synchronisations of the WAL belong to the rotation."""

    writes: range
    syncs: range

    @classmethod
    def of(cls, template: Template) -> Steps:
        """Watch one rotation that nothing disturbs: the WAL's header is synchronised, then what is in it."""
        state_dir = template.copy("watched")
        done = rotate_under(state_dir, template.key, strace(state_dir))
        assert re.match(r"ready\nack 2", done.stdout), done.stderr
        trace = state_dir.with_suffix(".strace").read_text()
        _, synchronised, *_ = trace.split("fdatasync(")
        return cls(range(1, 2 + synchronised.count("pwrite64(")), range(1, 3))


def check_ring(state_dir: Path, template: Template, acknowledged: Sequence[tuple[int, str]]) -> int:
    """Start again and hold the ring against what was acknowledged; its generation."""
    with opened(state_dir, boot_id="boot-after") as state:
        generation = state.ring.generation
        keys = state.ring.keys()
        assert sorted(str(key.state) for key in keys) == ["active"] + ["retiring"] * (generation - 1)
        assert state.ring.verify(template.key.encode()) is not None
        assert generation >= max((given for given, _ in acknowledged), default=1)
        for given, key in acknowledged:
            owner = state.ring.verify(key.encode())
            assert owner is not None
            if given == generation:
                assert [each.id for each in keys if each.state is KeyState.ACTIVE] == [owner.key_id]
        done = [
            entry
            for entry in state.reader.audit().entries
            if (entry.action, entry.result) == ("rotate", "done")
        ]
        assert [entry.generation for entry in done] == list(range(generation, 1, -1))
        events = [event for event in state.reader.events(0) if not isinstance(event, Gap)]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        return generation


def acknowledged(output: str) -> list[tuple[int, str]]:
    """The generations and keys that the child had answers for."""
    return [(int(given), key) for given, key in re.findall(r"^ack (\d+) (\S+)$", output, re.MULTILINE)]


def test_killed_at_every_write_of_a_rotation(template: Template) -> None:
    """Every restart finds the old or the new ring whole, and the new one if it was acknowledged."""
    if (reason := why_no_strace()) is not None:
        pytest.skip(reason)
    steps = Steps.of(template)
    kills = [("pwrite64", at) for at in steps.writes]
    # One later, too: the commit is done, and the checkpoint is cut off.
    kills += [("fdatasync", at) for at in (*steps.syncs, steps.syncs.stop)]

    def run(kill: tuple[str, int]) -> tuple[int, bool]:
        call, at = kill
        state_dir = template.copy(f"kill-{call}-{at}")
        done = rotate_under(
            state_dir, template.key, strace(state_dir, "-e", f"inject={call}:signal=KILL:when={at}")
        )
        answers = acknowledged(done.stdout)
        assert "ready" in done.stdout, done.stderr
        assert done.returncode != 0, "it was not killed"
        return check_ring(state_dir, template, answers), bool(answers)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, kills))
    assert {1, 2} == {generation for generation, _ in found}, found
    assert len(kills) > 8


def test_refused_by_the_disk_at_every_write_of_a_rotation(template: Template) -> None:
    """A full or failing disk at each call: an error, the old key works, and so does the next try."""
    if (reason := why_no_strace()) is not None:
        pytest.skip(reason)
    steps = Steps.of(template)
    faults = [("pwrite64", "ENOSPC", at) for at in steps.writes]
    faults += [("pwrite64", "EIO", steps.writes.stop - 1)]
    faults += [("fdatasync", "EIO", at) for at in steps.syncs]

    def run(fault: tuple[str, str, int]) -> None:
        call, error, at = fault
        state_dir = template.copy(f"error-{call}-{error}-{at}")
        prefix = strace(state_dir, "-e", f"inject={call}:error={error}:when={at}")
        done = rotate_under(state_dir, template.key, prefix, times=2)
        lines = [line.split(" ")[0] for line in done.stdout.splitlines()]
        assert lines == ["ready", "refused", "ack", "old"], (fault, done.stdout, done.stderr)
        assert done.returncode == 0
        assert check_ring(state_dir, template, acknowledged(done.stdout)) == 2

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, faults))


def test_killed_at_any_time(template: Template) -> None:
    """Without tracing: killed while it rotates again and again, nothing acknowledged is ever missing."""
    for turn in range(3):
        state_dir = template.copy(f"any-{turn}")
        with subprocess.Popen(
            [sys.executable, "-m", "tests.state.rotation_child", str(state_dir), state_dir.name, "100000"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(f"{template.key}\n")
            child.stdin.flush()
            head = "".join(child.stdout.readline() for _ in range(2 + 3 * turn))
            child.kill()
            answers = acknowledged(head + child.stdout.read())
        assert len(answers) >= 1 + 3 * turn
        generation = check_ring(state_dir, template, answers)
        assert generation - len(answers) in (1, 2)
