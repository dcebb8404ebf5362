"""relayd.toml: which file is read, what is said about unknown keys, and the line of each key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.config.toml import KeyPath, key_lines
from tests.config.harness import ConfigHarness


def test_search_order(harness: ConfigHarness) -> None:
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


def test_a_named_file_must_exist(harness: ConfigHarness) -> None:
    """A path that was given is an error when nothing is there; it never falls back to another file."""
    harness.write("relayd.toml", "server.port = 2")
    absent = "which does not exist."
    assert harness.problems(config_path=Path("a.toml")) == [f"command line: --config names a.toml, {absent}"]
    env = {"RELAYD_CONFIG": "/no/b.toml"}
    assert harness.problems(env=env) == [f"environment: RELAYD_CONFIG names /no/b.toml, {absent}"]
    harness.write(".env", "RELAYD_CONFIG=c.toml")
    assert harness.problems() == [f".env:1: RELAYD_CONFIG names c.toml, {absent}"]


def test_files_that_cannot_be_read(harness: ConfigHarness) -> None:
    """A directory, a loop, a file that is too large or not text is refused with its reason."""
    (harness.cwd / "dir").mkdir()
    (harness.cwd / "loop").symlink_to("loop")
    (harness.cwd / "large").write_text("#" * (1024 * 1024 + 1))
    (harness.cwd / "bytes").write_bytes(b"# ok\n\n# \xff\n")
    reasons = {
        "dir": "is not a regular file",
        "/dev/null": "is not a regular file",
        "loop": "cannot be read: Too many levels of symbolic links",
        "large": "is larger than 1048576 bytes",
        "bytes": "is not UTF-8 text (line 3)",
    }
    for name, reason in reasons.items():
        assert harness.problems(config_path=Path(name)) == [f"{name}: this file {reason}."]


SYNTAX = [
    ("a = ", "relayd.toml:1:5: this is not TOML: a value is missing or misspelt (text needs quotes)."),
    ("[server]\nport = 1\nport = 2", "relayd.toml:3:9: this is not TOML: this key or table stands twice."),
    ("[server]\n[log]\n[server]", "relayd.toml:3:8: this is not TOML: this table stands twice."),
    ("[server", "relayd.toml:1:8: this is not TOML: expected ']' at the end of a table declaration."),
    ("a = '\x07'", r"relayd.toml:1:6: this is not TOML: found invalid character '\x07'."),
    ("# \r\n\r\na b", "relayd.toml:3:3: this is not TOML: expected '=' after a key in a key/value pair."),
    (f"a = {'9' * 5000}", "relayd.toml: a number in it is too long, or its brackets are nested too deep."),
    (f"a = {'[' * 5000}", "relayd.toml: a number in it is too long, or its brackets are nested too deep."),
]


@pytest.mark.parametrize(("toml", "sentence"), SYNTAX, ids=range(len(SYNTAX)))
def test_syntax(harness: ConfigHarness, toml: str, sentence: str) -> None:
    """What is not TOML is refused with file, line and column."""
    assert harness.problems(toml) == [sentence]


SECTIONS = "there are [server], [cors], [chat], [upstream], [keys], [tls], [log], [admin]."
AT_THE_TOP = SECTIONS.replace("are ", "are state_dir, openai_api_key_file, ")
IN_SERVER = (
    "[server] has host, port, keep_alive_s, page, max_body_bytes, header_timeout_s, body_timeout_s,"
    " write_timeout_s, max_streams, max_streams_per_address, drain_timeout_s, trusted_proxies."
)
ELSEWHERE = "does not belong in this file; put {} in the environment or .env"
A_FILE = ", or the path of a file in openai_api_key_file."
UNKNOWN = [
    ("port = 1", "1: unknown key port; did you mean server.port?"),
    ("\nserver.prot = 1", "2: unknown key server.prot; did you mean server.port?"),
    ("[chat]\nbase_url = 1", "2: unknown key chat.base_url; did you mean upstream.base_url?"),
    ("[upstream]\nheartbeat = 1", "2: unknown key upstream.heartbeat; did you mean chat.heartbeat_s?"),
    ("[keys]\n'a\\b\t' = 1", "2: unknown key keys.a\\b\\t; [keys] has grace_s."),
    ("colour = 1", f"1: unknown key colour; {AT_THE_TOP}"),
    ("[colour]\na = 1\nb = 2", f"1: unknown section colour; {SECTIONS}"),
    ("[sever.x]\ny = 1", "1: unknown section sever; did you mean [server]?"),
    ("[server.port]\na = 1", "1: server.port is a table, but must be a whole number from 0 to 65535."),
    ("[server.x]\ny = 1", f"1: unknown key server.x; {IN_SERVER}"),
    ("'server.port' = 1", f"1: unknown key server.port; {AT_THE_TOP}"),
    ("server = 3", "1: server must be a table, written [server]."),
    ("[[server]]\nport = 1", "1: server must be a table, written [server]."),
    ("[log]\nOPENAI_API_KEY = 1", f"2: openai_api_key {ELSEWHERE.format('OPENAI_API_KEY')}{A_FILE}"),
    ("authorization_key = 1", f"1: authorization_key {ELSEWHERE.format('AUTHORIZATION_KEY')}."),
    ("SERVER_PORT = 1", "1: unknown key SERVER_PORT; did you mean server.port?"),
]


@pytest.mark.parametrize(("toml", "sentence"), UNKNOWN)
def test_unknown_keys(harness: ConfigHarness, toml: str, sentence: str) -> None:
    """An unknown or misplaced key is refused with its line, and the key that was meant or all there are."""
    assert harness.problems(toml) == [f"relayd.toml:{sentence}"]


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


FORMS = [
    pytest.param("a = 1", {("a",): 1}, id="bare"),
    pytest.param("\n\n# c\na = 1 # d\n", {("a",): 4}, id="blank lines and comments"),
    pytest.param("\"a b\" = 1\n'c.d' = 2", {("a b",): 1, ("c.d",): 2}, id="quoted"),
    pytest.param(r'"\u0061\"\t" = 1', {('a"\t',): 1}, id="escapes in a quoted key"),
    pytest.param("[a]\nb = 1", {("a",): 1, ("a", "b"): 2}, id="table"),
    pytest.param("\n[ a . 'b' ]\nc = 1", {("a",): 2, ("a", "b"): 2, ("a", "b", "c"): 3}, id="dotted table"),
    pytest.param("a . b = 1\na.c = 2", {("a",): 1, ("a", "b"): 1, ("a", "c"): 2}, id="dotted key"),
    pytest.param(
        "a = {b = 1, c.d = 2}", {("a",): 1, ("a", "b"): 1, ("a", "c"): 1, ("a", "c", "d"): 1}, id="inline"
    ),
    pytest.param(
        "a = {\n b = 1,\n c = {\n d = 2 } }\ne = 1",
        {("a",): 1, ("a", "b"): 1, ("a", "c"): 1, ("a", "c", "d"): 1, ("e",): 5},
        id="inline over several lines",
    ),
    pytest.param("a = [\n1,\n[2, '}'], # ]\n{ b = 1 }\n]\nc = 1", {("a",): 1, ("c",): 6}, id="array"),
    pytest.param('a = """\nb = 1\n[c]\n"""\nd = 1', {("a",): 1, ("d",): 5}, id="long basic string"),
    pytest.param(
        "a = '''\n''b = 1'''''\nd = 1", {("a",): 1, ("d",): 3}, id="long literal string with quotes"
    ),
    pytest.param('a = """x\\""""""\nd = 1', {("a",): 1, ("d",): 2}, id="escaped quote before the end"),
    pytest.param("a = '\\'\nb = \"\\\\\"\nc = 1", {("a",): 1, ("b",): 2, ("c",): 3}, id="backslashes"),
    pytest.param("a = 1979-05-27 07:32:00 # x\nb = 1", {("a",): 1, ("b",): 2}, id="date with a space"),
    pytest.param("[[a]]\nb = 1\n[[a]]\nb = 2", {("a",): 1, ("a", "b"): 2}, id="array of tables: the first"),
    pytest.param("", {}, id="nothing"),
]


