"""Tests for relayd.config.sections: the shipped relayd.toml says what the sections hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomli
from pydantic import ValidationError

from relayd.config import KEYS, OriginKind, ServerSettings
from tests.config.room import Room

SHIPPED = Path(__file__).parents[2] / "relayd.toml"
WORKED_OUT = {"state_dir", "admin.socket"}
LINE = re.compile(r"# (?P<setting>(?P<key>[a-z_]+) = .*?\S) +# (?P<comment>\S.*)")


def test_shipped_file_as_it_is(room: Room) -> None:
    """The shipped relayd.toml loads, and changes nothing: every value has its default as origin."""
    got, bare = room.load(SHIPPED.read_text()), room.load("")
    assert {name: got.value(name) for name in KEYS} == {name: bare.value(name) for name in KEYS}
    assert {origin.kind for origin in got.origins.values()} == {OriginKind.DEFAULT}


def test_shipped_file_with_every_line_in_force(room: Room) -> None:
    """With the `#` before each key taken away, the file lists every key, and every value is its default."""
    text = re.sub(r"^# (?=[a-z_]+ = )", "", SHIPPED.read_text(), flags=re.MULTILINE)
    document = tomli.loads(text)
    listed = [
        f"{name}.{inner}" if isinstance(value, dict) else name
        for name, value in document.items()
        for inner in (value if isinstance(value, dict) else [name])
    ]
    assert listed == [name for name, key in KEYS.items() if not key.secret]
    bare, got = room.load(""), room.load(text)
    assert {name: got.value(name) for name in KEYS} == {name: bare.value(name) for name in KEYS}
    assert [name for name, origin in got.origins.items() if origin.kind is OriginKind.FILE] == listed


def test_shipped_file_explains_each_key() -> None:
    """Each key of the shipped file stands on one line, with its default and a comment."""
    found = [match["key"] for line in SHIPPED.read_text().splitlines() if (match := LINE.fullmatch(line))]
    assert found == [key.leaf for key in KEYS.values() if not key.secret]


def test_documentation_lists_each_key(room: Room) -> None:
    """docs/configuration.md lists every key in order, with its default as TOML."""
    text = (SHIPPED.parent / "docs/configuration.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.+?) \| .+ \|$", text, flags=re.MULTILINE))
    plain = [name for name, key in KEYS.items() if not key.secret]
    assert list(rows) == plain
    got = room.load(
        "\n".join(f"{name} = {rows[name].strip('`')}" for name in plain if name not in WORKED_OUT)
    )
    bare = room.load("")
    assert {name: got.value(name) for name in plain} == {name: bare.value(name) for name in plain}


def test_every_key_says_what_it_may_be() -> None:
    """No key lacks the words for its error message, and no list lacks the words for its items."""
    for key in KEYS.values():
        assert key.allowed
        assert (key.kind == "list") == bool(key.allowed_item)
        assert key.secret == (key.name in {"openai_api_key", "authorization_key"})


def test_sections_alone() -> None:
    """A section can be made by itself, with the same checks: for parts that need no more than their own."""
    assert ServerSettings(port=0).port == 0
    with pytest.raises(ValidationError):
        ServerSettings(port=-1)
    with pytest.raises(ValidationError):
        ServerSettings(prot=1)  # type: ignore[call-arg]
