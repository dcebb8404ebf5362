"""Tests for relayd.config.sources: the command line, the environment and `.env`."""

from __future__ import annotations

import pytest

from relayd.config import KEYS, OriginKind
from relayd.config.sources import variables_of
from tests.config.room import Room

FROM_TEXT = [
    ("server.port", "0", 0),
    ("server.port", " 8080 ", 8080),
    ("chat.heartbeat_s", "2.5", 2.5),
    ("chat.heartbeat_s", ".5", 0.5),
    ("chat.heartbeat_s", "30", 30.0),
    ("upstream.include_usage", "False", False),
    ("upstream.include_usage", "on", True),
    ("upstream.include_usage", "0", False),
    ("cors.allow_origins", "", ()),
    (
        "cors.allow_origins",
        "https://a.example, https://b.example,",
        ("https://a.example", "https://b.example"),
    ),
    ("cors.allow_origins", '["https://a.example"]', ("https://a.example",)),
    ("chat.allowed_models", "gpt-4o", ("gpt-4o",)),
    ("admin.group", "", ""),
    ("tls.cert", "", None),
    ("openai_api_key_file", "", None),
    ("log.level", "debug", "debug"),
]


@pytest.mark.parametrize(("name", "text", "value"), FROM_TEXT)
def test_values_from_text(room: Room, name: str, text: str, value: object) -> None:
    """In the environment and on the command line numbers, booleans and lists come as text."""
    variable = next(variable for variable, key in variables_of(KEYS).items() if key == name)
    from_env, from_cli = room.load(env={variable: text}), room.load(cli={name: text})
    assert from_env.value(name) == from_cli.value(name) == value
    assert type(from_env.value(name)) is type(value)


WRONG_TEXT = [
    ("RELAYD_SERVER__PORT", "", '""'),
    ("RELAYD_SERVER__PORT", "1_000", '"1_000"'),
    ("RELAYD_SERVER__PORT", "3.0", '"3.0"'),
    ("RELAYD_SERVER__PORT", "٣", '"٣"'),
    ("RELAYD_SERVER__PORT", "9" * 5000, f'"{"9" * 60}…"'),
    ("RELAYD_CHAT__HEARTBEAT_S", "nan", '"nan"'),
    ("RELAYD_CHAT__HEARTBEAT_S", "30s", '"30s"'),
    ("RELAYD_UPSTREAM__INCLUDE_USAGE", "maybe", '"maybe"'),
    ("RELAYD_CORS__ALLOW_ORIGINS", "[", '"["'),
    ("RELAYD_CORS__ALLOW_ORIGINS", "[" * 9999, f'"{"[" * 60}…"'),
    ("RELAYD_CHAT__ALLOWED_MODELS", "[1]", "1"),
    ("RELAYD_CHAT__DEFAULT_MODEL", "\x1b[2J\u202e", r'"\x1b[2J\u202e"'),
    ("RELAYD_TLS__KEY", "a\0b", r'"a\x00b"'),
]


@pytest.mark.parametrize(("variable", "text", "shown"), WRONG_TEXT)
def test_wrong_text(room: Room, variable: str, text: str, shown: str) -> None:
    """Text that is no value of its key is refused by the variable's name, and shown without control codes."""
    (sentence,) = room.problems(env={variable: text})
    assert sentence.startswith(f"environment: {variable} (")
    assert f" is {shown}, but must be " in sentence


def test_every_key_has_its_variable() -> None:
    """Section and key are joined by two underscores; secrets and the port have the names kept from before."""
    variables = variables_of(KEYS)
    assert set(variables.values()) == set(KEYS)
    assert variables["RELAYD_UPSTREAM__BASE_URL"] == "upstream.base_url"
    assert variables["RELAYD_STATE_DIR"] == "state_dir"
    assert {name: key for name, key in variables.items() if not name.startswith("RELAYD_")} == {
        "OPENAI_API_KEY": "openai_api_key",
        "AUTHORIZATION_KEY": "authorization_key",
        "SERVER_PORT": "server.port",
    }


UNKNOWN = [
    ("RELAYD_OPENAI_API_KEY", "did you mean OPENAI_API_KEY?"),
    ("RELAYD_AUTHORIZATION_KEY", "did you mean AUTHORIZATION_KEY?"),
    ("RELAYD_UPSTREAM__BASEURL", "did you mean RELAYD_UPSTREAM__BASE_URL?"),
    ("RELAYD_UPSTREAM_BASE_URL", "did you mean RELAYD_UPSTREAM__BASE_URL?"),
    ("RELAYD_CONFIGS", "did you mean RELAYD_CONFIG?"),
    ("RELAYD_X", "the names are RELAYD_<SECTION>__<KEY>, or RELAYD_<KEY> at the top."),
]


@pytest.mark.parametrize(("variable", "hint"), UNKNOWN)
def test_unknown_variables(room: Room, variable: str, hint: str) -> None:
    """A RELAYD_ variable that means nothing stops the start, wherever it stands, with the nearest name."""
    assert room.problems(env={variable: "secret"}) == [f"environment: unknown variable {variable}; {hint}"]
    room.write(".env", f"\n{variable}=secret")
    assert room.problems() == [f".env:2: unknown variable {variable}; {hint}"]


