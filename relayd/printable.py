"""Text for a terminal: text from outside made safe, counts in words, commands as the reader can type them.

A terminal acts on control characters (clear the screen, set the title, even answer as if typed), and
bidirectional and invisible characters make one text look like another. Every text that a client, a
provider or a file contributed passes through here before a person sees it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import msgspec

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
COMMANDS = (
    *("serve", "reload", "check", "status", "keys", "clients", "usage", "log"),
    *("cancel", "pause", "resume", "drain", "backup", "init", "doctor", "migrate-state"),
)
_HINT = re.compile(rf"(?<![\w./@-])(?=relayd-tui\b|relayd (?:{'|'.join(COMMANDS)})\b)")


def printable(text: str) -> str:
    r"""Return the text with everything unsafe written as a Python escape: `\x1b`, `\n`, `\u202e`.

    Unsafe is what Unicode calls "other" or "separator", except the space: C0 and C1 controls, DEL,
    bidirectional and zero-width marks, line and paragraph separators, halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def plural(number: int, one: str, many: str | None = None) -> str:
    """Return `1 client`, `2 clients`, `12,481 records`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def csv_text(text: str) -> str:
    """Return text for CSV: an apostrophe precedes what a spreadsheet would run as a formula (OWASP)."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def printable_json(document: object) -> str:
    r"""Return the document as one line of JSON in ASCII: everything else is a `\u` escape.

    Args:
        document: any value that msgspec can encode.
    """
    text = json.dumps(msgspec.to_builtins(document), separators=(",", ":"))
    # The one ASCII control character that JSON allows inside a string (RFC 8259, section 7).
    return text.replace("\x7f", "\\u007f")


def typeable(text: str) -> str:
    """Put the directory of relayd before each of its commands in a text, unless the shell finds it by name.

    `relayd keys list` becomes `.venv/bin/relayd keys list` for a reader who runs relayd from a clone.
    """
    return _HINT.sub(lambda _: _directory(), text)


def _directory() -> str:
    """Return the directory that this program's commands are in, with a final slash; empty if not needed."""
    own = Path(sys.prefix) / "bin" / "relayd"
    found = shutil.which("relayd")
    # Unlike `Path.exists` it doesn't raise where this user may not look.
    if not os.access(own, os.F_OK) or (found is not None and Path(found).resolve() == own.resolve()):
        return ""
    near = os.path.relpath(own.parent)
    return f"{own.parent if near.startswith('..') else near}/"
