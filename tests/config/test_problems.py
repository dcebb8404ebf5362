"""What is wrong with a configuration: one sentence each, with place, key and what is allowed."""

from __future__ import annotations

import grp
import os
import pwd
import traceback
from pathlib import Path

import pytest

from relayd.config import ConfigError, load
from relayd.config.values import MAX_KEY_CHARS
from tests.config.harness import ConfigHarness

CANARY = "canary-4711-do-not-show"
NOBODY = 65534


def test_all_problems_at_once(harness: ConfigHarness) -> None:
    """Every fault of every source is told in one go, also where a stronger source overrides the value."""
    harness.write(".env", "\nSERVER_PORT=x\n")
    toml = "[server]\nport = -1\nhost = 5\n\n\n\n\n\n\n[log]\nlevel = 'warn'\nlevels = 1"
    env = {"RELAYD_X": "1", "SERVER_PORT": "1"}
    assert (
        harness.problems(toml, env=env, cli={"chat.heartbeat_s": "0"})
        == """\
relayd.toml:12: unknown key log.levels; did you mean log.level?
environment: unknown variable RELAYD_X; the names are RELAYD_<SECTION>__<KEY> and RELAYD_<KEY>.
relayd.toml:2: server.port is -1, but must be a whole number from 0 to 65535.
relayd.toml:3: server.host is 5, but must be an IP address or a host name, without a port.
relayd.toml:11: log.level is "warn", but must be debug, info, warning or error.
.env:2: SERVER_PORT (server.port) is "x", but must be a whole number from 0 to 65535.
command line: chat.heartbeat_s is "0", but must be a number of seconds above 0, at most 604800.
""".splitlines()
    )


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("server.port = true", "is true"),
        ("server.port = 1.0", "is 1.0"),
        ("server.port = {}", "is a table"),
        ("server.port = 1979-05-27", "is a date"),
        (f"server.port = 0x{'f' * 6000}", "is a huge number"),
        ("chat.heartbeat_s = '3'", 'is "3"'),
        ("chat.heartbeat_s = nan", "is nan"),
        ("chat.heartbeat_s = inf", "is inf"),
        ("upstream.include_usage = 1", "is 1"),
        ("cors.allow_origins = '*'", 'is "*"'),
        ("cors.allow_origins = [3]", "is 3"),
        ("tls.cert = 3", "is 3"),
        ("state_dir = ['x']", "is a list"),
        ("state_dir = ''", 'is ""'),
        ("state_dir = '~other/x'", 'is "~other/x"'),
        (f"chat.default_model = '{'x' * 201}'", f'is "{"x" * 60}…"'),
    ],
)
def test_wrong_types(harness: ConfigHarness, toml: str, says: str) -> None:
    """In the file nothing stands for something else: no boolean for a number, no string, nothing infinite."""
    (sentence,) = harness.problems(toml)
    assert sentence.startswith(f"relayd.toml:1: {toml.partition(' ')[0]}")
    assert f" {says}, but must be " in sentence


@pytest.mark.parametrize(
    ("variable", "text", "shown"),
    [
        ("RELAYD_SERVER__PORT", "", '""'),
        ("RELAYD_SERVER__PORT", "3.5", '"3.5"'),
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
    ],
)
def test_wrong_text(harness: ConfigHarness, variable: str, text: str, shown: str) -> None:
    """Text that is no value of its key is refused by the variable's name, and shown without control codes."""
    (sentence,) = harness.problems(env={variable: text})
    assert sentence.startswith(f"environment: {variable} (")
    assert f" is {shown}, but must be " in sentence


