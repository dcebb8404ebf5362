"""Whole starts on damaged files: a sentence and exit 1, or a start that says what is lost; never a hang."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from relayd.admin.client import AdminClient
from relayd.state.directory import StateDirectory
from relayd.state.keyring import Caller
from relayd.state.records import Peer
from relayd.state.state import State
from tests.e2e.daemon import KEY, environment
from tests.e2e.forked import launch, leave_working_directory
from tests.wire import PATIENCE_S, until

_OPERATOR = Caller(Peer(uid=1, pid=1, login="operator"))
_DB = "state/relayd.db"
_WAL = "state/relayd.db-wal"
_SHM = "state/relayd.db-shm"
_LOCK = "state/relayd.lock"

Damage = Callable[[Path], object]
"""Does something to the home of a daemon: its working directory, with the state in `state`."""


@dataclass(frozen=True, slots=True)
class Case:
    """A damage, and what comes of it."""

    damage: Damage
    says: str = ""
    """A part of what the operator is told, with the home as `HOME`; empty: nothing."""
    keys: list[str] | None = None
    """The states of the keys after the start; None if it ends with exit 1 instead."""
    crashed: bool = False
    """Whether the daemon before was killed, with all of two key changes still in the WAL."""
    before: Callable[[], None] | None = None


def _write(name: str, content: bytes) -> Damage:
    return lambda home: (home / name).write_bytes(content)


def _cut(name: str, size: int) -> Damage:
    return lambda home: os.truncate(home / name, size)


def _cut_to_half(name: str) -> Damage:
    return lambda home: os.truncate(home / name, (home / name).stat().st_size // 2)


def _remove(home: Path, name: str) -> Path:
    path = home / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path


def _gone(name: str) -> Damage:
    return lambda home: _remove(home, name)


def _directory(name: str) -> Damage:
    return lambda home: _remove(home, name).mkdir()


def _pipe(name: str) -> Damage:
    return lambda home: os.mkfifo(_remove(home, name))


def _dangling(name: str) -> Damage:
    return lambda home: _remove(home, name).symlink_to(home / "nowhere")


def _file(name: str) -> Damage:
    return lambda home: _remove(home, name).write_text("a file")


def _sql(*statements: str) -> Damage:
    def damage(home: Path) -> None:
        with closing(sqlite3.connect(home / _DB)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    return damage


def _page_of(table: str) -> Damage:
    def damage(home: Path) -> None:
        with closing(sqlite3.connect(home / _DB)) as connection:
            query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
            (page,) = connection.execute(query, (table,)).fetchone()
            (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        with (home / _DB).open("r+b") as file:
            file.seek((page - 1) * page_bytes)
            file.write(b"\xff" * page_bytes)

    return damage


def _first_byte(home: Path) -> None:
    with (home / _DB).open("r+b") as file:
        file.write(b"X")


def _other_program(home: Path) -> None:
    _remove(home, _DB)
    _sql("CREATE TABLE bookmarks (url)")(home)


def _stale_socket(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(home / "state/admin.sock"))


_WHOLE = ["expired", "active", "active"]
_OLDER = "The key ring is older (generation 1) than the one last in force here (generation 3)"
_NO_FILE = " is not a regular file: move it away."
_IN_THE_WAY = "HOME/state/admin.sock is not a socket"
_DAMAGED = f"The database HOME/{_DB} is damaged"
_INCONSISTENT = f"The key ring in HOME/{_DB} is inconsistent"

CASES = {
    # The database.
    "database: empty": Case(_cut(_DB, 0), f"The database HOME/{_DB} was cut off, and all its keys are lost"),
    "database: one byte": Case(_cut(_DB, 1), f"The database HOME/{_DB} was cut off"),
    "database: half a header": Case(_cut(_DB, 50), f"The database HOME/{_DB} was cut off"),
    "database: one page": Case(_cut(_DB, 4096), _DAMAGED),
    "database: half": Case(_cut_to_half(_DB), _DAMAGED),
    "database: garbage": Case(_write(_DB, os.urandom(30_000)), _DAMAGED),
    "database: text": Case(_write(_DB, b"a text\n" * 1000), _DAMAGED),
    "database: first byte": Case(_first_byte, _DAMAGED),
    "database: page of the keys": Case(_page_of("keys"), _DAMAGED),
    "database: page of an index of the keys": Case(_page_of("keys_one_active"), _DAMAGED),
    "database: page of the audit": Case(_page_of("audit"), _DAMAGED),
    "database: of a newer relayd": Case(_sql("PRAGMA user_version = 99"), f"HOME/{_DB} has format 99"),
    "database: of another program": Case(_other_program, f"HOME/{_DB} is a database, but not one of relayd"),
    "database: a table gone": Case(_sql("DROP TABLE audit"), _DAMAGED),
    "database: no ring": Case(_sql("DELETE FROM ring"), _INCONSISTENT),
    "database: an unknown state": Case(
        _sql("PRAGMA ignore_check_constraints = 1", "UPDATE keys SET state = 'lent'"), _DAMAGED
    ),
    "database: an unknown time": Case(_sql("UPDATE keys SET created_at = 'noon'"), _INCONSISTENT),
    "database: an impossible request": Case(
        _sql("INSERT INTO requests (start_seq, id, boot_id, started_at, phase) VALUES (9, '', '', '', '')"),
        _DAMAGED,
    ),
    "database: all keys deleted": Case(
        _sql("DELETE FROM keys"), "The key ring had keys and is empty now: no key works", keys=[]
    ),
    "database: gone": Case(_gone(_DB), "The key ring had keys and is empty now: no key works", keys=[]),
    "database: a directory": Case(_directory(_DB), f"HOME/{_DB}{_NO_FILE}"),
    "database: a pipe": Case(_pipe(_DB), f"HOME/{_DB}{_NO_FILE}"),
    "database: a dangling link": Case(_dangling(_DB), f"HOME/{_DB}{_NO_FILE}"),
    "database: read-only": Case(lambda home: (home / _DB).chmod(0o400), keys=_WHOLE),
    # What SQLite keeps beside it.
    "WAL: whole": Case(_file("a file beside"), keys=_WHOLE, crashed=True),
    "WAL: gone": Case(_gone(_WAL), _OLDER, keys=["active"], crashed=True),
    "WAL: empty": Case(_cut(_WAL, 0), _OLDER, keys=["active"], crashed=True),
    "WAL: its header cut": Case(_cut(_WAL, 20), _OLDER, keys=["active"], crashed=True),
    "WAL: garbage": Case(_write(_WAL, os.urandom(30_000)), _OLDER, keys=["active"], crashed=True),
    "WAL: its last byte cut": Case(
        lambda home: os.truncate(home / _WAL, (home / _WAL).stat().st_size - 1),
        "The key ring is older (generation 2) than the one last in force here (generation 3)",
        keys=["expired", "active"],
        crashed=True,
    ),
    "WAL: a directory": Case(_directory(_WAL), f"HOME/{_WAL}{_NO_FILE}"),
    "index: garbage": Case(_write(_SHM, os.urandom(32_768)), keys=_WHOLE, crashed=True),
    "index: cut": Case(_cut(_SHM, 10), keys=_WHOLE, crashed=True),
    "index: a directory": Case(_directory(_SHM), f"HOME/{_SHM}{_NO_FILE}"),
    "index: a pipe": Case(_pipe(_SHM), f"HOME/{_SHM}{_NO_FILE}"),
    # The rest of the state directory.
    "lock: garbage": Case(_write(_LOCK, b"\xffgarbage"), keys=_WHOLE),
    "lock: a directory": Case(_directory(_LOCK), f"HOME/{_LOCK}{_NO_FILE}"),
    "first key: a pipe": Case(_pipe("state/first-key"), keys=_WHOLE),
    "admin socket: left behind": Case(_stale_socket, keys=_WHOLE),
    "admin socket: a file": Case(_file("state/admin.sock"), _IN_THE_WAY),
    "admin socket: a directory": Case(_directory("state/admin.sock"), _IN_THE_WAY),
    "admin socket: a dangling link": Case(_dangling("state/admin.sock"), _IN_THE_WAY),
    "state: a file": Case(_file("state"), "The state directory HOME/state can't be used"),
    "state: a pipe": Case(_pipe("state"), "The state directory HOME/state can't be used"),
    "state: a dangling link": Case(_dangling("state"), "The state directory HOME/state can't be used"),
    "state: open to others": Case(lambda home: (home / "state").chmod(0o777), "chmod 700 HOME/state"),
    # The configuration.
    ".env: a pipe": Case(_pipe(".env"), ".env: this file is not a regular file."),
    ".env: a dangling link": Case(_dangling(".env"), ".env: this file cannot be read: No such file"),
    ".env: garbage": Case(_write(".env", b"\xff\xfe" * 99), ".env: this file is not UTF-8 text."),
    ".env: a directory": Case(_directory(".env"), keys=_WHOLE),
    "relayd.toml: a pipe": Case(_pipe("relayd.toml"), "relayd.toml: this file is not a regular file."),
    "relayd.toml: a dangling link": Case(
        _dangling("relayd.toml"), "relayd.toml: this file cannot be read: No such file"
    ),
    "relayd.toml: a directory": Case(_directory("relayd.toml"), "relayd.toml: this file is not a regular"),
    "relayd.toml: garbage": Case(_write("relayd.toml", b"\0" * 99), "relayd.toml:1:1: this is not TOML"),
    "working directory: deleted": Case(
        _file("a file beside"), "The working directory was deleted.", before=leave_working_directory
    ),
}


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with two states: `whole`, after an ordinary stop, and `crashed`."""
    home = tmp_path_factory.mktemp("states")
    asyncio.run(_make_states(home))
    return home


