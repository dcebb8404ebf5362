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


class _NonBlockingHandler(logging.StreamHandler[TextIO]):
    """Drops lines that stderr cannot accept at once, counts them, and reports the count later.

    A stopped terminal, or a full pipe or journal, would otherwise block every stream. A pipe or socket that
    is ready accepts 4 KiB at once (pipe(7), PIPE_BUF), more than any line but a traceback has.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._dropped = 0
        self._poll = _writable(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, or drop and count it."""
        if self._poll is not None and not self._poll.poll(0):
            self._dropped += 1
            return
        if self._dropped:
            lost, self._dropped = self._dropped, 0
            note = {"levelno": logging.WARNING, "levelname": "WARNING", "args": (lost,)}
            note["msg"] = "%d lines of this log were lost: stderr was blocked"
            super().emit(logging.makeLogRecord(note))
        super().emit(record)


def _writable(stream: TextIO) -> select.poll | None:
    """Return a poll for whether a stream accepts a line at once; None if the stream is not a file."""
    try:
        number = stream.fileno()
    except io.UnsupportedOperation:
        return None
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return poll


def set_up_logging(level: str, env: Mapping[str, str]) -> None:
    """Send relayd's own messages from `level` up to stderr, and only warnings from its libraries.

    A library at debug level may log headers or bodies, so their level never changes.

    Args:
        level: debug, info, warning or error.
        env: the environment; JOURNAL_STREAM means that stderr goes to journald.
    """
    handler = _NonBlockingHandler(sys.stderr)
    if "JOURNAL_STREAM" in env:
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(_PlainFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    # Do not look up what no line shows (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - the documented way
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # Its warnings are about clients (a broken handshake, a reset), and clients could fill the log.
    logging.getLogger("tornado.general").setLevel(logging.ERROR)
    set_level(level)


def set_level(level: str) -> None:
    """Show relayd's own messages from this level up."""
    logging.getLogger("relayd").setLevel(level.upper())