GOOD = {
    "RELAYD_SERVER__HOST": ["127.0.0.1", "::", "localhost", "a-b.example", "x_1", "example.com."],
    "RELAYD_SERVER__TRUSTED_PROXIES": ["10.0.0.1", "10.0.0.0/8", "fd00::/8"],
    "RELAYD_UPSTREAM__BASE_URL": ["https://api.openai.com/v1", "http://[::1]:8080/v1", "https://x"],
    "RELAYD_CORS__ALLOW_ORIGINS": ["*", "http://a.example:8080", "http://[::1]:81", "chrome-extension://abc"],
    "RELAYD_CHAT__DEFAULT_MODEL": ["gpt-4o-mini", "org/model:tag", "ft:gpt-4o:é", "x" * 200],
    "RELAYD_ADMIN__GROUP": ["", grp.getgrgid(os.getgid()).gr_name],
    "OPENAI_API_KEY": ["sk-proj_A-1"],
    "AUTHORIZATION_KEY": ["x" * 16, "correct horse battery", "!" * MAX_KEY_CHARS],
}
WRONG = {
    "RELAYD_SERVER__HOST": [
        "", "a b", "1.2.3.400", "1.2.3", "-a", "a..b", "[::1]", "é.example", "a\n", "127.0.0.1:80",
    ],
    "RELAYD_SERVER__TRUSTED_PROXIES": ["localhost", "10.0.0.0/33", "10.1.2.3/8", "fe80::%/"],
    "RELAYD_UPSTREAM__BASE_URL": [
        "", "x", "https://", "https:///v1", "ftp://a", "//a", "https://a:0", "https://a:99999", "https://a:b",
        "https://a b", "https://a\n/v1", "https://[::1", "https://é", "\thttps://a",
        "https://me@h", "https://h/v1?", "https://h/v1#a",
    ],
    "RELAYD_CORS__ALLOW_ORIGINS": ["null", "*.example", "a.example", "https://", "https://u@a", "https://é"],
    "RELAYD_CHAT__DEFAULT_MODEL": ["", "a b", "a\n", "\u200b"],
    "RELAYD_ADMIN__GROUP": ["no-such-group-here"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "text"), [(name, text) for name, texts in GOOD.items() for text in texts]
)
def test_what_is_allowed(harness: ConfigHarness, variable: str, text: str) -> None:
    """A good value is accepted."""
    assert harness.problems(env={variable: text}) == []


@pytest.mark.parametrize(
    ("variable", "text"), [(name, text) for name, texts in WRONG.items() for text in texts]
)
def test_what_is_refused(harness: ConfigHarness, variable: str, text: str) -> None:
    """A wrong value is refused."""
    (sentence,) = harness.problems(env={variable: text})
    assert sentence.startswith(f"environment: {variable} (")


