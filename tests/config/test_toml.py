"""Tests for relayd.config.toml: which file is read, and what is said about keys that nobody knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.room import Room


def test_search_order(room: Room) -> None:
    """--config, else $RELAYD_CONFIG, else ./relayd.toml, else the system's file, else none."""
    assert room.load().config_file is None
    system = room.write("etc/relayd.toml", "server.port = 1")
    assert room.load().config_file == system
    local = room.write("relayd.toml", "server.port = 2")
    assert (room.load().config_file, room.load().server.port) == (local, 2)
    room.write("in-dotenv.toml", "server.port = 3")
    room.write(".env", "RELAYD_CONFIG=in-dotenv.toml")
    assert room.load().server.port == 3
    room.write("home/named.toml", "server.port = 4")
    env = {"RELAYD_CONFIG": "~/named.toml"}
    assert room.load(env=env).server.port == 4
    given = room.write("given.toml", "server.port = 5")
    assert room.load(env=env, config_path=Path("given.toml")).config_file == given
    assert room.load(env=env | {"RELAYD_CONFIG": ""}).server.port == 2


def test_a_named_file_must_exist(room: Room) -> None:
    """A path that was given is an error when nothing is there; it never falls back to another file."""
    room.write("relayd.toml", "server.port = 2")
    absent = "which does not exist."
    assert room.problems(config_path=Path("a.toml")) == [f"command line: --config names a.toml, {absent}"]
    env = {"RELAYD_CONFIG": "/no/b.toml"}
    assert room.problems(env=env) == [f"environment: RELAYD_CONFIG names /no/b.toml, {absent}"]
    room.write(".env", "RELAYD_CONFIG=c.toml")
    assert room.problems() == [f".env:1: RELAYD_CONFIG names c.toml, {absent}"]


def test_files_that_cannot_be_read(room: Room) -> None:
    """A directory, a loop, a file that is too large or not text is refused with its reason."""
    (room.cwd / "dir").mkdir()
    (room.cwd / "loop").symlink_to("loop")
    (room.cwd / "large").write_text("#" * (1024 * 1024 + 1))
    (room.cwd / "bytes").write_bytes(b"# ok\n\n# \xff\n")
    reasons = {
        "dir": "is not a regular file",
        "/dev/null": "is not a regular file",
        "loop": "cannot be read: Too many levels of symbolic links",
        "large": "is larger than 1048576 bytes",
        "bytes": "is not UTF-8 text (line 3)",
    }
    for name, reason in reasons.items():
        assert room.problems(config_path=Path(name)) == [f"{name}: this file {reason}."]


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
def test_syntax(room: Room, toml: str, sentence: str) -> None:
    """What is not TOML is refused with file, line and column."""
    assert room.problems(toml) == [sentence]


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
def test_unknown_keys(room: Room, toml: str, sentence: str) -> None:
    """An unknown or misplaced key is refused with its line, and the key that was meant or all there are."""
    assert room.problems(toml) == [f"relayd.toml:{sentence}"]


def test_other_line_ends_and_marks(room: Room) -> None:
    """A file from another system, with CRLF and a byte order mark, reads the same, line numbers too."""
    assert room.load("\ufeff[server]\r\nport = 8\r\n").server.port == 8
    (sentence,) = room.problems('\ufeff# a\r\nstate_dir = """\r\n/x"""\r\n[server]\r\nport = -1\r\n')
    assert sentence.startswith("relayd.toml:5: server.port is -1")


def test_the_name_of_the_file(room: Room) -> None:
    """A file under the working directory has a short name, another its whole path, neither any controls."""
    room.write("sub/x.toml", "a = ")
    assert room.problems(config_path=Path("sub/x.toml"))[0].startswith("sub/x.toml:1:5: ")
    outside = room.write("etc/relayd.toml", "a = ")
    inner = Room(room.cwd / "sub")
    assert inner.problems(config_path=outside)[0].startswith(f"{outside}:1:5: ")
    room.write("\x1b]0;x\x07.toml", "a = ")
    assert room.problems(config_path=Path("\x1b]0;x\x07.toml"))[0].startswith(r"\x1b]0;x\x07.toml:1:5: ")
