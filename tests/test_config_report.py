"""The settings in force, as the operator reads them: where each is from, and what its sources say by now."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.admin.schema import Applies, Setting
from relayd.config import KEYS, Settings
from relayd.reload import settings_in_force
from tests.config.harness import ConfigHarness

_TOML = """
openai_api_key_file = "key"
[server]
port = 4000
[upstream]
proxy = "http://user:canary-password@proxy.example:3128"
[[upstream.route]]
name = "main"
openai_api_key_file = "key"
[alerts]
command = ["curl", "https://hooks.example/canary-token"]
[aliases]
"gpt-3.5-turbo" = "gpt-4o-mini"
[prices.mine]
input = 1
output = 2.5
"""


@pytest.fixture
def home(tmp_path: Path) -> ConfigHarness:
    """A directory with a relayd.toml, and a key of 26 characters in a file of its own."""
    home = ConfigHarness(tmp_path)
    home.write("relayd.toml", _TOML)
    home.write("key", "canary-provider-key-of-26.")
    return home


def _by_name(at_start: Settings, current: Settings, newest: Settings) -> dict[str, Setting]:
    return {setting.name: setting for setting in settings_in_force(at_start, current, newest)}


def test_each_setting_has_its_value_and_its_source(home: ConfigHarness) -> None:
    """Every key of relayd.toml is there, rows of tables by their names, and no secret."""
    home.write(".env", "\nSERVER_PORT=5000\n")
    settings = home.load(env={"RELAYD_CHAT__DEFAULT_MODEL": "gpt-4o"}, cli={"server.workers": 2})
    found = _by_name(settings, settings, settings)
    key_file = f'"{home.cwd}/key"'
    shown = {
        "server.port": ("5000", ".env:2 SERVER_PORT"),
        "server.workers": ("2", "command line"),
        "chat.default_model": ('"gpt-4o"', "environment RELAYD_CHAT__DEFAULT_MODEL"),
        "chat.heartbeat_s": ("15", "default"),
        "openai_api_key": ("set (26 characters)", "key file key"),
        "upstream.proxy": ("set (46 characters)", "relayd.toml:6"),
        "authorization_key": ("not set", "default"),
        "upstream.route.main": (
            f"openai_api_key_file = {key_file}, openai_api_key set (26 characters), weight = 1, models = []",
            "relayd.toml:7",
        ),
        "alerts.command": ('["curl", and 1 argument]', "relayd.toml:11"),
        'aliases."gpt-3.5-turbo"': ('"gpt-4o-mini"', "relayd.toml:12"),
        "prices.mine": ("input = 1, output = 2.5", "relayd.toml:14"),
    }
    assert {name: (found[name].value, found[name].source) for name in shown} == shown
    assert {name for name, key in KEYS.items() if not key.is_table} <= set(found)
    assert [name for name, setting in found.items() if setting.new_value is not None] == []
    assert found["server.port"].variable == "RELAYD_SERVER__PORT"
    assert (found["server.port"].default, found["server.port"].is_default) == ("3666", False)
    assert found["chat.heartbeat_s"].is_default
    assert "canary" not in str(found)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ([], "[]"),
        (["/usr/bin/page"], '["/usr/bin/page"]'),
        (["curl https://hooks.example/canary-token"], '["curl" and more, in one text]'),
        (["https://hooks.example/canary-token", "-sS"], '["https" and more, in one text]'),
        (["TOKEN=canary curl"], '["TOKEN" and more, in one text]'),
        (["curl?token=canary"], '["curl" and more, in one text]'),
        (["X-Token:canary"], '["X-Token" and more, in one text]'),
    ],
)
def test_of_a_command_only_the_program_is_shown(home: ConfigHarness, command: list[str], text: str) -> None:
    """Also if program and arguments were written as one text, which can't be run."""
    settings = home.load(cli={"alerts.command": command})
    assert _by_name(settings, settings, settings)["alerts.command"].value == text


def test_what_changed_says_what_it_takes(home: ConfigHarness) -> None:
    """A new port waits for a restart, also after a reload; the rest is in force after one."""
    at_start = home.load()
    text = (
        _TOML.replace("4000", "4001")
        .replace("gpt-4o-mini", "gpt-4o")
        .replace("[prices.mine]", "[prices.new]")
    )
    home.write("relayd.toml", text)
    home.write("key", "another-provider-key-of-26")
    newest = home.load()
    reload, restart = Applies.RELOAD, Applies.RESTART
    before = _by_name(at_start, at_start, newest)
    assert {
        name: (setting.value, setting.new_value, setting.applies)
        for name, setting in before.items()
        if setting.new_value is not None and name != "upstream.route.main"
    } == {
        "openai_api_key": ("set (26 characters)", "another one, set (26 characters)", reload),
        "server.port": ("4000", "4001", restart),
        'aliases."gpt-3.5-turbo"': ('"gpt-4o-mini"', '"gpt-4o"', reload),
        "prices.mine": ("input = 1, output = 2.5", "not set", reload),
        "prices.new": ("not set", "input = 1, output = 2.5", reload),
    }
    assert before["upstream.route.main"].new_value is not None, "its key is another one"
    assert before["server.port"].new_source == "relayd.toml:4"
    after = _by_name(at_start, newest, newest)
    assert [name for name, setting in after.items() if setting.new_value is not None] == ["server.port"]
    assert (after["server.port"].value, after["prices.new"].value) == ("4000", "input = 1, output = 2.5")