@pytest.mark.parametrize(
    ("origin", "sent"),
    [
        ("https://a.example/x?y#z", "https://a.example"),
        ("HTTPS://A.example", "https://a.example"),
        ("https://a.example:443", "https://a.example"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_what_browsers_send_instead(harness: ConfigHarness, origin: str, sent: str) -> None:
    """An origin that no browser sends would never match; the right form is told."""
    (sentence,) = harness.problems(f"cors.allow_origins = ['{origin}']")
    assert sentence.endswith(f'; browsers send "{sent}".')


def test_a_slash_at_the_end(harness: ConfigHarness) -> None:
    """A base URL means the same with and without a slash at its end, and is kept without."""
    assert harness.load("upstream.base_url = 'https://h/v1/'").upstream.base_url == "https://h/v1"


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("AUTHORIZATION_KEY", "x" * 15, "it has 15"),
        ("AUTHORIZATION_KEY", "x" * (MAX_KEY_CHARS + 1), "it has more than 4096"),
        ("AUTHORIZATION_KEY", "x" * 16 + "é", "it contains other characters"),
        ("AUTHORIZATION_KEY", "x" * 16 + "\x7f", "it contains other characters"),
        ("AUTHORIZATION_KEY", " " + "x" * 16, "it begins or ends with a space"),
        ("AUTHORIZATION_KEY", "Bearer " + "x" * 16, 'it begins with "Bearer ", which belongs to the header'),
        ("OPENAI_API_KEY", "x" * (MAX_KEY_CHARS + 1), "it has more than 4096"),
        ("OPENAI_API_KEY", "sk-1 sk-2", "it contains a space or a line break"),
        ("OPENAI_API_KEY", "sk-\0", "it contains other characters"),
        ("OPENAI_API_KEY", '"sk-1"', "it is wrapped in quotes"),
    ],
)
def test_a_wrong_secret(harness: ConfigHarness, name: str, text: str, hint: str) -> None:
    """A secret must be able to stand in a header; what is wrong with it is said without repeating it."""
    (sentence,) = harness.problems(env={name: text})
    assert sentence.endswith(f"; {hint}.")
    assert text not in sentence


NOT_A_KEY = "key: openai_api_key must be printable ASCII characters without spaces"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n", f"{NOT_A_KEY}; it is empty."),
        ("sk-1\nsk-2\n", f"{NOT_A_KEY}; it contains a space or a line break."),
        (None, "relayd.toml:1: key cannot be read: No such file or directory."),
    ],
)  # fmt: skip
def test_a_wrong_key_file(harness: ConfigHarness, text: str | None, sentence: str) -> None:
    """A key file that is absent, empty or more than a key stops the start, even if another key is set."""
    if text is not None:
        harness.write("key", text)
    toml = "openai_api_key_file = 'key'"
    assert harness.problems(toml) == harness.problems(toml, env={"OPENAI_API_KEY": "sk-env"}) == [sentence]


def test_files_that_cannot_be_read(harness: ConfigHarness) -> None:
    """A configuration that is absent, no regular file, too large or not text is refused with its reason."""
    harness.write("relayd.toml", "server.port = 2")
    (harness.cwd / "creds/openai_api_key").mkdir(parents=True)
    (harness.cwd / "loop").symlink_to("loop")
    (harness.cwd / "large").write_text("#" * (1024 * 1024 + 1))
    (harness.cwd / "bytes").write_bytes(b"# \xff\n")
    os.mkfifo(harness.cwd / "pipe")
    reasons = {
        "absent": "cannot be read: No such file or directory",
        "pipe": "is not a regular file",
        "loop": "cannot be read: Too many levels of symbolic links",
        "large": "is larger than 1048576 bytes",
        "bytes": "is not UTF-8 text",
    }
    for name, reason in reasons.items():
        sentence = f"{name}: this file {reason}."
        assert harness.problems(config_path=Path(name)) == [sentence]
        assert harness.problems(env={"RELAYD_CONFIG": name}) == [sentence]
    assert harness.problems(env={"CREDENTIALS_DIRECTORY": "creds"}) == [
        "creds/openai_api_key: this file is not a regular file."
    ]


@pytest.mark.parametrize("closed", ["etc/relayd.toml", "etc"])
def test_a_file_without_permission_is_told(harness: ConfigHarness, closed: str) -> None:
    """A file that may not be read, or that is in a closed directory, is named instead of passed over."""
    harness.cwd.chmod(0o755)
    path = harness.write("etc/relayd.toml", "")
    (harness.cwd / closed).chmod(0o000)
    user = os.geteuid()
    os.seteuid(NOBODY if user == 0 else user)
    try:
        problems = harness.problems()
    finally:
        os.seteuid(user)
    path.parent.chmod(0o700)
    assert problems == ["etc/relayd.toml: this file cannot be read: Permission denied."]


