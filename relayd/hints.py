"""Hints name commands as `relayd WORD`; where they are shown, they become what the reader can type."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

COMMANDS = (
    *("serve", "reload", "check", "status", "keys", "clients", "usage", "log"),
    *("cancel", "pause", "resume", "drain", "backup", "init", "doctor", "migrate-state"),
)
_HINT = re.compile(rf"(?<![\w./@-])(?=relayd-tui\b|relayd (?:{'|'.join(COMMANDS)})\b)")


def typeable(text: str) -> str:
    """Put its directory before each command in a text, unless the shell finds this program by its name.

    `relayd keys list` becomes `.venv/bin/relayd keys list` for a reader who runs relayd from a clone.
    """
    return _HINT.sub(lambda _: _directory(), text)


def _directory() -> str:
    """Return the directory that this program's commands are in, with a final slash; empty if not needed."""
    own = Path(sys.prefix) / "bin" / "relayd"
    found = shutil.which("relayd")
    if not own.exists() or (found is not None and Path(found).resolve() == own.resolve()):
        return ""
    near = os.path.relpath(own.parent)
    return f"{own.parent if near.startswith('..') else near}/"
