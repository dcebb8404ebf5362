"""Where values come from: files, `.env`, the environment, the command line, credentials and key files."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from relayd.config import KEYS, OriginKind, Settings
from relayd.config.sources import VARIABLES
from tests.config.harness import ConfigHarness


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


@pytest.mark.parametrize(
    ("env", "path", "origin"),
    [
        ({}, "home/.local/state/relayd", "environment HOME"),
        ({"XDG_STATE_HOME": "relative"}, "home/.local/state/relayd", "environment HOME"),
        ({"XDG_STATE_HOME": "/xdg"}, "/xdg/relayd", "environment XDG_STATE_HOME"),
        ({"XDG_STATE_HOME": "/xdg", "STATE_DIRECTORY": "/s/a:/s/b"}, "/s/a", "environment STATE_DIRECTORY"),
        ({"STATE_DIRECTORY": "/s/a", "RELAYD_STATE_DIR": "~/x"}, "home/x", "environment RELAYD_STATE_DIR"),
    ],
)
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


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a", "{cwd}/a"),
        ("/a", "/a"),
        ("~", "{cwd}/home"),
        ("~//a", "{cwd}/home/a"),
        ("a~", "{cwd}/a~"),
    ],
)
def test_paths(harness: ConfigHarness, text: str, path: str) -> None:
    """Relative paths begin at the working directory, `~/` at the home directory."""
    assert harness.load(f"state_dir = '{text}'").state_dir == Path(path.format(cwd=harness.cwd))


def test_which_file_is_read(harness: ConfigHarness) -> None:
    """--config, else $RELAYD_CONFIG, else ./relayd.toml, else the system's file, else none."""
    assert harness.load().config_file is None
    system = harness.write("etc/relayd.toml", "server.port = 1")
    assert harness.load().config_file == system
    local = harness.write("relayd.toml", "server.port = 2")
    assert (harness.load().config_file, harness.load().server.port) == (local, 2)
    harness.write("in-dotenv.toml", "server.port = 3")
    harness.write(".env", "RELAYD_CONFIG=in-dotenv.toml")
    assert harness.load().server.port == 3
    harness.write("home/named.toml", "server.port = 4")
    env = {"RELAYD_CONFIG": "~/named.toml"}
    assert harness.load(env=env).server.port == 4
    given = harness.write("given.toml", "server.port = 5")
    assert harness.load(env=env, config_path=Path("given.toml")).config_file == given
    assert harness.load(env=env | {"RELAYD_CONFIG": ""}).server.port == 2


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("server.port", " 8080 ", 8080),
        ("chat.heartbeat_s", ".5", 0.5),
        ("chat.heartbeat_s", "30", 30.0),
        ("upstream.include_usage", "False", False),
        ("upstream.include_usage", "on", True),
        ("cors.allow_origins", "", ()),
        ("cors.allow_origins", "https://a.example, http://b,", ("https://a.example", "http://b")),
        ("cors.allow_origins", '["https://a.example"]', ("https://a.example",)),
        ("chat.allowed_models", "gpt-4o", ("gpt-4o",)),
        ("admin.group", "", ""),
        ("tls.cert", "", None),
        ("log.level", "debug", "debug"),
    ],
)
def test_values_from_text(harness: ConfigHarness, name: str, text: str, value: object) -> None:
    """In the environment and on the command line numbers, booleans and lists come as text."""
    variable = next(variable for variable, key in VARIABLES.items() if key == name)
    from_env, from_cli = harness.load(env={variable: text}), harness.load(cli={name: text})
    assert from_env.value(name) == from_cli.value(name) == value
    assert type(from_env.value(name)) is type(value)


def test_the_command_line_takes_typed_values(harness: ConfigHarness) -> None:
    """None is an option that was not given."""
    overrides = {"server.port": 0, "server.host": None, "state_dir": harness.cwd / "s"}
    got = harness.load(cli=overrides)
    assert (got.server.port, got.server.host, got.state_dir) == (0, "127.0.0.1", harness.cwd / "s")


def test_every_key_has_its_variable() -> None:
    """Section and key are joined by two underscores; secrets and the port have the names kept from before."""
    assert set(VARIABLES.values()) == {name for name, key in KEYS.items() if not key.is_table}
    assert VARIABLES["RELAYD_UPSTREAM__BASE_URL"] == "upstream.base_url"
    assert VARIABLES["RELAYD_STATE_DIR"] == "state_dir"
    assert {name: key for name, key in VARIABLES.items() if not name.startswith("RELAYD_")} == {
        "OPENAI_API_KEY": "openai_api_key",
        "AUTHORIZATION_KEY": "authorization_key",
        "SERVER_PORT": "server.port",
    }


def test_names_of_other_programs(harness: ConfigHarness) -> None:
    """They are left alone in the environment and in a shared .env, a line that cannot be read too."""
    harness.write(".env", "PORT=x\nrelayd_server__port=x\nA='\nPGPASSWORD=y\n")
    got = harness.load(env={"PATH": "/bin", "OPENAI_ORG": "z", "XRELAYD_A": "1"})
    assert got.server.port == 3666
    assert got.warnings == (".env:3: this line cannot be read and was ignored.",)


