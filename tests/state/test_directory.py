"""The state directory: permissions, what may stand in it, and the lock."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from pathlib import Path

import pytest

from relayd.files import DATABASE
from relayd.state.backup import back_up
from relayd.state.directory import LOCK_NAME, StateDirectory, refuse_network_file_system
from relayd.state.errors import StateBusy, StateDamaged, StateReplaced, StateUnreachable
from relayd.state.sqlite import wal_path
from tests.state.harness import ALICE, make_database, opened, opened_database


def modes(state_dir: Path) -> dict[str, int]:
    """Return the permission bits of every file in a directory."""
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in state_dir.iterdir()}


def test_nobody_else_can_read_the_state(tmp_path: Path) -> None:
    """Whatever the umask says, the directory is 0700 and every file in it 0600, also where they were not."""
    old = os.umask(0o000)
    try:
        path = make_database(tmp_path / "deep" / "state")
        path.chmod(0o644)
        wal_path(path).touch(mode=0o666)
        assert make_database(tmp_path / "deep" / "state") == path
        assert modes(path.parent) == dict.fromkeys([LOCK_NAME, DATABASE, f"{DATABASE}-wal"], 0o600)
        wal_path(path).unlink()
        with opened_database(path.parent) as database, database.transaction(durable=True) as transaction:
            transaction.next_seq()
            assert modes(path.parent) == dict.fromkeys(
                [LOCK_NAME, DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"], 0o600
            )
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(old)


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Whoever can write into the directory can swap the key ring; the error names the command that helps."""
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    state_dir.chmod(0o777)
    with pytest.raises(StateUnreachable, match=f"chmod 700 {state_dir}"):
        make_database(state_dir)


