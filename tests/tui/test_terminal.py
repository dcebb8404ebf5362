"""The app in a real pseudo-terminal: what it writes, what it bears, what it leaves behind."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from relayd.admin.schema import RecordedError
from tests.support.processes import cpu_s, state
from tests.tui.past import running_past
from tests.tui.terminal import ROOT, SeenTerminal, Terminal
from tests.wire import until

# What Textual itself writes: CSI, the shape of the mouse pointer (OSC 22), DCS, two-character sequences.
SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\]22;[a-z-]*(?:\x07|\x1b\\)|\x1bP[^\x1b]*\x1b\\"
    r"|\x1b[()][0-9A-Za-z]|\x1b[=>78M]"
)
HOSTILE = "evil\x1b]52;c;aGk=\x07\x1b[31;7;66m\x9b33;66m\x90q\x9c\u202eevil\u200b\u2066\u2028"
FROM_CLIENTS = (b"\x1b]52", b"\x1b[31;7;66m", "\x9b33;66m".encode(), b"\x9b33", "\u202e".encode())
WITHOUT_DAEMON = ("-m", "tui", "--socket", "/nowhere/admin.sock")
RESTORED = (b"\x1b[?1049l", b"\x1b[?1003l", b"\x1b[?25h", b"\x1b[?2004l")
REVERSED = rb"\x1b\[[0-9;]*7[;m]"
PATIENT = """
import sys
import tui.driver
import tui.painter
from tests.wire import PATIENCE_S
from tui.__main__ import main

tui.painter.ANSWER_WITHIN_S = tui.driver._DRAIN_S = PATIENCE_S
sys.exit(main(["--socket", sys.argv[1]]))
"""
"""A busy machine must not look like a terminal that answers no more."""
CRASHING = """
import sys
from relayd.admin.client import AdminClient
from tui.__main__ import main

async def crash(self):
    key = "rly_" + "key_in_a_variable"
    raise RuntimeError("a fault" if key else "")