def test_a_working_directory_that_may_not_be_entered_holds_no_configuration(harness: ConfigHarness) -> None:
    """As with `sudo -u someone` from /root: the defaults hold."""
    harness.write("relayd.toml", "server.port = 1")
    harness.cwd.chmod(0o600)
    user = os.geteuid()
    if user:
        pytest.skip("only root can become another user")
    os.seteuid(NOBODY)
    try:
        settings = load(
            config_path=None, cli={}, env={"HOME": "/"}, cwd=harness.cwd, system_config=Path("/none")
        )
    finally:
        os.seteuid(user)
        harness.cwd.chmod(0o700)
    assert settings.server.port == 3666


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("RELAYD_OPENAI_API_KEY", "did you mean OPENAI_API_KEY?"),
        ("RELAYD_UPSTREAM_BASE_URL", "did you mean RELAYD_UPSTREAM__BASE_URL?"),
        ("RELAYD_CONFIGS", "did you mean RELAYD_CONFIG?"),
        ("RELAYD_X", "the names are RELAYD_<SECTION>__<KEY> and RELAYD_<KEY>."),
    ],
)
def test_unknown_variables(harness: ConfigHarness, variable: str, hint: str) -> None:
    """A RELAYD_ variable that means nothing stops the start, wherever it stands, with the nearest name."""
    assert harness.problems(env={variable: "secret"}) == [f"environment: unknown variable {variable}; {hint}"]
    harness.write(".env", f"\n{variable}=secret")
    assert harness.problems() == [f".env:2: unknown variable {variable}; {hint}"]


SECTIONS = "server, cors, chat, upstream, v1, state, alerts, keys, tls, log, admin, aliases, prices."
IN_BRACKETS = ", ".join(f"[{name}]" for name in SECTIONS.rstrip(".").split(", "))
AT_THE_TOP = f"there are state_dir, openai_api_key_file, {SECTIONS}"
ELSEWHERE = "does not belong in this file; put {} in the environment or .env."


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("port = 1", "1: unknown key port; did you mean server.port?"),
        ("\nserver.prot = 1", "2: unknown key server.prot; did you mean server.port?"),
        ("[chat]\nbase_url = 1", "2: unknown key chat.base_url; did you mean upstream.base_url?"),
        ("[keys]\n'a\\b\t' = 1", "2: unknown key keys.a\\b\\t; [keys] has grace_s."),
        ("colour = 1", f"1: unknown key colour; {AT_THE_TOP}"),
        ("[colour]\na = 1\nb = 2", f"1: unknown section colour; there are {IN_BRACKETS}."),
        ("[server.port]\na = 1", "1: server.port is a table, but must be a whole number from 0 to 65535."),
        ("'server.port' = 1", f"1: unknown key server.port; {AT_THE_TOP}"),
        ("server = 3", "1: server must be a table, written [server]."),
        ("[[server]]\nport = 1", "1: server must be a table, written [server]."),
        ("[log]\nOPENAI_API_KEY = 1", f"2: openai_api_key {ELSEWHERE.format('OPENAI_API_KEY')}"),
        ("authorization_key = 1", f"1: authorization_key {ELSEWHERE.format('AUTHORIZATION_KEY')}"),
        ("SERVER_PORT = 1", "1: unknown key SERVER_PORT; did you mean server.port?"),
    ],
)  # fmt: skip
def test_unknown_keys(harness: ConfigHarness, toml: str, sentence: str) -> None:
    """An unknown or misplaced key is refused with its line, and the key that was meant or all there are."""
    assert harness.problems(toml) == [f"relayd.toml:{sentence}"]


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("[server]\nport = 1\nport = 2", ":3:9: this is not TOML: cannot overwrite a value."),
        ("# \r\n\r\na b", ":3:3: this is not TOML: expected '=' after a key in a key/value pair."),
        ("a = '\x07'", r":1:6: this is not TOML: found invalid character '\x07'."),
        (f"a = {'9' * 5000}", ": a number in it is too long, or its brackets are nested too deep."),
        (f"a = {'[' * 5000}", ": a number in it is too long, or its brackets are nested too deep."),
    ],
    ids=["twice", "no equals sign", "control", "digits", "brackets"],
)
def test_syntax(harness: ConfigHarness, toml: str, sentence: str) -> None:
    """What is not TOML is refused with file, line and column."""
    assert harness.problems(toml) == [f"relayd.toml{sentence}"]