def test_a_directory_of_all_users_is_refused_without_advice_to_close_it(tmp_path: Path) -> None:
    """`chmod 700 /tmp` would take it from everybody else."""
    tmp_path.chmod(0o1777)
    with pytest.raises(StateUnreachable, match=f"such as {tmp_path}/relayd") as refused:
        make_database(tmp_path)
    assert "chmod" not in str(refused.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """Its owner could replace the keys in it, whatever its mode."""
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(StateUnreachable, match=r"belongs to another user \(uid 65534\)"):
        make_database(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_path_that_can_t_be_a_directory_is_refused(tmp_path: Path) -> None:
    """A file in the way is named, not overwritten."""
    (tmp_path / "state").write_text("mine")
    with pytest.raises(StateUnreachable, match=str(tmp_path / "state")):
        make_database(tmp_path / "state")
    assert (tmp_path / "state").read_text() == "mine"


def test_one_daemon_at_a_time(tmp_path: Path) -> None:
    """A second one is refused in words and changes nothing; once the first has ended it may start."""
    with opened(tmp_path / "state") as state:
        secret = state.ring.ensure_initial_key(None).secret
        with pytest.raises(StateBusy, match=f"Another relayd uses .* {tmp_path}/state"):
            StateDirectory(tmp_path / "state")
        assert state.close()
        with opened(tmp_path / "state", boot_id="boot-2") as second:
            assert secret is not None
            assert second.ring.verify(secret.encode()) is not None


def test_a_start_that_fails_gives_the_lock_back(tmp_path: Path) -> None:
    """After a start that a damaged file ended, the next one finds the directory free."""
    path = make_database(tmp_path / "state")
    path.write_bytes(b"not a database " * 1000)
    with pytest.raises(StateDamaged), opened(tmp_path / "state"):
        pytest.fail("it started")
    path.unlink()
    with opened(tmp_path / "state"):
        pass


@pytest.mark.parametrize("kind", ["a directory", "a pipe", "a dangling link"])
@pytest.mark.parametrize("name", [LOCK_NAME, DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"])
def test_what_is_no_file_is_named(tmp_path: Path, name: str, kind: str) -> None:
    """The sentence has the path; nothing is removed, and the start does not wait."""
    path = tmp_path / name
    if kind == "a directory":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "nowhere")
    tmp_path.chmod(0o700)
    with pytest.raises(StateUnreachable, match=f"{path} is not a regular file: move it away"):
        StateDirectory(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("left_bytes", [0, 1, 511])
def test_an_empty_file_that_had_keys_is_damage(tmp_path: Path, left_bytes: int) -> None:
    """Before the first key an empty file is what a first start left that was killed; later it is a loss."""
    path = make_database(tmp_path)
    assert path.stat().st_size == 0
    with opened(tmp_path) as state:
        state.ring.ensure_initial_key(None)
    os.truncate(path, left_bytes)
    with pytest.raises(StateDamaged, match=f"{path} was cut off, and all its keys are lost"):
        StateDirectory(tmp_path)


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """Return a state directory with two keys, as a daemon leaves it that was killed; and `b.db`, with one."""
    return asyncio.run(crash(tmp_path))


async def crash(tmp_path: Path) -> Path:
    """Make the directory."""
    with opened(tmp_path / "state") as state:
        await state.ring.add("web", caller=ALICE)
        back_up(state.path, tmp_path / "b.db")
        await state.ring.add("later", caller=ALICE)
        # Not by this process, which would lose SQLite's locks on the files.
        subprocess.run(["cp", "-a", tmp_path / "state", tmp_path / "crashed"], check=True, timeout=60)  # noqa: ASYNC221 - nothing else runs
    return tmp_path / "crashed"


def clients(state_dir: Path) -> list[str]:
    """Return whose keys a start finds."""
    with opened(state_dir, boot_id="boot-2") as state:
        return sorted(key.client for key in state.reader.keys()[1])


def test_after_a_crash_an_old_wal_is_not_replayed_over_a_backup(tmp_path: Path, crashed: Path) -> None:
    """The start is refused and changes nothing; the advice helps."""
    backup = (tmp_path / "b.db").read_bytes()
    (crashed / DATABASE).write_bytes(backup)
    advice = rf"was replaced, but .*stop relayd, move all files {crashed}/relayd\.db\* away"
    with pytest.raises(StateReplaced, match=advice):
        StateDirectory(crashed)
    assert (crashed / DATABASE).read_bytes() == backup
    (tmp_path / "away").mkdir()
    for file in crashed.glob(f"{DATABASE}*"):
        file.rename(tmp_path / "away" / file.name)
    (crashed / DATABASE).write_bytes(backup)
    assert clients(crashed) == ["web"]


def test_a_copy_of_all_files_after_a_crash_starts_with_its_wal(crashed: Path) -> None:
    """Wherever it is, it keeps the newest keys."""
    assert clients(crashed) == ["later", "web"]


_MOUNTS = """22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /srv/one\\040place rw - nfs4 server:/srv rw
31 30 0:41 / /srv/one\\040place/local rw - ext4 /dev/vdb rw
32 27 0:42 / /mnt/c rw - 9p drvfs rw
33 27 0:43 / /mnt/disk rw - fuseblk /dev/vdc rw
34 27 0:44 / /covered rw - ext4 /dev/vdd rw
35 34 0:45 / /covered rw - fuse.sshfs ada@host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/relayd", None),
        ("/srv/one place/relayd", "nfs4"),
        ("/srv/one place/local/relayd", None),
        ("/srv/one", None),
        ("/mnt/c", "9p"),
        ("/mnt/cd", None),
        ("/mnt/disk/relayd", None),
        ("/covered/relayd", "fuse.sshfs"),
    ],
)
def test_several_processes_share_a_local_disk_only(tmp_path: Path, path: str, kind: str | None) -> None:
    """The mount that is nearest to the directory counts, and of several at one place the last."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(_MOUNTS)
    if kind is None:
        refuse_network_file_system(Path(path), mounts)
        return
    with pytest.raises(StateUnreachable, match=rf"network file system \({kind}\).*local disk.*workers to 1"):
        refuse_network_file_system(Path(path), mounts)


def test_where_the_file_system_is_not_known_it_is_used(tmp_path: Path) -> None:
    """A system without /proc has no other way to say what is wrong with it."""
    refuse_network_file_system(tmp_path, tmp_path / "no-such-file")
