"""Tests for relayd.config.checks: values that do not fit together, and what is unwise."""

from __future__ import annotations

import pytest

from tests.config.harness import ConfigHarness


def test_half_a_tls_pair(harness: ConfigHarness) -> None:
    """A certificate without its key is refused, and a key without its certificate."""
    harness.write("a", "pem")
    ends = "is not; TLS needs both, plain HTTP neither."
    assert harness.problems("[tls]\ncert = 'a'") == [f"relayd.toml:2: tls.cert is set but tls.key {ends}"]
    assert harness.problems("[tls]\nkey = 'a'") == [f"relayd.toml:2: tls.key is set but tls.cert {ends}"]
    assert harness.problems("[tls]\nkey = 'a'\ncert = 3") == [
        'relayd.toml:3: tls.cert is 3, but must be a path, or "" for none; ~/ stands for the home directory.'
    ]
    assert harness.problems("[tls]\nkey = 'a'\ncert = 'a'") == []


def test_tls_files_must_be_readable(harness: ConfigHarness) -> None:
    """TLS files are looked at before the daemon starts."""
    harness.write("a", "pem")
    assert harness.problems("tls.cert = 'a'\ntls.key = 'b'") == [
        f"relayd.toml:2: tls.key names {harness.cwd}/b, which does not exist."
    ]
    assert harness.problems("tls.cert = '.'\ntls.key = 'a'") == [
        f"relayd.toml:1: tls.cert names {harness.cwd}, which is not a regular file."
    ]


@pytest.mark.parametrize(
    ("toml", "place", "cause", "length"),
    [
        (f"state_dir = '/{'x' * 96}'", "relayd.toml:1", "state_dir", 108),
        (f"state_dir = '/{'x' * 95}'", None, None, 107),
        (f"admin.socket = '/{'é' * 54}'", "relayd.toml:1", "admin.socket", 109),
        (f"admin.socket = '/{'x' * 106}'", None, None, 107),
    ],
)
def test_the_socket_path(
    harness: ConfigHarness, toml: str, place: str | None, cause: str | None, length: int
) -> None:
    """A Unix socket's path is at most 107 bytes; the message names the key that makes it longer."""
    wrong = f"the path of admin.socket is {length} bytes long, but must be at most 107"
    assert harness.problems(toml) == ([f"{place}: {wrong}; set a shorter {cause}."] if place else [])


OPEN = (
    "server.host 0.0.0.0 is open to the network without TLS: keys and texts can be read on the way;"
    " set tls.cert and tls.key, or listen on 127.0.0.1 behind a proxy."
)
NOT_LISTED = (
    'chat.default_model "gpt-4o-mini" is not in chat.allowed_models; requests that name no model are refused.'
)
WARNINGS = [
    ("", None),
    ("server.host = '0.0.0.0'", OPEN),
    ("server.host = 'localhost'", None),
    ("server.host = '::1'", None),
    (
        "upstream.base_url = 'http://10.0.0.1/v1'",
        "upstream.base_url http://10.0.0.1/v1 is plain HTTP: the provider's key can be read on the way; use https://.",
    ),
    ("upstream.base_url = 'http://127.0.0.1:1234'", None),
    ("upstream.base_url = 'http://api.localhost'", None),
    ("chat.heartbeat_s = 60", "chat.heartbeat_s 60 is long: many proxies give up after 60 s."),
    ("chat.heartbeat_s = 59.5", None),
    (
        "chat.heartbeat_s = 300",
        "chat.heartbeat_s 300 never comes: the upstream is given up after 300 s; set a shorter one.",
    ),
    (
        "upstream.total_timeout_s = 299",
        "upstream.first_token_timeout_s 300 never comes: upstream.total_timeout_s is 299.",
    ),
    ("upstream.total_timeout_s = 300", None),
    ("chat.allowed_models = ['a']", NOT_LISTED),
    ("chat.allowed_models = ['a', 'gpt-4o-mini']", None),
]


@pytest.mark.parametrize(("toml", "warning"), WARNINGS)
def test_warnings(harness: ConfigHarness, toml: str, warning: str | None) -> None:
    """What works but is seldom meant is said, and does not stop the start."""
    assert harness.load(toml).warnings == ((warning,) if warning else ())


def test_an_open_tls_key(harness: ConfigHarness) -> None:
    """A TLS key that every user of the machine can read earns a warning; with TLS any address is fine."""
    key = harness.write("key", "pem", mode=0o604)
    toml = "server.host = '::'\ntls.cert = 'key'\ntls.key = 'key'"
    said = f"{key}: every user of this machine can read this TLS key; chmod 600 it."
    assert harness.load(toml).warnings == (said,)
    key.chmod(0o640)
    assert harness.load(toml).warnings == ()
