"""`relayd.config.schema`: relayd.toml and the documentation say what it says; what changes live."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomli

from relayd.config import KEYS, LiveDiff, OriginKind, live_changes
from relayd.config.toml import commented_toml
from tests.config.harness import ConfigHarness

SHIPPED = Path(__file__).parents[2] / "relayd.toml"
WORKED_OUT = {"state_dir", "admin.socket"}


def test_the_shipped_file_lists_every_key(harness: ConfigHarness) -> None:
    """relayd.toml in the repository is the schema's text; as it is, it changes nothing."""
    text = SHIPPED.read_text()
    assert text == commented_toml()
    assert {origin.kind for origin in harness.load(text).origins.values()} == {OriginKind.DEFAULT}


def test_the_shipped_file_with_every_line_in_force(harness: ConfigHarness) -> None:
    """With the `#` before each key taken away, every value comes from the file and is its default."""
    text = re.sub(r"^# (?=[a-z_]+ = )", "", SHIPPED.read_text(), flags=re.MULTILINE)
    bare, got = harness.load(""), harness.load(text)
    assert {name: got.value(name) for name in KEYS} == {name: bare.value(name) for name in KEYS}
    from_file = [name for name, origin in got.origins.items() if origin.kind is OriginKind.FILE]
    assert from_file == [name for name, key in KEYS.items() if key.in_file and not key.is_table]


def test_the_examples_of_the_shipped_file_can_be_used(harness: ConfigHarness) -> None:
    """With the `#` before each of their lines taken away, they say what their comments say."""
    harness.write("second", "sk-second")
    text = SHIPPED.read_text().replace("/etc/relayd/second_api_key", "second")
    got = harness.load(re.sub(r"^# +(?=[\[\"a-z])", "", text, flags=re.MULTILINE))
    (route,) = got.upstream.route
    assert (route.name, route.weight, route.models) == ("second", 1, ("gpt-*", "o3"))
    key = got.route_key(route)
    assert key is not None
    assert key.get_secret_value() == "sk-second"
    assert got.aliases == {"gpt-3.5-turbo": "gpt-4o-mini"}
    assert got.prices["gpt-4o-mini"].model_dump() == {"input": 0.15, "cached_input": 0.075, "output": 0.6}


VALUES = {
    "openai_api_key_file": '/srv/keys/provider "one"',
    "server.host": "::1",
    "server.port": 4000,
    "server.page": False,
    "chat.default_model": "gpt-ünïcode",
    "cors.allow_origins": ["https://a.example", "https://b.example"],
}


def test_values_are_set_in_their_place_and_nothing_else_changes() -> None:
    """Each keeps its line and its comment; what is read back is what was given."""
    text = commented_toml(VALUES)
    read = tomli.loads(text)
    tables = {top: value if isinstance(value, dict) else {"": value} for top, value in read.items()}
    flat = {
        f"{top}.{leaf}".rstrip("."): value for top, table in tables.items() for leaf, value in table.items()
    }
    assert flat == VALUES
    changed = [
        (old, new)
        for old, new in zip(commented_toml().splitlines(), text.splitlines(), strict=True)
        if old != new
    ]
    assert len(changed) == len(VALUES)
    assert all(new.endswith(old[old.rindex("  #") + 2 :]) for old, new in changed)


def test_a_key_that_does_not_exist_cannot_be_set() -> None:
    """The same leaf in another section is another key; secrets do not belong in the file."""
    for name in ("chat.port", "openai_api_key"):
        with pytest.raises(KeyError, match=name):
            commented_toml({name: 1})


def test_documentation_lists_each_key(harness: ConfigHarness) -> None:
    """docs/configuration.md lists every key in order, with its default as TOML."""
    text = (SHIPPED.parent / "docs/configuration.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9_.]+)` \| (.+?) \| .+ \|$", text, flags=re.MULTILINE))
    plain = [name for name, key in KEYS.items() if key.in_file and not key.is_table]
    assert list(rows) == plain
    got = harness.load(
        "\n".join(f"{name} = {rows[name].strip('`')}" for name in plain if name not in WORKED_OUT)
    )
    bare = harness.load("")
    assert {name: got.value(name) for name in plain} == {name: bare.value(name) for name in plain}


def test_every_key_says_what_it_may_be() -> None:
    """No key lacks the words for its error message, and no list lacks the words for its items."""
    rows = [inner for key in KEYS.values() for inner in key.row_keys.values() if inner.in_file]
    assert all(key.allowed.text for key in rows)
    for key in KEYS.values():
        if key.is_table:
            continue
        assert key.allowed.text
        assert key.is_list == bool(key.allowed.item)
        assert key.secret == (
            key.name in {"openai_api_key", "authorization_key", "upstream.proxy", "state.url"}
        )
        assert key.in_file == (key.name not in {"openai_api_key", "authorization_key"})


def test_all_but_these_keys_change_live() -> None:
    """Listeners, identities and places are fixed at the start; a reload changes everything else."""
    assert {name for name, key in KEYS.items() if not key.live} == {
        "state_dir",
        "authorization_key",
        "server.host",
        "server.port",
        "server.workers",
        "server.page",
        "server.trusted_proxies",
        "upstream.base_url",
        "upstream.proxy",
        "state.url",
        "state.url_file",
        "admin.socket",
        "admin.group",
    }


def test_changes_are_sorted_into_live_and_restart(harness: ConfigHarness) -> None:
    """Only values count, not where they were set; a state directory takes its socket along."""
    harness.write(".env", "SERVER_PORT=3666")
    bare, same = harness.load(), harness.load("chat.heartbeat_s = 15")
    assert live_changes(bare, same) == LiveDiff((), ())
    env = {"OPENAI_API_KEY": "sk-1", "SERVER_PORT": "1"}
    new = harness.load("log.level = 'debug'\nchat.heartbeat_s = 1\nstate_dir = '/x'", env=env)
    assert live_changes(bare, new) == LiveDiff(
        ("openai_api_key", "chat.heartbeat_s", "log.level"), ("state_dir", "server.port", "admin.socket")
    )


def test_other_tls_files_are_live_but_tls_itself_is_not(harness: ConfigHarness) -> None:
    """Turning TLS on or off needs a restart."""
    for name in ("a", "b"):
        harness.write(name, "pem")
    off = harness.load()
    first, second = (harness.load(f"tls.cert = '{name}'\ntls.key = '{name}'") for name in "ab")
    both = ("tls.cert", "tls.key")
    assert live_changes(first, second) == LiveDiff(both, ())
    assert live_changes(off, first) == live_changes(first, off) == LiveDiff((), both)


def test_a_change_of_a_table_is_live(harness: ConfigHarness) -> None:
    """A route's new key is one, though the file has not changed."""
    text = "[aliases]\na = 'b'\n[[upstream.route]]\nname = 'x'\nopenai_api_key_file = 'key'"
    harness.write("key", "sk-1")
    first, same = harness.load(text), harness.load(text)
    assert live_changes(first, same) == LiveDiff((), ())
    harness.write("key", "sk-2")
    assert live_changes(first, harness.load(text)) == LiveDiff(("upstream.route",), ())
    assert live_changes(first, harness.load(text + "\nweight = 2")).live == ("upstream.route",)
    assert live_changes(first, harness.load("")) == LiveDiff(("upstream.route", "aliases"), ())
