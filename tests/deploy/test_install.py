"""`scripts/install`: releases side by side on a machine of a test, with a systemd that takes notes."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import install
import pytest

from relayd.files import DATABASE
from tests.state.harness import opened
from tests.wire import until

pytestmark = pytest.mark.usefixtures("only_large")

_INSTALL = Path(__file__).parents[2] / "scripts" / "install"
_TIMEOUT_S = 300.0
_WORKS = f'exec {sys.executable} -m relayd "$@"\n'
_BROKEN = 'case "$1" in --version) echo relayd 9 ;; *) echo "no module named relayd" >&2; exit 1 ;; esac\n'
# Stands for venv and pip: what it makes is the release that the test chose.
_PYTHON = """#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$RELEASE" "$3/bin/relayd"; cp "$PIP" "$3/bin/python"
    mkdir -p "$3/share/man/man1"; touch "$3/share/man/man1/relayd.1" ;;
  *) exec {python} "$@" ;;
esac
"""
_SYSTEMCTL = """#!/bin/sh
echo "$*" >> "$ROOT/systemctl.log"
case "$1" in list-units) cat "$ROOT/units" ;; esac
if [ -x "$ROOT/on-$1" ]; then exec "$ROOT/on-$1"; fi
"""


class Host:
    """A machine below one directory, on which relayd.service runs once it is installed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.prefix = root / "opt/relayd"
        self.database = root / "var/lib/relayd" / DATABASE
        (root / "etc/relayd").mkdir(parents=True)
        self.config = root / "etc/relayd/relayd.toml"
        self.config.write_text("[server]\nport = 3666\n")
        (root / "run/systemd/system").mkdir(parents=True)
        self.units("relayd.service loaded active running", "relayd.socket loaded active running")
        (root / "bin").mkdir()
        self.program("bin/systemctl", _SYSTEMCTL)
        self.program("bin/fake-python", _PYTHON.format(python=sys.executable))
        self.program("bin/pip", "#!/bin/sh\n")
        with opened(self.database.parent, boot_id="boot") as state:
            state.ring.ensure_initial_key(None)

    def units(self, *lines: str) -> None:
        """Set what `systemctl list-units` prints."""
        (self.root / "units").write_text("".join(f"{line} some words\n" for line in lines))

    def on(self, verb: str, script: str) -> None:
        """Run a shell script, whose status counts, whenever `systemctl VERB` is called."""
        self.program(f"on-{verb}", f"#!/bin/sh\n{script}\n")

    def run(self, *words: str, release: str = _WORKS, umask: int = 0o022) -> tuple[int, str]:
        """Run `scripts/install`; return its status and what it said. The release is a shell script."""
        process = self.start(*words, release=release, umask=umask)
        said, _ = process.communicate(timeout=_TIMEOUT_S)
        return process.returncode, said

    def start(self, *words: str, release: str = _WORKS, umask: int = 0o022) -> subprocess.Popen[str]:
        """Start `scripts/install`."""
        self.program("release", f"#!/bin/sh\n{release}")
        env = {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "PYTHON": str(self.root / "bin/fake-python"),
            "RELAYD_ROOT": str(self.root),
            "ROOT": str(self.root),
            "RELEASE": str(self.root / "release"),
            "PIP": str(self.root / "bin/pip"),
            "TMPDIR": str(self.root / "tmp"),
        }
        (self.root / "systemctl.log").write_text("")
        (self.root / "tmp").mkdir(exist_ok=True)
        return subprocess.Popen(
            [_INSTALL, *words],
            env=env,
            umask=umask,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def current(self) -> str:
        """The name of the release in use."""
        return (self.prefix / "current").resolve().name

    @property
    def releases(self) -> set[str]:
        """The names of the releases that are kept."""
        return {path.name for path in self.prefix.glob("releases/*")}

    @property
    def asked(self) -> list[str]:
        """What the last run asked systemd to do."""
        lines = (self.root / "systemctl.log").read_text().splitlines()
        return [line for line in lines if line.partition(" ")[0] not in {"list-units", "show"}]

    def schema(self, version: int | None = None) -> int:
        """Return the schema's number in the database; set it first, as a newer release would."""
        with closing(sqlite3.connect(self.database)) as database:
            if version is not None:
                database.execute(f"PRAGMA user_version = {version}")
            return int(database.execute("PRAGMA user_version").fetchone()[0])

    def program(self, name: str, text: str) -> None:
        """Write a program."""
        (self.root / name).write_text(text)
        (self.root / name).chmod(0o755)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Return a machine with a working release."""
    machine = Host(tmp_path)
    status, said = machine.run()
    assert status == 0, said
    return machine


def test_the_service_can_run_what_a_careful_root_installed(tmp_path: Path) -> None:
    """With a umask of 077, too, everybody may enter and run a release; a database's copy stays private."""
    host = Host(tmp_path)
    for _ in range(2):
        status, said = host.run(umask=0o077)
        assert status == 0, said
    way = (host.prefix / "current").resolve() / "bin/relayd"
    while way != host.prefix.parent:
        assert way.stat().st_mode & 0o005 == 0o005, way
        way = way.parent
    (backup,) = host.prefix.glob("releases/*/backup")
    assert backup.stat().st_mode & 0o077 == 0
    for linked in ("bin/relayd", "share/man/man1/relayd.1"):
        assert (tmp_path / "usr/local" / linked).readlink() == host.prefix / "current" / linked


def test_an_upgrade_restarts_the_service_and_keeps_one_release_to_go_back_to(host: Host) -> None:
    """After the third installation the second and the third are there, and a copy of the database."""
    assert host.run()[0] == 0
    second = host.current
    status, said = host.run()
    assert status == 0, said
    assert {path.name for path in host.prefix.glob("releases/*")} == {second, host.current}
    assert (host.prefix / "releases" / second / "backup/relayd.db").exists()
    assert "restart relayd.service" in host.asked


def test_a_release_that_does_not_start_is_not_switched_to(host: Host) -> None:
    """It is said why, the service is left alone, and nothing of the new release stays."""
    working = host.current
    status, said = host.run(release=_BROKEN)
    assert status == 1
    assert "no module named relayd" in said
    assert str(host.config) in said
    assert host.current == working
    assert host.asked == []
    assert [path.name for path in host.prefix.glob("releases/*")] == [working]


def test_settings_that_only_the_unit_has_do_not_hinder_an_upgrade(host: Host) -> None:
    """Where the release in use could not start on the files alone either, the trial decides nothing."""
    host.config.write_text("[server]\nunknown = 1\n")
    before = host.current
    status, said = host.run()
    assert status == 0, said
    assert host.current != before


def test_a_trial_stays_away_from_a_shared_database(host: Host) -> None:
    """It uses the copy of the file: older releases may be using the tables that it would migrate."""
    host.config.write_text(
        '[state]\nurl_file = "/nowhere/state_url"\nurl = "postgresql://nowhere.invalid/db"\n'
    )
    status, said = host.run(release=_BROKEN)
    assert status == 1
    assert "no module named relayd" in said
    assert host.run()[0] == 0


def test_a_rollback_brings_a_failed_service_up(host: Host) -> None:
    """Socket and service failed with the new release: both are reset and started on the one before."""
    working = host.current
    assert host.run()[0] == 0
    host.units("relayd.service loaded failed failed", "relayd.socket loaded failed failed")
    status, said = host.run("--rollback")
    assert status == 0, said
    assert host.current == working
    assert host.asked == ["reset-failed relayd.service relayd.socket", "restart relayd.service"]
    assert host.run("--rollback")[0] == 0
    assert host.current != working


def test_a_rollback_restores_the_database_that_the_older_release_can_read(host: Host) -> None:
    """The service stands still meanwhile; it is said what is lost, and the newer database is kept."""
    old, working = host.schema(), host.current
    assert host.run()[0] == 0
    newer = host.current
    host.schema(old + 1000)
    owner = host.database.stat()
    status, said = host.run("--rollback")
    assert status == 0, said
    assert (host.current, host.schema()) == (working, old)
    assert host.asked[0] == "stop relayd.service relayd.socket"
    assert host.asked[-1] == "restart relayd.service"
    kept = host.prefix / "releases" / newer / "backup/relayd.db"
    assert "changes of clients, bounds and keys, and what was used" in said
    assert str(kept) in said
    assert kept.exists()
    restored = host.database.stat()
    assert (restored.st_uid, restored.st_mode) == (owner.st_uid, owner.st_mode)


def test_without_a_release_before_there_is_no_way_back(host: Host) -> None:
    """A sentence, and nothing changes."""
    current = host.current
    status, said = host.run("--rollback")
    assert (status, host.current, host.asked) == (1, current, [])
    assert "There is no release before this one" in said


def test_a_database_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full halfway, the database and its write-ahead log are the same, and no file is left."""
    monkeypatch.setattr(install, "_ROOT", tmp_path)
    instance, copy = install.Instance("relayd"), tmp_path / "copy"
    instance.database.parent.mkdir(parents=True)
    instance.database.write_text("newer")
    instance.database.chmod(0o640)
    instance.database.with_name("relayd.db-wal").write_text("newest")
    copy.write_text("older")

    def fill_up(_source: BinaryIO, target: BinaryIO) -> None:
        target.write(b"old")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(shutil, "copyfileobj", fill_up)
        with pytest.raises(OSError, match="No space left"):
            instance.restore(copy)
    found = {path.name: path.read_text() for path in instance.database.parent.iterdir()}
    assert found == {"relayd.db": "newer", "relayd.db-wal": "newest"}
    instance.restore(copy)
    assert {path.name: path.read_text() for path in instance.database.parent.iterdir()} == {
        "relayd.db": "older"
    }
    assert instance.database.stat().st_mode & 0o777 == 0o640


def test_a_database_that_cannot_be_restored_stops_the_rollback_and_not_the_service(host: Host) -> None:
    """The units are started again with the newer release and database, and the copy of it is named."""
    old, working = host.schema(), host.current
    assert host.run()[0] == 0
    newer = host.current
    host.schema(old + 1000)
    host.on("stop", f"rm {host.prefix}/releases/{working}/backup/relayd.db")
    status, said = host.run("--rollback")
    assert status == 1
    assert (host.current, host.schema()) == (newer, old + 1000)
    assert host.asked == ["stop relayd.service relayd.socket", "start relayd.service"]
    kept = host.prefix / "releases" / newer / "backup/relayd.db"
    assert f"The newest database is kept: {kept}" in said
    assert f"{newer} stays" in said


def test_the_kept_database_has_what_the_service_wrote_until_it_stopped(host: Host) -> None:
    """A change during the trials is in the copy: it is taken after the stop."""
    old = host.schema()
    assert host.run()[0] == 0
    newer = host.current
    host.schema(old + 1000)
    host.on(
        "stop",
        f"{sys.executable} -c \"import sqlite3; sqlite3.connect('{host.database}')"
        f".execute('PRAGMA user_version = {old + 1001}')\"",
    )
    status, said = host.run("--rollback")
    assert status == 0, said
    assert host.schema() == old
    with closing(sqlite3.connect(host.prefix / "releases" / newer / "backup/relayd.db")) as kept:
        assert kept.execute("PRAGMA user_version").fetchone() == (old + 1001,)


def test_after_a_failed_restart_the_record_names_the_release_before(host: Host) -> None:
    """The message names where a rollback leads, and it leads there, after an upgrade or a rollback."""
    first = host.current
    host.on("restart", "echo 'Job for relayd.service failed.'; exit 1")
    status, said = host.run()
    second = host.current
    assert status == 1
    assert f"{second} is in use; scripts/install --rollback returns to {first}." in said
    status, said = host.run("--rollback")
    assert (status, host.current) == (1, first)
    assert f"{first} is in use; scripts/install --rollback returns to {second}." in said
    (host.root / "on-restart").unlink()
    assert host.run("--rollback")[0] == 0
    assert host.current == second


def test_the_last_release_that_worked_stays_until_a_service_has_started_with_a_newer_one(host: Host) -> None:
    """While the service is stopped, an upgrade proves nothing, so it removes one release fewer."""
    first = host.current
    assert host.run()[0] == 0
    second = host.current
    host.units()
    assert host.run()[0] == 0
    third = host.current
    assert host.releases == {first, second, third}
    host.units("relayd.service loaded active running")
    assert host.run()[0] == 0
    assert host.releases == {third, host.current}


def test_a_rollback_that_cannot_succeed_is_refused(host: Host) -> None:
    """The earlier release starts on no database and the one in use does: nothing is stopped or switched."""
    first = host.current
    assert host.run()[0] == 0
    second = host.current
    program = host.prefix / "releases" / first / "bin/relayd"
    program.write_text(f"#!/bin/sh\n{_BROKEN}")
    status, said = host.run("--rollback")
    assert (status, host.current, host.asked) == (1, second, [])
    assert str(host.config) in said
    assert "no module named relayd" in said


def test_a_trial_changes_the_owner_of_no_file_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service's user replaces the copy by a symlink as soon as the directory is its own."""
    monkeypatch.setattr(install, "_ROOT", tmp_path)
    copy, victim, given = tmp_path / "copy", tmp_path / "victim", list[Path]()
    for path in (copy, victim):
        path.write_text("")

    def chown(path: Path, _user: int, _group: int, *, follow_symlinks: bool = True) -> None:
        given.append(path.resolve() if follow_symlinks else path)
        if path.is_dir():
            (path / "relayd.db").unlink()
            (path / "relayd.db").symlink_to(victim)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(install, "_start_problem", lambda *_: "")
    assert install.Instance("relayd").start_problem(tmp_path, copy) == ""
    assert [path.name for path in given[:-1]] == ["relayd.db"]
    assert victim not in given


def test_an_instance_without_a_database_in_its_place_is_named(host: Host) -> None:
    """Its state may be elsewhere, and then nobody has a copy of it."""
    other = host.root / "etc/relayd/other.toml"
    other.write_text("")
    status, said = host.run()
    assert status == 0, said
    missing = host.root / "var/lib/relayd-other/relayd.db"
    assert f"{other}: nothing is backed up, because there is no database at {missing}." in said
    assert "relayd backup FILE" in said
    assert str(host.database) not in said


@pytest.mark.parametrize("place", ["file", "unit"])
def test_a_state_directory_of_ones_own_is_backed_up_and_not_the_old_one(host: Host, place: str) -> None:
    """Where relayd.toml or the unit names it; a database in the usual place is of an earlier time."""
    own = host.root / "srv/state"
    shutil.copytree(host.database.parent, own)
    with closing(sqlite3.connect(host.database)) as old:
        old.execute("CREATE TABLE of_an_earlier_time (number)")
    if place == "file":
        host.config.write_text('state_dir = "/srv/state"\n')
    else:
        host.on("show", "echo 'Environment=A=b \"RELAYD_STATE_DIR=/srv/state\"'")
    before = host.current
    status, said = host.run()
    assert status == 0, said
    with closing(sqlite3.connect(host.prefix / "releases" / before / "backup/relayd.db")) as copy:
        tables = {name for (name,) in copy.execute("SELECT name FROM sqlite_schema")}
    assert "keys" in tables
    assert "of_an_earlier_time" not in tables


def test_an_upgrade_names_units_that_are_not_its_own(host: Host) -> None:
    """They stay as they are; init renews them, and keeps what was there."""
    relayd = host.root / "usr/local/bin/relayd"
    init = [str(relayd), "init", "--system", "--root", str(host.root), "--yes"]
    subprocess.run(init, check=True, capture_output=True, timeout=_TIMEOUT_S)
    status, said = host.run()
    assert status == 0, said
    assert "Unchanged" not in said
    unit = host.root / "etc/systemd/system/relayd.service"
    unit.write_text(unit.read_text().replace("WatchdogSec=30\n", ""))
    older = unit.read_text()
    status, said = host.run()
    assert status == 0, said
    assert f"Unchanged, and not as this release has them: {unit}.\n" in said
    assert "sudo relayd init --system" in said
    assert unit.read_text() == older
    subprocess.run(init, check=True, capture_output=True, timeout=_TIMEOUT_S)
    assert "WatchdogSec=30\n" in unit.read_text()
    assert unit.with_name("relayd.service.old").read_text() == older


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, "build"), (signal.SIGTERM, "trial")])
async def test_an_interrupted_upgrade_leaves_nothing(host: Host, number: signal.Signals, step: str) -> None:
    """Neither half a release nor a copy of the database, and no process; the release in use stays."""
    before, note = host.current, host.root / "pid"
    # More than a pipe holds, so that the script is being read when it takes its note.
    script = f"yes | head -n 100000; echo $$ > {note}.new; mv {note}.new {note}; exec sleep 600\n"
    if step == "build":
        host.program("bin/pip", f"#!/bin/sh\n{script}")
    process = host.start(release=script if step == "trial" else _WORKS)
    await until(note.exists)
    process.send_signal(number)
    said, _ = await asyncio.to_thread(process.communicate, timeout=_TIMEOUT_S)
    assert process.returncode == 1
    assert said == f"scripts/install: interrupted by {number.name}; {before} is in use.\n"
    assert host.releases == {before}
    assert list((host.root / "tmp").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


@pytest.mark.parametrize("step", ["build", "trial"])
def test_a_signal_that_interrupts_no_read_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It comes just before a read that blocks; here another thread takes it, with the same effect."""
    monkeypatch.setattr(install, "_START_TIMEOUT_S", 300.0)
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    code = (
        f"import time; open({str(begun)!r}, 'w').close(); time.sleep(60); open({str(ended)!r}, 'w').close()"
    )

    def interrupt(_number: int, _frame: object) -> None:
        raise install.InterruptedInstallError

    def send() -> None:
        while not begun.exists() and not stopped.wait(0.01):
            pass
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    def run() -> None:
        words = [sys.executable, "-c", code]
        if step == "build":
            install._run(*words)
        else:
            install._start_problem(words, str(tmp_path), dict(os.environ), None)

    stopped, sender = threading.Event(), threading.Thread(target=send)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        sender.start()
        with pytest.raises(install.InterruptedInstallError):
            run()
    finally:
        stopped.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    assert not ended.exists()


def test_a_switch_that_has_begun_is_completed(host: Host) -> None:
    """A signal during the restart is obeyed after it."""
    before = host.current
    host.on("restart", "kill -HUP $PPID")
    status, said = host.run()
    assert status == 1
    assert host.current != before
    assert f"interrupted by SIGHUP; {host.current} is in use.\n" in said
    assert host.asked[-1] == "restart relayd.service"
    (host.root / "on-restart").unlink()
    status, said = host.run("--rollback")
    assert (status, host.current) == (0, before), said