@pytest.mark.parametrize("value", ['"curl token"', '["curl", 5, "token"]'])
def test_a_wrong_command_is_not_repeated(harness: ConfigHarness, value: str) -> None:
    """There may be a token in it."""
    (sentence,) = harness.problems(f"alerts.command = {value}")
    assert "must be" in sentence
    assert "token" not in sentence


def test_other_line_ends_and_marks(harness: ConfigHarness) -> None:
    """A file from another system, with CRLF and a byte order mark, reads the same, line numbers too."""
    assert harness.load("\ufeff[server]\r\nport = 8\r\n").server.port == 8
    (sentence,) = harness.problems('\ufeff# a\r\nstate_dir = """\r\n/x"""\r\n[server]\r\nport = -1\r\n')
    assert sentence.startswith("relayd.toml:5: server.port is -1")


def test_the_name_of_the_file(harness: ConfigHarness) -> None:
    """A file under the working directory has a short name, another its whole path, neither any controls."""
    harness.write("sub/x.toml", "a = ")
    assert harness.problems(config_path=Path("sub/x.toml"))[0].startswith("sub/x.toml:1:5: ")
    outside = harness.write("etc/relayd.toml", "a = ")
    inner = ConfigHarness(harness.cwd / "sub")
    assert inner.problems(config_path=outside)[0].startswith(f"{outside}:1:5: ")
    harness.write("\x1b]0;x\x07.toml", "a = ")
    assert harness.problems(config_path=Path("\x1b]0;x\x07.toml"))[0].startswith(r"\x1b]0;x\x07.toml:1:5: ")


def test_broken_lines_of_dotenv(harness: ConfigHarness) -> None:
    """A line about relayd that cannot be read stops the start; neither it nor a line it swallows is shown."""
    harness.write(".env", "A=1\n\nAUTHORIZATION_KEY='secret\n")
    assert harness.problems() == [".env:3: this line cannot be read; write NAME=value, with quotes closed."]
    harness.write(".env", 'RELAYD_LOG__LEVEL="debug\nAUTHORIZATION_KEY=swallowed\nX="\n')
    assert harness.problems() == [
        '.env:1: RELAYD_LOG__LEVEL (log.level) is "debug…", but must be debug, info, warning or error.'
    ]


@pytest.mark.parametrize(
    ("toml", "cause", "length"),
    [
        (f"state_dir = '/{'x' * 96}'", "state_dir", 108),
        (f"state_dir = '/{'x' * 95}'", None, 107),
        (f"admin.socket = '/{'é' * 54}'", "admin.socket", 109),
        (f"admin.socket = '/{'x' * 106}'", None, 107),
    ],
)
def test_the_socket_path(harness: ConfigHarness, toml: str, cause: str | None, length: int) -> None:
    """A Unix socket's path is at most 107 bytes; the message names the key that makes it longer."""
    wrong = f"relayd.toml:1: the path of admin.socket is {length} bytes long, but must be at most 107"
    assert harness.problems(toml) == ([f"{wrong}; set a shorter {cause}."] if cause else [])


@pytest.mark.parametrize(
    ("toml", "warning"),
    [
        ("server.host = '0.0.0.0'", "server.host 0.0.0.0 is open to the network without TLS"),
        ("server.host = 'localhost'", None),
        ("server.host = '::1'", None),
        ("upstream.base_url = 'http://10.0.0.1/v1'", "upstream.base_url http://10.0.0.1/v1 is plain HTTP"),
        ("upstream.base_url = 'http://127.0.0.1:1234'", None),
        ("chat.heartbeat_s = 60", "chat.heartbeat_s 60 is long: many proxies give up after 60 s"),
        ("chat.heartbeat_s = 59.5", None),
        ("chat.allowed_models = ['a']", 'chat.default_model "gpt-4o-mini" is not in chat.allowed_models'),
        ("chat.allowed_models = ['a', 'gpt-4o-mini']", None),
    ],
)
def test_warnings(harness: ConfigHarness, toml: str, warning: str | None) -> None:
    """What works but is seldom meant is said, and does not stop the start."""
    said = harness.load(toml).warnings
    assert (said == ()) if warning is None else (len(said) == 1 and said[0].startswith(warning))


