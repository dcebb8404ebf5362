"""Tests for relayd.config: where values come from, and what refuses them."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relayd.config import KEYS, ConfigError, OriginKind
from tests.config.harness import ConfigHarness

CANARY = "canary-4711-do-not-show"


def test_defaults(harness: ConfigHarness) -> None:
    """With no source at all the defaults of the contract hold, with their types."""
    got = harness.load()
    assert got.state_dir == harness.cwd / "home/.local/state/relayd"
    assert got.admin.socket == got.state_dir / "admin.sock"
    top = (got.openai_api_key, got.authorization_key, got.openai_api_key_file, got.config_file)
    assert top == (None, None, None, None)
    flat = {name: got.value(name) for name, key in KEYS.items() if key.section}
    assert flat == {
        "server.host": "127.0.0.1",
        "server.port": 3666,
        "server.keep_alive_s": 130.0,
        "server.page": True,
        "server.max_body_bytes": 2 * 1024 * 1024,
        "server.header_timeout_s": 10.0,
        "server.body_timeout_s": 30.0,
        "server.write_timeout_s": 30.0,
        "server.max_streams": 1000,
        "server.max_streams_per_address": 50,
        "server.drain_timeout_s": 30.0,
        "server.trusted_proxies": ("127.0.0.1", "::1"),
        "cors.allow_origins": ("*",),
        "chat.default_model": "gpt-4o-mini",
        "chat.allowed_models": (),
        "chat.heartbeat_s": 15.0,
        "chat.max_tokens_limit": 0,
        "upstream.base_url": "https://api.openai.com/v1",
        "upstream.connect_timeout_s": 5.0,
        "upstream.first_token_timeout_s": 300.0,
        "upstream.idle_timeout_s": 60.0,
        "upstream.total_timeout_s": 1800.0,
        "upstream.max_retries": 2,
        "upstream.max_retry_wait_s": 5.0,
        "upstream.include_usage": True,
        "keys.grace_s": 3600.0,
        "tls.cert": None,
        "tls.key": None,
        "log.level": "info",
        "log.retention_days": 30,
        "log.max_mib": 512,
        "admin.socket": got.admin.socket,
        "admin.group": "",
    }


def test_precedence(harness: ConfigHarness) -> None:
    """Each source beats the ones before it: default, file, .env, environment, command line."""
    name = "RELAYD_SERVER__MAX_STREAMS"
    sources = [
        (1000, OriginKind.DEFAULT, "default"),
        (1, OriginKind.FILE, "relayd.toml:2"),
        (2, OriginKind.DOTENV, f".env:1 {name}"),
        (3, OriginKind.ENVIRONMENT, f"environment {name}"),
        (4, OriginKind.COMMAND_LINE, "command line"),
    ]
    for depth, (value, kind, place) in enumerate(sources):
        if depth == 1:
            harness.write("relayd.toml", "[server]\nmax_streams = 1")
        if depth == 2:
            harness.write(".env", f"{name}=2")
        env = {name: "3"} if depth >= 3 else {}
        cli = {"server.max_streams": "4"} if depth >= 4 else {}
        got = harness.load(env=env, cli=cli)
        origin = got.origins["server.max_streams"]
        assert (got.server.max_streams, origin.kind, str(origin)) == (value, kind, place)


def test_sources_merge(harness: ConfigHarness) -> None:
    """A source that sets one key of a section leaves the section's other keys to the weaker sources."""
    harness.write(".env", "RELAYD_SERVER__HOST=localhost")
    got = harness.load("[server]\nmax_streams = 7\nhost = '::1'", env={"SERVER_PORT": "81"})
    assert (got.server.max_streams, got.server.host, got.server.port) == (7, "localhost", 81)


STATE_DIRS = [
    ({}, "home/.local/state/relayd", "environment HOME"),
    ({"XDG_STATE_HOME": "relative"}, "home/.local/state/relayd", "environment HOME"),
    ({"XDG_STATE_HOME": "/xdg"}, "/xdg/relayd", "environment XDG_STATE_HOME"),
    ({"XDG_STATE_HOME": "/xdg", "STATE_DIRECTORY": "/s/a:/s/b"}, "/s/a", "environment STATE_DIRECTORY"),
    ({"STATE_DIRECTORY": "/s/a", "RELAYD_STATE_DIR": "~/x"}, "home/x", "environment RELAYD_STATE_DIR"),
    ({"RELAYD_STATE_DIR": "x"}, "x", "environment RELAYD_STATE_DIR"),
]


