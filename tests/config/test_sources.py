"""Tests for relayd.config.sources: the command line, the environment and `.env`."""

from __future__ import annotations

import pytest

from relayd.config import KEYS, OriginKind
from relayd.config.sources import VARIABLES
from tests.config.harness import ConfigHarness

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
def test_values_from_text(harness: ConfigHarness, name: str, text: str, value: object) -> None:
    """In the environment and on the command line numbers, booleans and lists come as text."""
    variable = next(variable for variable, key in VARIABLES.items() if key == name)
    from_env, from_cli = harness.load(env={variable: text}), harness.load(cli={name: text})
    assert from_env.value(name) == from_cli.value(name) == value
    assert type(from_env.value(name)) is type(value)


WRONG_TEXT = [
    ("RELAYD_SERVER__PORT", "", '""'),
    ("RELAYD_SERVER__PORT", "3.5", '"3.5"'),
    ("RELAYD_SERVER__PORT", "٣", '"٣"'),
    ("RELAYD_SERVER__PORT", "9" * 5000, f'"{"9" * 60}…"'),
    ("RELAYD_CHAT__HEARTBEAT_S", "nan", "nan"),
    ("RELAYD_CHAT__HEARTBEAT_S", "30s", '"30s"'),
    ("RELAYD_UPSTREAM__INCLUDE_USAGE", "maybe", '"maybe"'),
    ("RELAYD_CORS__ALLOW_ORIGINS", "[", '"["'),
    ("RELAYD_CORS__ALLOW_ORIGINS", "[" * 9999, f'"{"[" * 60}…"'),
    ("RELAYD_CHAT__ALLOWED_MODELS", "[1]", "1"),
    ("RELAYD_CHAT__DEFAULT_MODEL", "\x1b[2J\u202e", r'"\x1b[2J\u202e"'),
    ("RELAYD_TLS__KEY", "a\0b", r'"a\x00b"'),
]


@pytest.mark.parametrize(("variable", "text", "shown"), WRONG_TEXT)
def test_wrong_text(harness: ConfigHarness, variable: str, text: str, shown: str) -> None:
    """Text that is no value of its key is refused by the variable's name, and shown without control codes."""
    (sentence,) = harness.problems(env={variable: text})
    assert sentence.startswith(f"environment: {variable} (")
    assert f" is {shown}, but must be " in sentence


def test_every_key_has_its_variable() -> None:
    """Section and key are joined by two underscores; secrets and the port have the names kept from before."""
    assert set(VARIABLES.values()) == set(KEYS)
    assert VARIABLES["RELAYD_UPSTREAM__BASE_URL"] == "upstream.base_url"
    assert VARIABLES["RELAYD_STATE_DIR"] == "state_dir"
    assert {name: key for name, key in VARIABLES.items() if not name.startswith("RELAYD_")} == {
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
def test_unknown_variables(harness: ConfigHarness, variable: str, hint: str) -> None:
    """A RELAYD_ variable that means nothing stops the start, wherever it stands, with the nearest name."""
    assert harness.problems(env={variable: "secret"}) == [f"environment: unknown variable {variable}; {hint}"]
    harness.write(".env", f"\n{variable}=secret")
    assert harness.problems() == [f".env:2: unknown variable {variable}; {hint}"]


def test_names_that_are_not_ours(harness: ConfigHarness) -> None:
    """Other programs' variables are left alone, in the environment and in a shared .env."""
    harness.write(".env", "PORT=x\nrelayd_server__port=x\nPGPASSWORD=y\n")
    assert harness.load(env={"PATH": "/bin", "OPENAI_ORG": "z", "XRELAYD_A": "1"}).server.port == 3666


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


def test_dotenv_says_the_last_word_once(harness: ConfigHarness) -> None:
    """Of two lines for one variable the later one counts."""
    harness.write(".env", "SERVER_PORT=1\nSERVER_PORT=2\n")
    assert harness.load().server.port == 2


def test_a_broken_line_about_relayd(harness: ConfigHarness) -> None:
    """A line of .env that cannot be read stops the start when it is about relayd; its text is not shown."""
    harness.write(".env", "A=1\n\nAUTHORIZATION_KEY='secret\n")
    assert harness.problems() == [".env:3: this line cannot be read; write NAME=value, with quotes closed."]


def test_a_broken_line_of_others(harness: ConfigHarness) -> None:
    """A line of .env that cannot be read but is not about relayd is only a warning."""
    harness.write(".env", "A='\nSERVER_PORT=1\n")
    got = harness.load()
    assert got.server.port == 1
    assert got.warnings == (".env:1: this line cannot be read and was ignored.",)


def test_an_open_quote_shows_no_other_line(harness: ConfigHarness) -> None:
    """A quote left open swallows the lines below it; the message shows none of them."""
    harness.write(".env", 'RELAYD_LOG__LEVEL="debug\nAUTHORIZATION_KEY=swallowed\nX="\n')
    (sentence,) = harness.problems()
    assert (
        sentence
        == '.env:1: RELAYD_LOG__LEVEL (log.level) is "debug…", but must be debug, info, warning or error.'
    )


def test_dotenv_is_a_directory(harness: ConfigHarness) -> None:
    """A virtual environment named .env is not a configuration."""
    (harness.cwd / ".env").mkdir()
    assert harness.load().warnings == ()


def test_dotenv_of_bytes(harness: ConfigHarness) -> None:
    """A .env that is not text stops the start, with the line."""
    (harness.cwd / ".env").write_bytes(b"A=1\nB=\xff\n")
    assert harness.problems() == [".env: this file is not UTF-8 text (line 2)."]


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


def test_the_command_line_takes_values(harness: ConfigHarness) -> None:
    """Overrides may be typed values; None is an option that was not given."""
    cert = harness.write("cert", "c")
    overrides = {
        "server.port": 0,
        "server.host": None,
        "cors.allow_origins": ("*",),
        "state_dir": harness.cwd / "s",
    }
    got = harness.load(cli=overrides | {"tls.cert": cert, "tls.key": str(cert)})
    assert (got.server.port, got.server.host, got.state_dir) == (0, "127.0.0.1", harness.cwd / "s")
    assert got.tls.cert == got.tls.key == cert


@pytest.mark.parametrize("name", ["openai_api_key", "authorization_key", "server.prot"])
def test_the_command_line_refuses(harness: ConfigHarness, name: str) -> None:
    """Other users can see arguments: secrets are refused there, as are unknown keys."""
    assert harness.problems(cli={name: "x" * 20}) == [f"command line: {name} cannot be set here."]


def test_a_secret_in_an_open_dotenv(harness: ConfigHarness) -> None:
    """A .env with a secret that every user of the machine can read earns a warning; one without does not."""
    path = harness.write(".env", "SERVER_PORT=1\nOPENAI_API_KEY=sk-1", mode=0o644)
    said = ".env:2: every user of this machine can read OPENAI_API_KEY; chmod 600 .env."
    assert harness.load().warnings == (said,)
    path.chmod(0o640)
    assert harness.load().warnings == ()
    harness.write(".env", "SERVER_PORT=1\n", mode=0o644)
    assert harness.load().warnings == ()
