"""Behaviour of `relayd.files`: the same places as the daemon's own configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from relayd.config import load
from relayd.files import database_path, socket_path, state_dir


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"XDG_STATE_HOME": "/srv/state"},
        {"XDG_STATE_HOME": "relative"},
        {"STATE_DIRECTORY": "/var/lib/relayd:/var/lib/other"},
        {"STATE_DIRECTORY": "/var/lib/relayd", "RELAYD_STATE_DIR": "/elsewhere"},
        {"RELAYD_STATE_DIR": "/elsewhere", "RELAYD_ADMIN__SOCKET": "/run/relayd/admin.sock"},
    ],
)
def test_the_command_finds_what_the_daemon_was_told(env: Mapping[str, str], tmp_path: Path) -> None:
    """In every environment the socket and the state directory are those of `relayd serve`."""
    env = {"HOME": "/home/someone", **env}
    settings = load(config_path=None, cli={}, env=env, cwd=tmp_path, system_config=tmp_path / "none")
    assert state_dir(env) == settings.state_dir
    assert socket_path(env, services=[tmp_path / "none"]) == settings.admin.socket


def test_a_given_socket_wins() -> None:
    """`--socket` is above every variable."""
    assert socket_path({"RELAYD_ADMIN__SOCKET": "/a"}, "/b") == Path("/b")


def test_the_services_socket_is_found_where_the_user_has_no_daemon(tmp_path: Path) -> None:
    """So that an administrator need not name it; a daemon of the user's own, or a named one, comes first."""
    env, service = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}, tmp_path / "service"
    service.mkdir()
    assert socket_path(env, services=[service]) == service / "admin.sock"
    assert socket_path({**env, "RELAYD_STATE_DIR": "/named"}, services=[service]) == Path("/named/admin.sock")
    own = tmp_path / "relayd" / "admin.sock"
    own.parent.mkdir()
    own.touch()
    assert socket_path(env, services=[service]) == own


def test_without_a_home_the_user_database_has_one() -> None:
    """As in cron jobs and services."""
    assert socket_path({}).is_absolute()


def test_the_database_belongs_to_the_socket(tmp_path: Path) -> None:
    """Beside it; for a socket of its own directory the service's, or what the environment names with it."""
    run, state, service, other = (tmp_path / name for name in ("run", "state", "service", "other"))
    for directory in (run, state, service, other):
        directory.mkdir()
    for directory in (state, service, other):
        (directory / "relayd.db").touch()
    both = {"RELAYD_STATE_DIR": str(state), "RELAYD_ADMIN__SOCKET": str(run / "admin.sock")}
    assert database_path(both, other / "admin.sock") == other / "relayd.db"
    assert database_path(both, run / "admin.sock") == state / "relayd.db"
    assert database_path({}, run / "admin.sock", services=[run, service]) == service / "relayd.db"
    assert (
        database_path({"RELAYD_STATE_DIR": str(state)}, run / "admin.sock", services=[service])
        == run / "relayd.db"
    )
