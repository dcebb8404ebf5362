"""`relayd migrate-state`, as a person calls it; the copy itself is in tests/state/test_copy_state.py."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import psycopg
import pytest

from relayd.state.directory import StateDirectory
from tests.commands.harness import run
from tests.state.harness import ALICE, opened


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a relayd.toml, which names a state directory with a relay's state."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {"HOME": str(tmp_path)})
    (tmp_path / "relayd.toml").write_text('state_dir = "kept"\n')
    with opened(tmp_path / "kept") as state:
        asyncio.run(state.ring.add_client("web", {}, caller=ALICE))
    return tmp_path


def test_it_copies_the_state_of_the_configured_directory(home: Path, postgres_url: str) -> None:
    """The answer counts what was copied, and says what to do next."""
    ran = run("migrate-state", postgres_url)
    assert ran.status == 0, ran.err
    assert ran.out.startswith("Copied and verified 2 clients, 1 key, 0 requests and all else, ")
    assert "Set state.url" in ran.out
    assert ran.err.startswith(f"Copying {home}/kept/relayd.db to the database ")
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT client FROM keys").fetchall() == [("web",)]


def test_with_json_the_answer_is_one_document(
    home: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rows and the digest of each table; the URL came from stdin."""
    monkeypatch.setattr("sys.stdin", io.StringIO(postgres_url + "\n"))
    answer = json.loads(run("migrate-state", "-", "--json").out)
    assert answer["source"] == f"{home}/kept/relayd.db"
    assert answer["rows"]["clients"] == 2
    assert set(answer["digests"]) == set(answer["rows"])


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://relayd:a-secret@127.0.0.1/relayd",
        "postgresql://relayd@127.0.0.1/relayd?password=a-secret",
    ],
)
def test_a_password_on_the_command_line_is_refused(url: str) -> None:
    """Other users could see it; the message does not repeat it."""
    ran = run("migrate-state", url)
    assert (ran.status, ran.out) == (2, "")
    assert "on stdin" in ran.err
    assert "a-secret" not in ran.err


def test_a_daemon_that_runs_keeps_its_state(home: Path, postgres_url: str) -> None:
    """The sentence says to stop it."""
    with StateDirectory(home / "kept"):
        ran = run("migrate-state", postgres_url)
    assert (ran.status, ran.out) == (1, "")
    assert "Another relayd uses the state directory" in ran.err


@pytest.mark.usefixtures("home")
def test_what_is_no_url_is_refused_without_being_shown() -> None:
    """It might be a password."""
    ran = run("migrate-state", "hunter2@relayd")
    assert ran.status == 1
    assert "postgresql://" in ran.err
    assert "hunter2" not in ran.err