AdminClient.keys = crash
sys.exit(main(["--socket", sys.argv[1]]))
"""


def text_of(raw: bytes) -> str:
    """What is printed, without the sequences between."""
    return SEQUENCE.sub("", raw.decode(errors="replace"))


def dangerous(raw: bytes) -> set[str]:
    """Characters a terminal acts on that are in no sequence of Textual's own."""
    text = SEQUENCE.sub("", raw.decode())
    return {c for c in text if c not in "\r\n" and unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"}}


async def visit(terminal: Terminal, *screens: tuple[bytes, str]) -> None:
    """Press keys, each time until the screen shows what they lead to."""
    for keys, there in screens:
        terminal.send(keys)
        await terminal.until(lambda raw, there=there: there in text_of(raw))  # type: ignore[misc]  # the loop's own value


async def test_hostile_text_never_reaches_the_terminal(tmp_path: Path) -> None:
    """Every field a client controls is hostile: list, detail, filter and In flight write no such byte."""
    async with running_past(tmp_path) as past:
        for number in range(30):
            record = past.begin(client=HOSTILE, model=HOSTILE, ip=HOSTILE, user_agent=HOSTILE * 100)
            record.origin = record.path = record.upstream_request_id = HOSTILE
            if number % 2:
                past.end(record, finish_reason=HOSTILE, error=RecordedError(HOSTILE, HOSTILE * 100))
        await past.logged()
        with Terminal(("-m", "tui", "--socket", str(past.api.socket)), tmp_path) as terminal:
            await terminal.until(lambda raw: b"LIVE" in raw and b"evil" in raw)
            # Each screen must have been drawn, or its bytes prove nothing.
            await visit(
                terminal,
                (b"k", "FROZEN"),
                (b"\r", "[Summary]"),
                (b"\x1b[C", "came from"),
                (b"\x1b[C", "boot_id"),
                (b"\x1b[F", "upstream_request_id"),
                (b"\x1b[D\x1b[D", "[Summary]"),
                (b"\x1b[F", "upstream_request_id"),
                (b"2", "waits for"),
                (b"4", "US$ this month"),
                (b"1", "[Summary]"),
                (b"\x1b", "Space follow"),
                (b"/evil\r", "of "),
            )
            terminal.send(b"Q")
            assert await terminal.ended() == 0
    assert [bad for bad in FROM_CLIENTS if bad in terminal.raw] == []
    left = SEQUENCE.sub("", terminal.raw.decode())
    at = left.find("\x1b")
    assert dangerous(terminal.raw) == set(), ascii(left[max(0, at - 20) : at + 40])


async def test_it_bears_what_terminals_do_and_leaves_them_as_they_were(tmp_path: Path) -> None:
    """An X10 mouse report, 40x10 and back, a stop: no crash; after Q the screen and modes are restored."""
    with Terminal(WITHOUT_DAEMON, tmp_path) as terminal:
        await terminal.until(lambda raw: b"DOWN" in raw)
        terminal.send(b"\x1b[M \xf0\xa1")
        # At 40 columns the tabs have no titles.
        for size, tab in (((40, 10), b"5   7   8"), ((80, 24), b"Usage")):
            terminal.resize(*size)
            await terminal.until(lambda raw, tab=tab: tab in raw)  # type: ignore[misc]  # the loop's own value
        terminal.signal(signal.SIGSTOP)
        await until(lambda: state(terminal.process.pid) == "T")
        terminal.signal(signal.SIGCONT)
        await visit(terminal, (b"4", "US$ this month"))
        terminal.send(b"Q")
        assert await terminal.ended() == 0
        assert [code for code in RESTORED if code not in terminal.raw[-2000:]] == []


async def test_sigterm_ends_it_in_order(tmp_path: Path) -> None:
    """The terminal is restored, and the exit status tells the signal."""
    with Terminal(WITHOUT_DAEMON, tmp_path) as terminal:
        await terminal.until(lambda raw: b"DOWN" in raw)
        terminal.signal(signal.SIGTERM)
        assert await terminal.ended() == 128 + signal.SIGTERM
        assert [code for code in RESTORED if code not in terminal.raw[-2000:]] == []


async def test_a_crash_shows_where_and_never_the_values(tmp_path: Path) -> None:
    """The traceback names the fault and its place; what the variables hold, a key for one, is left out."""
    async with running_past(tmp_path, past_s=30) as past:
        with Terminal(("-c", CRASHING, str(past.api.socket)), tmp_path, (140, 40)) as terminal:
            assert await terminal.ended() == 1
    assert "RuntimeError: a fault" in text_of(terminal.raw)
    assert "rly_key_in_a_variable" not in text_of(terminal.raw)


async def test_a_closed_window_ends_it_without_spinning(tmp_path: Path) -> None:
    """When the terminal goes away the app is gone within seconds, with little processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Terminal(WITHOUT_DAEMON, tmp_path) as terminal:
        await terminal.until(lambda raw: b"DOWN" in raw)
        until_then_s = cpu_s(terminal.process.pid)
        terminal.hang_up()
        assert await terminal.ended() != 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used_s - until_then_s < 2.0


@pytest.mark.parametrize("how", ["</dev/null", "<&-", "<&- >&-", "--plain >&-"])
def test_without_a_terminal_it_says_so(how: str) -> None:
    """Started from a pipe, or with closed streams, it explains itself in one line and exits 1."""
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$1" -m tui {how}', "sh", sys.executable],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert b"--plain" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(("term", "cursor"), [("screen", "▶"), ("linux", ">")])
async def test_a_terminal_of_few_colours_gets_no_others_and_dialogs_cover_only_themselves(
    tmp_path: Path, term: str, cursor: str
) -> None:
    """With 16 colours only those are used; states are words, the cursor is reversed."""
    async with running_past(tmp_path) as past:
        arguments = ("-m", "tui", "--socket", str(past.api.socket))
        with SeenTerminal(arguments, tmp_path, env={"TERM": term}) as terminal:
            await terminal.shows("LIVE", "500 records", cursor)
            for key, asked in ((b"D", "Drain, then stop"), (b"P", "Pause intake?")):
                terminal.send(key)
                screen = await terminal.shows(asked, "(Esc)", "(y)")
                assert "[1 Requests]" in screen
                # Left of the dialog are the first figures of the times, of every row.
                assert {row[1:3] for row in screen.splitlines()[4:23]} <= {"13", "14"}
                terminal.send(b"\x1b")
                await terminal.shows("Enter open", gone=asked)
            for key, there in ((b"e\r", "[Summary]"), (b"3", "filter by it"), (b"4", "US$ this month")):
                terminal.send(key)
                await terminal.shows(there)
            terminal.send(b"Q")
            assert await terminal.ended() == 0
    assert re.findall(rb"\x1b\[[0-9;]*[34]8;[25]", terminal.raw) == []
    assert re.search(REVERSED, terminal.raw)


async def test_on_a_slow_line_a_key_is_answered_and_no_report_reaches_the_shell(tmp_path: Path) -> None:
    """Few bytes come before the answer; the mouse moves all the time, also while the app ends."""
    async with running_past(tmp_path) as past:
        through = ("sh", "-c", '"$@"; echo READY; IFS= read -r line; echo "<$line>"', "sh")
        arguments = ("-c", PATIENT, str(past.api.socket))
        with SeenTerminal(arguments, tmp_path, through=through, read_bytes=64, mouse=True) as terminal:
            await terminal.shows("LIVE", "FOLLOW", "Enter open")
            for key, there in (
                (b"2", "[2 In"),
                (b"4", "[4 Clients"),
                (b"1", "[1 Requests"),
                (b"k", "FROZEN"),
            ):
                before = len(terminal.raw)
                terminal.send(key)
                await terminal.shows(there)
                assert len(terminal.raw) - before < 6144
            # Nothing is read and answered while the app draws two screens and a dialog.
            terminal.holds_answers = True
            terminal.send(b"41Py")
            await until(lambda: past.api.accepting.refusal)
            # What prints nothing, such as a copied id, comes next after what is on its way.
            terminal.send(b"y")
            assert len(await terminal.until(lambda raw: b"\x1b]52;" in raw)) < 4096
            terminal.holds_answers = False
            await terminal.shows("PAUSED", "[1 Requests")
            # Much is on its way to the screen when the app ends.
            terminal.send(b"2345Q")
            await terminal.until(lambda raw: b"READY" in raw)
            terminal.send(b"done\n")
            assert await terminal.ended() == 0
    assert b"<done>" in terminal.raw
    assert b"^[[" not in terminal.raw


async def test_in_latin_1_without_colours_the_layout_is_whole_and_dialogs_cover_only_themselves(
    tmp_path: Path,
) -> None:
    """Marks and lines of ASCII, escapes for a client's text, rows beside a dialog; QUIT restores it."""
    env = {"LANG": "de_DE.ISO-8859-1", "NO_COLOR": "1"}
    async with running_past(tmp_path) as past:
        for _ in range(30):
            past.begin(client="Köln 中")
        arguments = ("-m", "tui", "--socket", str(past.api.socket))
        with SeenTerminal(arguments, tmp_path, env=env, encoding="latin-1") as terminal:
            screen = await terminal.shows("LIVE", "Köln \\u4e2", "Enter open")
            rows = screen.splitlines()[4:23]
            assert {row[0] for row in rows} == {" ", ">"}
            assert {row[79] for row in rows} <= {"|", "+"}
            for key, shown, behind in (
                (b"D", "Drain, then stop", "Köln"),
                (b":", "Words of an action", "530 records"),
            ):
                terminal.send(key)
                screen = await terminal.shows(shown)
                assert "[1 Requests]" in screen
                assert behind in screen
                terminal.send(b"\x1b")
                await terminal.shows("Köln", gone=shown)
            terminal.signal(signal.SIGQUIT)
            assert await terminal.ended() == 128 + signal.SIGQUIT
    assert "\u2500".encode() not in terminal.raw
    assert re.findall(rb"\x1b\[(?:[0-9;]*;)?[349][0-7][;m]", terminal.raw) == []
    assert re.search(REVERSED, terminal.raw)
    assert [code for code in RESTORED if code not in terminal.raw[-2000:]] == []