def test_names_that_are_not_ours(room: Room) -> None:
    """Other programs' variables are left alone, in the environment and in a shared .env."""
    room.write(".env", "PORT=x\nrelayd_server__port=x\nPGPASSWORD=y\n")
    assert room.load(env={"PATH": "/bin", "OPENAI_ORG": "z", "XRELAYD_A": "1"}).server.port == 3666


def test_dotenv_forms(room: Room) -> None:
    """The forms that people write in .env are read: export, quotes, comments; `$NAME` is not replaced."""
    lines = ["# c", "", "export SERVER_PORT=81 # here", "RELAYD_CHAT__DEFAULT_MODEL='a#b'"]
    lines += ['AUTHORIZATION_KEY="$HOME ${HOME} \\"quoted\\""', "OPENAI_API_KEY = sk-1", "RELAYD_LOG__LEVEL"]
    room.write(".env", "\r\n".join(lines))
    got = room.load()
    assert (got.server.port, got.chat.default_model, got.log.level) == (81, "a#b", "info")
    assert got.authorization_key is not None
    assert got.authorization_key.get_secret_value() == '$HOME ${HOME} "quoted"'
    assert str(got.origins["server.port"]) == ".env:3 SERVER_PORT"
    assert str(got.origins["openai_api_key"]) == ".env:6 OPENAI_API_KEY"


def test_dotenv_says_the_last_word_once(room: Room) -> None:
    """Of two lines for one variable the later one counts."""
    room.write(".env", "SERVER_PORT=1\nSERVER_PORT=2\n")
    assert room.load().server.port == 2


def test_a_broken_line_about_relayd(room: Room) -> None:
    """A line of .env that cannot be read stops the start when it is about relayd; its text is not shown."""
    room.write(".env", "A=1\n\nAUTHORIZATION_KEY='secret\n")
    assert room.problems() == [".env:3: this line cannot be read; write NAME=value, with quotes closed."]


def test_a_broken_line_of_others(room: Room) -> None:
    """A line of .env that cannot be read but is not about relayd is only a warning."""
    room.write(".env", "A='\nSERVER_PORT=1\n")
    got = room.load()
    assert got.server.port == 1
    assert got.warnings == (".env:1: this line cannot be read and was ignored.",)


def test_an_open_quote_shows_no_other_line(room: Room) -> None:
    """A quote left open swallows the lines below it; the message shows none of them."""
    room.write(".env", 'RELAYD_LOG__LEVEL="debug\nAUTHORIZATION_KEY=swallowed\nX="\n')
    (sentence,) = room.problems()
    assert (
        sentence
        == '.env:1: RELAYD_LOG__LEVEL (log.level) is "debug…", but must be debug, info, warning or error.'
    )


def test_dotenv_is_a_directory(room: Room) -> None:
    """A virtual environment named .env is not a configuration."""
    (room.cwd / ".env").mkdir()
    assert room.load().warnings == ()


def test_dotenv_of_bytes(room: Room) -> None:
    """A .env that is not text stops the start, with the line."""
    (room.cwd / ".env").write_bytes(b"A=1\nB=\xff\n")
    assert room.problems() == [".env: this file is not UTF-8 text (line 2)."]


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "AUTHORIZATION_KEY", "SERVER_PORT"])
def test_an_empty_kept_name_is_unset(room: Room, name: str) -> None:
    """Compose files pass empty variables on; they neither count nor hide what .env says."""
    room.write(".env", f"{name}={'81' if name == 'SERVER_PORT' else 'x' * 16}")
    key = variables_of(KEYS)[name]
    assert room.load(env={name: ""}).origins[key].kind is OriginKind.DOTENV


def test_the_full_name_of_the_port_wins(room: Room) -> None:
    """In one source RELAYD_SERVER__PORT is stronger than SERVER_PORT; a stronger source beats both."""
    room.write(".env", "RELAYD_SERVER__PORT=1\nSERVER_PORT=2\n")
    assert room.load().server.port == 1
    assert room.load(env={"SERVER_PORT": "3"}).server.port == 3


def test_the_command_line_takes_values(room: Room) -> None:
    """Overrides may be typed values; None is an option that was not given."""
    cert = room.write("cert", "c")
    overrides = {
        "server.port": 0,
        "server.host": None,
        "cors.allow_origins": ("*",),
        "state_dir": room.cwd / "s",
    }
    got = room.load(cli=overrides | {"tls.cert": cert, "tls.key": str(cert)})
    assert (got.server.port, got.server.host, got.state_dir) == (0, "127.0.0.1", room.cwd / "s")
    assert got.tls.cert == got.tls.key == cert


@pytest.mark.parametrize("name", ["openai_api_key", "authorization_key", "server.prot"])
def test_the_command_line_refuses(room: Room, name: str) -> None:
    """Other users can see arguments: secrets are refused there, as are unknown keys."""
    assert room.problems(cli={name: "x" * 20}) == [f"command line: {name} cannot be set here."]


def test_a_secret_in_an_open_dotenv(room: Room) -> None:
    """A .env with a secret that every user of the machine can read earns a warning; one without does not."""
    path = room.write(".env", "SERVER_PORT=1\nOPENAI_API_KEY=sk-1", mode=0o644)
    said = ".env:2: every user of this machine can read OPENAI_API_KEY; chmod 600 .env."
    assert room.load().warnings == (said,)
    path.chmod(0o640)
    assert room.load().warnings == ()
    room.write(".env", "SERVER_PORT=1\n", mode=0o644)
    assert room.load().warnings == ()