def test_keys_that_others_can_read(harness: ConfigHarness) -> None:
    """A TLS key, a key file or a .env with a secret that is open to every user earns a warning."""
    files = [
        harness.write(".env", f"AUTHORIZATION_KEY={'x' * 16}"),
        harness.write("tls.pem", "pem"),
        harness.write("key", "sk-file"),
    ]
    toml = "openai_api_key_file = 'key'\ntls.cert = 'tls.pem'\ntls.key = 'tls.pem'"
    assert harness.load(toml).warnings == ()
    for path in files:
        path.chmod(0o604)
        said = f"{path}: every user of this machine can read this key; chmod 600 it."
        assert harness.load(toml).warnings == (said,)
        path.chmod(0o640)
    harness.write(".env", "SERVER_PORT=1\n", mode=0o644)
    assert harness.load().warnings == ()


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "all_proxy"])
def test_an_ignored_proxy_variable_is_told(harness: ConfigHarness, name: str) -> None:
    """One that other programs would use is named with the remedy; not its value, which has a password."""
    url = f"http://me:{CANARY}@proxy.example:3128"
    (sentence,) = harness.load("", env={name: url}).warnings
    assert sentence == (
        f"environment: {name} is not used; to reach the provider through that proxy,"
        " set upstream.proxy or RELAYD_UPSTREAM__PROXY to it."
    )
    assert harness.load("", env={name: ""}).warnings == ()
    assert harness.load("", env={name: url, "RELAYD_UPSTREAM__PROXY": url}).warnings == ()
    harness.write(".env", f"{name}={url}", mode=0o600)
    (sentence,) = harness.load("").warnings
    assert sentence.startswith(f".env:1: {name} is not used")


def test_a_proxy_password_that_others_can_read(harness: ConfigHarness) -> None:
    """A relayd.toml with the proxy's password that is open to every user earns a warning."""
    path = harness.write("relayd.toml", "upstream.proxy = 'http://me:word@proxy.example:3128'", mode=0o600)
    assert harness.load().warnings == ()
    path.chmod(0o644)
    (sentence,) = harness.load().warnings
    assert sentence.startswith(f"{path}: every user of this machine can read the proxy's password; close it")
    harness.write("relayd.toml", "upstream.proxy = 'http://proxy.example:3128'", mode=0o644)
    assert harness.load().warnings == ()


@pytest.mark.parametrize(
    "url",
    [
        f"ftp://me:{CANARY}@proxy.example",
        f"http://me:{CANARY}@",
        f"http://me:{CANARY}@proxy.example/path",
        f"http://{CANARY}@proxy.example",
        f"socks5://me:{CANARY * 20}@proxy.example",
        f"socks5://me:{CANARY}%C3%BC@proxy.example",
        f"socks5://m%3Ae:{CANARY}@proxy.example",
        f"proxy.example:3128?{CANARY}",
        f"http://me:{CANARY}@proxy.example:99999",
    ],
)
def test_a_proxy_that_cannot_be_used(harness: ConfigHarness, url: str) -> None:
    """The sentence says what is allowed, and repeats nothing of the URL."""
    (sentence,) = harness.problems(env={"RELAYD_UPSTREAM__PROXY": url})
    said = (
        "environment: RELAYD_UPSTREAM__PROXY (upstream.proxy) must be an http://, https:// or socks5:// URL"
    )
    assert sentence.startswith(said)
    assert CANARY not in sentence