def test_dotenv_forms(harness: ConfigHarness) -> None:
    """The forms that people write in .env are read: export, quotes, comments; `$NAME` is not replaced."""
    lines = ["# c", "", "export SERVER_PORT=81 # here", "RELAYD_CHAT__DEFAULT_MODEL='a#b'"]
    lines += ['AUTHORIZATION_KEY="$HOME ${HOME} \\"quoted\\""', "OPENAI_API_KEY = sk-1", "RELAYD_LOG__LEVEL"]
    harness.write(".env", "\r\n".join(lines))
    got = harness.load()
    assert (got.server.port, got.chat.default_model, got.log.level) == (81, "a#b", "info")
    assert got.authorization_key is not None
    assert got.authorization_key.get_secret_value() == '$HOME ${HOME} "quoted"'
    assert str(got.origins["server.port"]) == ".env:3 SERVER_PORT"
    assert str(got.origins["openai_api_key"]) == ".env:6 OPENAI_API_KEY"


def test_dotenv_is_a_directory(harness: ConfigHarness) -> None:
    """A virtual environment named .env is not a configuration."""
    (harness.cwd / ".env").mkdir()
    assert harness.load().warnings == ()


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "AUTHORIZATION_KEY", "SERVER_PORT"])
def test_an_empty_kept_name_is_unset(harness: ConfigHarness, name: str) -> None:
    """Compose files pass empty variables on; they neither count nor hide what .env says."""
    harness.write(".env", f"{name}={'81' if name == 'SERVER_PORT' else 'x' * 16}")
    key = VARIABLES[name]
    assert harness.load(env={name: ""}).origins[key].kind is OriginKind.DOTENV


def test_the_full_name_of_the_port_wins(harness: ConfigHarness) -> None:
    """In one source RELAYD_SERVER__PORT is stronger than SERVER_PORT; a stronger source beats both."""
    harness.write(".env", "RELAYD_SERVER__PORT=1\nSERVER_PORT=2\n")
    assert harness.load().server.port == 1
    assert harness.load(env={"SERVER_PORT": "3"}).server.port == 3


def _provider_key(settings: Settings) -> tuple[str | None, str]:
    """The provider's key in clear, and where it came from."""
    key = settings.openai_api_key
    return None if key is None else key.get_secret_value(), str(settings.origins["openai_api_key"])


def test_a_key_file(harness: ConfigHarness) -> None:
    """openai_api_key_file is read; a line break at its end does not count. An empty name is no file."""
    path = harness.write("key", "sk-file\r\n")
    got = harness.load("openai_api_key_file = 'key'")
    assert _provider_key(got) == ("sk-file", "key")
    assert got.openai_api_key_file == path
    assert got.warnings == ()
    assert harness.load(env={"RELAYD_OPENAI_API_KEY_FILE": ""}).openai_api_key is None


def test_a_key_file_ranks_with_its_source(harness: ConfigHarness) -> None:
    """The file's key is as strong as the source that names it, and weaker than the key in that source."""
    harness.write("key", "sk-file")
    harness.write("key2", "sk-file2")
    toml = "openai_api_key_file = 'key'"
    assert _provider_key(harness.load(toml, env={"OPENAI_API_KEY": "sk-env"}))[0] == "sk-env"
    harness.write(".env", "OPENAI_API_KEY=sk-dotenv")
    assert _provider_key(harness.load(toml))[0] == "sk-dotenv"
    env = {"RELAYD_OPENAI_API_KEY_FILE": "key2"}
    assert _provider_key(harness.load(toml, env=env)) == ("sk-file2", "key2")
    both = harness.load(toml, env=env | {"OPENAI_API_KEY": "sk-env"})
    assert _provider_key(both)[0] == "sk-env"
    (warning,) = both.warnings
    assert warning == (
        "openai_api_key comes from environment OPENAI_API_KEY; "
        "the one from key2 and .env:1 OPENAI_API_KEY is not used."
    )


def test_credentials(harness: ConfigHarness) -> None:
    """Systemd's credentials are read, each by the name of its key; every other source beats them."""
    harness.write("creds/openai_api_key", "sk-credential\n", mode=0o400)
    harness.write("creds/authorization_key", "x" * 16 + "\n", mode=0o400)
    harness.write("creds/other", "\0")
    env = {"CREDENTIALS_DIRECTORY": str(harness.cwd / "creds")}
    got = harness.load(env=env)
    assert _provider_key(got) == ("sk-credential", "creds/openai_api_key")
    assert got.authorization_key is not None
    assert got.authorization_key.get_secret_value() == "x" * 16
    assert got.warnings == ()
    assert _provider_key(harness.load(env=env | {"OPENAI_API_KEY": "sk-env"}))[0] == "sk-env"


def test_import_is_light() -> None:
    """Importing the configuration loads nothing of the daemon: no Tornado, SDK, HTTP client or TLS."""
    code = "import sys, relayd.config; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "pydantic" in loaded
    assert not loaded & {"tornado", "openai", "aiohttp", "httpx2", "httpx", "textual", "sqlite3", "difflib"}
