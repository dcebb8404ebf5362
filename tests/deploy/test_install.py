"""`scripts/install`: releases side by side on a machine of a test, with a systemd that takes notes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from relayd.state.directory import FILE_NAME
from tests.state.harness import opened

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
"""


class Host:
    """A machine below one directory, on which relayd.service runs once it is installed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.prefix = root / "opt/relayd"
        self.database = root / "var/lib/relayd" / FILE_NAME
        (root / "etc/relayd").mkdir(parents=True)
        self.config = root / "etc/relayd/relayd.toml"
        self.config.write_text("[server]\nport = 3666\n")
        (root / "run/systemd/system").mkdir(parents=True)
        self.units("relayd.service loaded active running", "relayd.socket loaded active running")
        (root / "bin").mkdir()
        self._program("bin/systemctl", _SYSTEMCTL)
        self._program("bin/fake-python", _PYTHON.format(python=sys.executable))
        self._program("bin/pip", "#!/bin/sh\n")
        with opened(self.database.parent, boot_id="boot") as state:
            state.ring.ensure_initial_key(None)

    def units(self, *lines: str) -> None:
        """Set what `systemctl list-units` prints."""
        (self.root / "units").write_text("".join(f"{line} some words\n" for line in lines))

    def run(self, *words: str, release: str = _WORKS, umask: int = 0o022) -> tuple[int, str]:
        """Run `scripts/install`; return its status and what it said. The release is a shell script."""
        self._program("release", f"#!/bin/sh\n{release}")
        env = {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "PYTHON": str(self.root / "bin/fake-python"),
            "RELAYD_ROOT": str(self.root),
            "ROOT": str(self.root),
            "RELEASE": str(self.root / "release"),
            "PIP": str(self.root / "bin/pip"),
        }
        (self.root / "systemctl.log").write_text("")
        done = subprocess.run(
            [_INSTALL, *words],
            env=env,
            umask=umask,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        return done.returncode, done.stdout

    @property
    def current(self) -> str:
        """The name of the release in use."""
        return (self.prefix / "current").resolve().name

    @property
    def asked(self) -> list[str]:
        """What the last run asked systemd to do."""
        lines = (self.root / "systemctl.log").read_text().splitlines()
        return [line for line in lines if not line.startswith("list-units")]

    def schema(self, version: int | None = None) -> int:
        """Return the schema's number in the database; set it first, as a newer release would."""
        with closing(sqlite3.connect(self.database)) as database:
            if version is not None:
                database.execute(f"PRAGMA user_version = {version}")
            return int(database.execute("PRAGMA user_version").fetchone()[0])

    def _program(self, name: str, text: str) -> None:
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
    assert "Lost since then: requests in the log, and changes of keys." in said
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