def test_a_repr_shows_no_secret(harness: ConfigHarness) -> None:
    """Neither repr, str, dump nor a traceback of a failure with the settings shows a secret."""
    env = {"OPENAI_API_KEY": CANARY, "AUTHORIZATION_KEY": CANARY}
    got = harness.load(env={**env, "RELAYD_UPSTREAM__PROXY": f"http://me:{CANARY}@proxy.example"})
    texts = [repr(got), str(got), got.model_dump_json(), str(got.model_dump()), repr(got.origins)]
    texts.append(repr(vars(got)))
    with pytest.raises(ConfigError) as caught:
        harness.load(
            env={"OPENAI_API_KEY": f"{CANARY} x", "AUTHORIZATION_KEY": f"{CANARY}\n", "SERVER_PORT": "x"}
        )
    texts += traceback.format_exception(caught.value)
    texts += [repr(caught.value), repr(caught.value.problems)]
    assert caught.value.__context__ is None
    assert not [text for text in texts if CANARY in text]


@pytest.mark.parametrize(
    "toml",
    [
        f"OPENAI_API_KEY = '{CANARY}'",
        f"[upstream]\nopenai_api_key = '{CANARY}'",
        f"[upstream]\nbase_url = 'https://me:{CANARY}@host/v1'",
        f"[upstream]\nbase_url = 'ftp://host/v1?key={CANARY}'",
        f"[server]\nhost = 'sk-{CANARY} x'",
        f"[server]\nhost = 'RLY_{CANARY} x'",
        f"[server]\n'sk-{CANARY}' = 1",
    ],
)
def test_a_misplaced_secret_is_not_repeated(harness: ConfigHarness, toml: str) -> None:
    """A secret in the wrong place is refused without being shown."""
    (sentence,) = harness.problems(toml)
    assert CANARY not in sentence


@pytest.mark.parametrize("name", ["relayd.toml", ".env", "key"])
@pytest.mark.parametrize("mode", [0o602, 0o666, 0o622])
def test_a_file_that_others_may_write_is_refused(harness: ConfigHarness, name: str, mode: int) -> None:
    """They could send the provider's key elsewhere: the sentence names the file and the command."""
    path = _write_each(harness)[name]
    assert harness.problems() == []
    group = next(group.gr_gid for group in grp.getgrall() if group.gr_gid not in {0, os.getgid()})
    os.chown(path, -1, group)
    path.chmod(mode)
    (said,) = harness.problems()
    assert f"may be written by other users (mode {mode:04o})" in said
    assert f"chmod go-w {path}" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", ["relayd.toml", ".env", "key"])
def test_a_file_of_another_user_is_refused(harness: ConfigHarness, name: str) -> None:
    """Whatever its mode, its owner may write it: the sentence names the owner and the command."""
    path = _write_each(harness)[name]
    os.chown(path, NOBODY, NOBODY)
    (said,) = harness.problems()
    assert f"belongs to another user (uid {NOBODY})" in said
    assert f"chown 0 {path}" in said


def test_the_private_group_of_the_owner_may_write(harness: ConfigHarness) -> None:
    """Debian's and Fedora's umask of 0002 makes such files, and the group has no other member."""
    user = pwd.getpwuid(os.geteuid())
    group = grp.getgrgid(user.pw_gid)
    if group.gr_name != user.pw_name or set(group.gr_mem) - {user.pw_name}:
        pytest.skip("this user has no private group")
    path = _write_each(harness)["relayd.toml"]
    os.chown(path, -1, user.pw_gid)
    path.chmod(0o664)
    assert harness.problems() == []


def _write_each(harness: ConfigHarness) -> dict[str, Path]:
    """Write every file that can decide where the provider's key goes."""
    key = harness.write("key", "sk-of-the-file")
    return {
        "key": key,
        "relayd.toml": harness.write("relayd.toml", f'openai_api_key_file = "{key}"\n'),
        ".env": harness.write(".env", "SERVER_PORT=0\n"),
    }
