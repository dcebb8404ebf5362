"""What goes to stderr: relayd's own messages, in a form for people or for journald."""

from __future__ import annotations

import logging
import os
import re
import select
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from relayd.logs import set_level, set_up_logging


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("relayd")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before


def test_a_person_reads_time_level_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    """UTC with milliseconds, as in the records."""
    set_up_logging("info", {})
    logging.getLogger("relayd.request").info("request %s", "id=abc")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    request id=abc\n", capsys.readouterr().err
    )


def test_journald_gets_a_level_on_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Also on each line of a traceback; the time is journald's own."""
    set_up_logging("debug", {"JOURNAL_STREAM": "8:1"})
    log = logging.getLogger("relayd.x")
    log.debug("d")
    log.info("i")
    log.warning("w")
    log.error("two\nlines")
    assert capsys.readouterr().err == "<7>d\n<6>i\n<4>w\n<3>two\n<3>lines\n"


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")]
)
def test_the_level_is_the_least_that_is_shown(
    capsys: pytest.CaptureFixture[str], level: str, shown: str
) -> None:
    """And it can change while the daemon runs."""
    for change in (partial(set_up_logging, level, {"JOURNAL_STREAM": ""}), partial(set_level, level)):
        change()
        log = logging.getLogger("relayd.x")
        for say, word in ((log.debug, "d"), (log.info, "i"), (log.warning, "w"), (log.error, "e")):
            say(word)
        assert re.sub(r"<.>|\n", "", capsys.readouterr().err) == shown
        set_level("error")


@pytest.mark.parametrize("library", ["openai", "httpx2", "asyncio", "tornado.access"])
def test_a_library_never_tells_details(capsys: pytest.CaptureFixture[str], library: str) -> None:
    """At their debug level headers and bodies could be seen: no setting asks for that."""
    set_up_logging("debug", {})
    logging.getLogger(library).debug("Authorization: secret")
    logging.getLogger(library).info("body")
    assert capsys.readouterr().err == ""
    logging.getLogger(library).error("worth knowing")
    assert "worth knowing" in capsys.readouterr().err


def test_a_blocked_log_blocks_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that a full pipe cannot accept are dropped, and counted in the first that it accepts again."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        set_up_logging("info", {"JOURNAL_STREAM": "8:1"})
        log = logging.getLogger("relayd.x")
        for number in range(2000):
            log.info("line %d %s", number, "x" * 100)
        taken = reader.read(1 << 20)
        log.info("after")
        said = taken + reader.read(1 << 20)
        assert not select.select([reader], [], [], 0)[0]
    lines = said.decode().splitlines()
    told = re.fullmatch(r"<4>(\d+) lines of this log were lost: stderr was blocked", lines[-2])
    assert told is not None
    assert int(told[1]) + len(lines) - 2 == 2000
    assert lines[-1] == "<6>after"
