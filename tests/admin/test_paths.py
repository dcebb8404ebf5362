"""Behaviour of `relayd.admin.paths`: the same places as the daemon's own configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from relayd.admin.paths import database_path, socket_path, state_dir
from relayd.config import load


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


def test_the_database_is_beside_the_socket_or_in_the_state_directory_or_the_services(tmp_path: Path) -> None:
    """A socket of its own directory, as in /run, leaves the database where the state is."""
    env, run, service = {"RELAYD_STATE_DIR": str(tmp_path / "state")}, tmp_path / "run", tmp_path / "service"
    found = [database_path(env, run / "admin.sock", services=[service])]
    for directory in (service, tmp_path / "state", run):
        directory.mkdir()
        (directory / "relayd.db").touch()
        found.append(database_path(env, run / "admin.sock", services=[service]))
    assert [path.parent.name for path in found] == ["state", "service", "state", "run"]