@pytest.mark.parametrize(("env", "path", "origin"), STATE_DIRS)
def test_state_dir(harness: ConfigHarness, env: dict[str, str], path: str, origin: str) -> None:
    """State is kept where told, else where systemd says, else by the XDG rule; the socket follows."""
    got = harness.load(env=env)
    assert got.state_dir == harness.cwd / path
    assert got.admin.socket == harness.cwd / path / "admin.sock"
    assert str(got.origins["state_dir"]) == origin


def test_home_from_the_user_database(harness: ConfigHarness) -> None:
    """Without HOME, as in a bare service, the home directory is the one of the user's own entry."""
    got = harness.load(env={"HOME": ""})
    assert got.state_dir == Path(pwd.getpwuid(os.getuid()).pw_dir) / ".local/state/relayd"


@dataclass(frozen=True)
class Bad:
    """A configuration with one fault, and the sentence that it must give."""

    kind: str
    says: str
    toml: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    dotenv: str | None = None


TEN_KINDS = [
    Bad("syntax", "relayd.toml:2:8: this is not TOML: a value is missing or misspelt (text needs quotes).",
        "[server]\nhost = localhost"),
    Bad("unknown key", "relayd.toml:3: unknown key server.max_stream; did you mean server.max_streams?",
        "[server]\n# limits\nmax_stream = 5"),
    Bad("unknown section", "relayd.toml:1: unknown section upstraem; did you mean [upstream]?",
        "[upstraem]\nmax_retries = 5"),
    Bad("wrong type",
        'relayd.toml:2: server.port is "3666", but must be a whole number from 0 to 65535.',
        '[server]\nport = "3666"'),
    Bad("out of range",
        "environment: SERVER_PORT (server.port) is 70000, but must be a whole number from 0 to 65535.",
        env={"SERVER_PORT": "70000"}),
    Bad("unknown variable",
        "environment: unknown variable RELAYD_SERVER_HOST; did you mean RELAYD_SERVER__HOST?",
        env={"RELAYD_SERVER_HOST": "::"}),
    Bad("unusable URL",
        '.env:2: RELAYD_UPSTREAM__BASE_URL (upstream.base_url) is "api.openai.com", but must be an http:// or'
        " https:// URL with a host, no credentials and no query.",
        dotenv="# provider\nRELAYD_UPSTREAM__BASE_URL=api.openai.com\n"),
    Bad("not an origin",
        'relayd.toml:2: cors.allow_origins[1] is "https://app.example/", but must be "*" or scheme://host[:port],'
        ' without a path; browsers send "https://app.example".',
        '[cors]\nallow_origins = ["https://a.example", "https://app.example/"]'),
    Bad("half a pair",
        "relayd.toml:1: tls.cert is set but tls.key is not; TLS needs both, plain HTTP neither.",
        "tls.cert = 'relayd.toml'"),
    Bad("unusable secret",
        "environment: AUTHORIZATION_KEY (authorization_key) must be at least 16 printable ASCII characters;"
        " it has 8.",
        env={"AUTHORIZATION_KEY": "hunter22"}),
]  # fmt: skip


@pytest.mark.parametrize("bad", TEN_KINDS, ids=lambda bad: bad.kind)
def test_ten_kinds_of_bad_configuration(harness: ConfigHarness, bad: Bad) -> None:
    """Bad configuration of ten kinds gives ten clear sentences: where, which key, what is allowed."""
    if bad.dotenv:
        harness.write(".env", bad.dotenv)
    assert harness.problems(bad.toml, env=bad.env) == [bad.says]


def test_the_documentation_shows_them() -> None:
    """docs/configuration.md shows each of the ten as it is printed."""
    text = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
    assert [bad.kind for bad in TEN_KINDS if f"\n{bad.says}\n" not in text] == []


def test_all_problems_at_once(harness: ConfigHarness) -> None:
    """Every fault of every source is told in one go, in the order in which a person mends them."""
    harness.write(".env", "\nSERVER_PORT=x\n")
    toml = "[server]\nport = -1\nhost = 5\n\n\n\n\n\n[log]\nlevel = 'warn'\nlevels = 1\n[tls]\nkey = '/no'"
    assert (
        harness.problems(toml, env={"RELAYD_X": "1"}, cli={"chat.heartbeat_s": "0"})
        == """\
relayd.toml:2: server.port is -1, but must be a whole number from 0 to 65535.
relayd.toml:3: server.host is 5, but must be an IP address or a host name, without a port.
relayd.toml:10: log.level is "warn", but must be debug, info, warning or error; did you mean "warning"?
relayd.toml:11: unknown key log.levels; did you mean log.level?
relayd.toml:13: tls.key is set but tls.cert is not; TLS needs both, plain HTTP neither.
relayd.toml:13: tls.key names /no, which does not exist.
.env:2: SERVER_PORT (server.port) is "x", but must be a whole number from 0 to 65535.
environment: unknown variable RELAYD_X; the names are RELAYD_<SECTION>__<KEY>, or RELAYD_<KEY> at the top.
command line: chat.heartbeat_s is 0.0, but must be a number of seconds above 0, at most 604800.
""".splitlines()
    )


