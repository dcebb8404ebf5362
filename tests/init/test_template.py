"""`relayd.init.template`: the commented configuration with some keys set."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from relayd.config import KEYS, load
from relayd.init.template import template, with_values

_VALUES = {
    "openai_api_key_file": '/srv/keys/provider "one"',
    "server.host": "::1",
    "server.port": 4000,
    "server.page": False,
    "chat.default_model": "gpt-ünïcode",
    "upstream.base_url": "https://provider.example/v1",
    "cors.allow_origins": ["https://a.example", "https://b.example"],
}


def test_the_template_is_the_file_that_the_repository_shows() -> None:
    """So that it explains every key; after a change of the one, copy it over the other."""
    assert template() == (Path(__file__).parents[2] / "relayd.toml").read_text()


def test_values_are_set_in_their_place_and_nothing_else_changes() -> None:
    """Each keeps its line and its comment; what is read back is what was given."""
    text = with_values(template(), _VALUES)
    read = tomli.loads(text)
    flat = {
        f"{section}.{key}": value
        for section, keys in read.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
    } | {key: value for key, value in read.items() if not isinstance(value, dict)}
    assert flat == _VALUES
    changed = [
        (old, new) for old, new in zip(template().splitlines(), text.splitlines(), strict=True) if old != new
    ]
    assert len(changed) == len(_VALUES)
    assert all(new.endswith(old[old.rindex("  #") + 2 :]) for old, new in changed)


def test_a_key_that_the_template_does_not_have_is_a_bug() -> None:
    """The same leaf in another section is another key."""
    with pytest.raises(KeyError, match=r"chat\.port"):
        with_values(template(), {"chat.port": 1})


def test_every_key_that_may_stand_in_the_file_can_be_set(tmp_path: Path) -> None:
    """Set to its default, the configuration is as without a file."""
    texts = {"admin.socket": "admin.sock", "state_dir": str(tmp_path), "openai_api_key_file": ""}
    values = {
        name: texts.get(name, "" if key.default is None else key.default)
        for name, key in KEYS.items()
        if not key.secret
    }
    (tmp_path / "relayd.toml").write_text(with_values(template(), values))
    settings = load(config_path=None, cli={}, env={"HOME": str(tmp_path)}, cwd=tmp_path)
    usual = load(config_path=None, cli={}, env={"HOME": str(tmp_path)}, cwd=tmp_path / "elsewhere")
    assert settings.config_file == tmp_path / "relayd.toml"
    assert settings.model_dump(exclude={"state_dir", "admin"}) == usual.model_dump(
        exclude={"state_dir", "admin"}
    )
