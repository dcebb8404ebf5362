"""Tests for relayd.config.live: what can change without a restart."""

from __future__ import annotations

import pytest

from relayd.config import KEYS, LiveDiff, live_changes
from tests.config.room import Room

LIVE = {
    "server.keep_alive_s": "1",
    "server.max_body_bytes": "1",
    "server.header_timeout_s": "1",
    "server.body_timeout_s": "1",
    "server.write_timeout_s": "1",
    "server.max_streams": "1",
    "server.max_streams_per_address": "1",
    "server.drain_timeout_s": "1",
    "cors.allow_origins": "https://a.example",
    "chat.default_model": "other",
    "chat.allowed_models": "other",
    "chat.heartbeat_s": "1",
    "chat.max_tokens_limit": "1",
    "upstream.connect_timeout_s": "1",
    "upstream.first_token_timeout_s": "1",
    "upstream.idle_timeout_s": "1",
    "upstream.total_timeout_s": "1",
    "upstream.max_retries": "1",
    "upstream.max_retry_wait_s": "1",
    "upstream.include_usage": "no",
    "keys.grace_s": "1",
    "log.level": "debug",
    "log.retention_days": "1",
    "log.max_mib": "1",
}
RESTART = {
    "server.host": "::1",
    "server.port": "1",
    "server.trusted_proxies": "",
    "server.page": "no",
    "upstream.base_url": "https://other.example",
    "admin.socket": "other.sock",
}


@pytest.mark.parametrize(("name", "text"), [*LIVE.items(), *RESTART.items()])
def test_each_key(room: Room, name: str, text: str) -> None:
    """A change of one key is found, and sorted into live or restart."""
    diff = live_changes(room.load(), room.load(cli={name: text}))
    assert diff == (LiveDiff((name,), ()) if name in LIVE else LiveDiff((), (name,)))
    assert diff


def test_the_table_is_whole() -> None:
    """The keys above are all there are, beside TLS, secrets, the admin group and the state directory."""
    others = {"state_dir", "openai_api_key", "openai_api_key_file", "authorization_key", "admin.group"}
    assert {*LIVE, *RESTART, *others, "tls.cert", "tls.key"} == set(KEYS)
    assert {name for name, key in KEYS.items() if key.live} == {*LIVE, "tls.cert", "tls.key"}


def test_nothing_changed(room: Room) -> None:
    """The same values from other places are no change."""
    room.write(".env", "SERVER_PORT=3666")
    diff = live_changes(room.load(), room.load("chat.heartbeat_s = 15"))
    assert diff == LiveDiff((), ())
    assert not diff


def test_tls_files(room: Room) -> None:
    """Other TLS files are taken live; turning TLS on or off needs a restart."""
    for name in ("a", "b"):
        room.write(name, "pem")
    off = room.load()
    first, second = room.load("tls.cert = 'a'\ntls.key = 'a'"), room.load("tls.cert = 'b'\ntls.key = 'b'")
    both = ("tls.cert", "tls.key")
    assert live_changes(first, second) == LiveDiff(both, ())
    assert live_changes(off, first) == live_changes(first, off) == LiveDiff((), both)


def test_secrets_and_state(room: Room) -> None:
    """Another provider key, another authorization key or another state directory needs a restart."""
    env = {"OPENAI_API_KEY": "sk-1", "AUTHORIZATION_KEY": "x" * 16}
    diff = live_changes(room.load(env=env), room.load(env=env | {"OPENAI_API_KEY": "sk-2"}))
    assert diff == LiveDiff((), ("openai_api_key",))
    assert live_changes(room.load(env=env), room.load()).restart == ("openai_api_key", "authorization_key")
    assert live_changes(room.load(), room.load("state_dir = '/x'")).restart == ("state_dir", "admin.socket")