def test_a_hidden_fault_is_a_fault(harness: ConfigHarness) -> None:
    """A wrong value is told even where a stronger source overrides it: it would bite later."""
    assert len(harness.problems("[server]\nport = 'x'", env={"SERVER_PORT": "1"})) == 1


WRONG_TYPES = [
    ("server.port = true", "is true"),
    ("server.port = 1.0", "is 1.0"),
    ("server.port = {}", "is a table"),
    ("server.port = [1]", "is a list"),
    ("server.port = 1979-05-27", "is a date"),
    (f"server.port = 0x{'f' * 6000}", "is a huge number"),
    ("chat.heartbeat_s = true", "is true"),
    ("chat.heartbeat_s = '3'", 'is "3"'),
    ("chat.heartbeat_s = nan", "is nan"),
    ("chat.heartbeat_s = inf", "is inf"),
    (f"chat.heartbeat_s = 0x{'f' * 6000}", "is a huge number"),
    ("upstream.include_usage = 1", "is 1"),
    ("upstream.include_usage = 'true'", 'is "true"'),
    ("cors.allow_origins = '*'", 'is "*"'),
    ("cors.allow_origins = [3]", "is 3"),
    ("tls.cert = 3", "is 3"),
    ("state_dir = ['x']", "is a list"),
    ("state_dir = ''", 'is ""'),
    ("state_dir = '~other/x'", 'is "~other/x"'),
    ("admin.socket = false", "is false"),
]


@pytest.mark.parametrize(("toml", "says"), WRONG_TYPES)
def test_wrong_types(harness: ConfigHarness, toml: str, says: str) -> None:
    """In the file nothing stands for something else: no boolean for a number, no string, nothing infinite."""
    (sentence,) = harness.problems(toml)
    assert sentence.startswith(f"relayd.toml:1: {toml.partition(' ')[0]}")
    assert f" {says}, but must be " in sentence


def test_a_repr_shows_no_secret(harness: ConfigHarness) -> None:
    """Neither repr, str, dump nor a traceback of a failure with the settings shows a secret."""
    got = harness.load(env={"OPENAI_API_KEY": CANARY, "AUTHORIZATION_KEY": CANARY})
    assert got.openai_api_key is not None
    assert got.openai_api_key.get_secret_value() == CANARY
    texts = [
        repr(got),
        str(got),
        got.model_dump_json(),
        str(got.model_dump()),
        repr(got.origins),
        repr(vars(got)),
    ]
    with pytest.raises(ConfigError) as caught:
        harness.load(
            env={"OPENAI_API_KEY": f"{CANARY} x", "AUTHORIZATION_KEY": f"{CANARY}\n", "SERVER_PORT": "x"}
        )
    texts += traceback.format_exception(caught.value)
    texts += [repr(caught.value), repr(caught.value.problems)]
    assert caught.value.__context__ is None
    assert not [text for text in texts if CANARY in text]


MISPLACED = [
    f"OPENAI_API_KEY = '{CANARY}'",
    f"authorization_key = '{CANARY}'",
    f"[upstream]\nopenai_api_key = '{CANARY}'",
    f"[upstream]\nbase_url = 'https://me:{CANARY}@host/v1'",
    f"[upstream]\nbase_url = 'ftp://host/v1?key={CANARY}'",
    f"[server]\nhost = 'sk-{CANARY} x'",
    f"[server]\n'sk-{CANARY}' = 1",
]


@pytest.mark.parametrize("toml", MISPLACED)
def test_a_misplaced_secret_is_not_repeated(harness: ConfigHarness, toml: str) -> None:
    """A secret in the wrong place is refused without being shown."""
    problems = harness.problems(toml)
    assert len(problems) == 1
    assert CANARY not in problems[0]


def test_settings_are_frozen(harness: ConfigHarness) -> None:
    """Nobody changes settings by accident."""
    got = harness.load()
    with pytest.raises(ValueError, match="frozen"):
        got.state_dir = Path("/")
    with pytest.raises(ValueError, match="frozen"):
        got.server.port = 1


def test_import_is_light() -> None:
    """Importing the configuration loads nothing of the daemon: no Tornado, SDK, HTTP client or TLS."""
    code = "import sys, relayd.config; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "pydantic" in loaded
    assert not loaded & {"tornado", "openai", "aiohttp", "httpx2", "httpx", "textual", "sqlite3", "difflib"}
