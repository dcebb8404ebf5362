"""Logging to stderr: plain lines for a person, level-prefixed ones for journald."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

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


def set_up_logging(level: str, env: Mapping[str, str]) -> None:
    """Send relayd's own messages from `level` up to stderr, and only warnings of its libraries.

    A library at debug level may show headers or bodies, so none is ever asked for more.

    Args:
        level: debug, info, warning or error.
        env: JOURNAL_STREAM in it says that stderr is journald's.
    """
    handler = logging.StreamHandler(sys.stderr)
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
