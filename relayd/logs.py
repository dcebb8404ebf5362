"""Logging to stderr: plain lines for a person, level-prefixed ones for journald."""

from __future__ import annotations

import io
import logging
import select
import sys
import time
from collections.abc import Mapping
from typing import TextIO

# sd-daemon(3): a line may begin with its syslog level.
_JOURNAL_LEVELS = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = _JOURNAL_LEVELS.get(record.levelno, 2)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines())


class _PlainFormatter(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class _PatientHandler(logging.StreamHandler[TextIO]):
    """Never waits: a line that stderr cannot take now is dropped, counted, and told of by the next.

    A terminal that was stopped, a pipe or a journal that nobody reads would else hold up every answer. A pipe
    or socket that is ready takes 4 KiB at once (pipe(7), PIPE_BUF), more than any line but a traceback has.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._dropped = 0
        self._poll = _writable(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, or count it."""
        if self._poll is not None and not self._poll.poll(0):
            self._dropped += 1
            return
        if self._dropped:
            lost, self._dropped = self._dropped, 0
            told = logging.makeLogRecord(
                {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
            )
            told.msg, told.args = "%d lines of this log were lost: nobody read it", (lost,)
            super().emit(told)
        super().emit(record)


def _writable(stream: TextIO) -> select.poll | None:
    """Tells whether a stream takes a line at once; None for one that is no file, and always does."""
    try:
        number = stream.fileno()
    except io.UnsupportedOperation:
        return None
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return poll


def set_up_logging(level: str, env: Mapping[str, str]) -> None:
    """Send relayd's own messages from `level` up to stderr, and only warnings of its libraries.

    A library at debug level may show headers or bodies, so none is ever asked for more.

    Args:
        level: debug, info, warning or error.
        env: JOURNAL_STREAM in it says that stderr is journald's.
    """
    handler = _PatientHandler(sys.stderr)
    if "JOURNAL_STREAM" in env:
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(_PlainFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    # What no line shows is not looked up for each of them (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - the documented way
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # Its warnings are what strangers do wrong (a broken handshake, a reset), as often as they like.
    logging.getLogger("tornado.general").setLevel(logging.ERROR)
    set_level(level)


def set_level(level: str) -> None:
    """Show relayd's own messages from this level up, from now on."""
    logging.getLogger("relayd").setLevel(level.upper())