@pytest.mark.parametrize(("text", "lines"), FORMS)
def test_every_form(text: str, lines: dict[KeyPath, int]) -> None:
    """Each way to write a key in TOML gives the line on which the key stands."""
    tomli.loads(text)
    assert key_lines(text) == lines


def test_deep_nesting() -> None:
    """Nesting as deep as the parser takes it needs no recursion."""
    deep = 150
    text = f"a = {'[' * deep}{']' * deep}\nb = {'{c=' * deep}1{'}' * deep}\nd = 1"
    tomli.loads(text)
    assert key_lines(text)["d",] == 3


BLANKS = st.sampled_from(["", "\n", "# a = 0\n", "\n  \t\n", "# [x]\n\n"])
VALUES = st.sampled_from(
    [
        "1",
        "-2.5e3",
        "true",
        "'x # y'",
        '"\\" = [x]"',
        "'''\n[x]\na = 1\n'''",
        '"""\n\\""" # """',
        "[\n1, # ]\n'}',\n]",
        "[{ a = 1 }, { a = [2] }]",
        "1979-05-27T07:32:00Z",
        "[]",
        "{}",
        "{ a.b = 1, 'c' = [ {} ] }",
    ]
)
QUOTES = st.sampled_from(["{}", '"{}"', "'{}'"])


@st.composite
def numbered(draw: st.DrawFn) -> str:
    """A TOML text in which the value of each key `lineN` is the line that the key stands on."""
    text = ""
    for table in range(draw(st.integers(0, 4))):
        if table:
            text += draw(BLANKS) + draw(QUOTES).format(f"t{table}").join(["[", "]\n"])
        for row in range(draw(st.integers(0, 4))):
            text += draw(BLANKS)
            dots = draw(st.sampled_from(["", f"p{row}.", f"p{row} . 'q' ."]))
            pair = f"{dots}{draw(QUOTES).format(f'line{row}')} = {text.count(chr(10)) + 1}"
            inline = draw(st.booleans())
            text += f"in{row} = {{ {pair}, x = {draw(VALUES)} }}\n" if inline else f"{pair}\n"
            text += f"other{row} = {draw(VALUES)}\n"
    return text


def leaves(table: dict[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every key of a parsed document that is not inside an array, tables included."""
    for name, value in table.items():
        yield (*path, name), value
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(numbered())
def test_any_document(text: str) -> None:
    """In any mixture of forms every key has a line, and each `lineN` has the line it carries as its value."""
    lines = key_lines(text)
    found = dict(leaves(tomli.loads(text)))
    assert set(found) == set(lines)
    for path, value in found.items():
        if path[-1].startswith("line"):
            assert lines[path] == value