async def _make_states(home: Path) -> None:
    first = _open(home / "state")
    key = first.ring.ensure_initial_key(KEY).key
    assert key is not None
    first.close()
    state = _open(home / "state")
    # A reader keeps the WAL from being copied into the file.
    with closing(sqlite3.connect(state.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM ring").fetchall()
        await state.ring.rotate(key.id, grace_s=0, caller=_OPERATOR)
        await state.ring.add("web", caller=_OPERATOR)
        # Not by this process, which would lose SQLite's locks on the files.
        subprocess.run(["cp", "-a", home / "state", home / "crashed"], check=True, timeout=PATIENCE_S)  # noqa: ASYNC221 - nothing else runs
    state.close()
    (home / "state").rename(home / "whole")


def _open(state_dir: Path) -> State:
    return State.open(
        StateDirectory(state_dir), boot_id="before", keep_days=30, max_mib=512, on_commit=lambda _: None
    )


@pytest.mark.parametrize("name", CASES)
async def test_a_start_on_a_damaged_file(name: str, tmp_path: Path, states: Path) -> None:
    """It ends with exit 1 and a sentence and changes nothing, or serves by what is left of the keys."""
    case = CASES[name]
    shutil.copytree(states / ("crashed" if case.crashed else "whole"), tmp_path / "state")
    (tmp_path / "state").chmod(0o700)
    case.damage(tmp_path)
    variables = {"RELAYD_STATE_DIR": f"{tmp_path}/state", "SERVER_PORT": "0", "AUTHORIZATION_KEY": KEY}
    database = tmp_path / _DB
    before = database.read_bytes() if database.is_file() else None
    process = launch(tmp_path, environment(tmp_path, variables), case.before, "serve", "--demo")

    def told() -> str:
        path = tmp_path / "stderr"
        return path.read_text().replace(str(tmp_path), "HOME") if path.exists() else ""

    try:
        await until(lambda: process.exitcode is not None or " serving on " in told())
        if case.keys is None:
            assert process.exitcode == 1, told()
            assert len(told().splitlines()) <= 2, told()
            assert (database.read_bytes() if database.is_file() else None) == before
            assert not (tmp_path / "state/first-key").exists()
        else:
            assert process.exitcode is None, told()
            ring = await AdminClient(tmp_path / "state/admin.sock").keys()
            assert sorted(key.state for key in ring.keys) == sorted(case.keys)
            process.terminate()
            await until(lambda: process.exitcode is not None)
            assert process.exitcode == 0, told()
        assert case.says in told()
        assert "Traceback" not in told()
    finally:
        process.kill()
        process.join()
        process.close()
