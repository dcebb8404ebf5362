"""Files that the configuration names: where a path leads, whether it can be read, and its text."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from relayd.config.errors import Findings, Problem
from relayd.printable import printable

MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Here:
    """What relative paths and `~/` refer to."""

    cwd: Path
    home: Path

    def path(self, text: str) -> Path | str | None:
        """The absolute path that `text` means, None for "", and the text itself when it is no path."""
        if not text:
            return None
        if "\0" in text or (text.startswith("~") and text[1:2] not in {"", "/"}):
            return text
        return self.home / text[1:].lstrip("/") if text.startswith("~") else self.cwd / text

    def name(self, path: Path) -> str:
        """A path as messages show it: short when it is under the working directory."""
        short = path.relative_to(self.cwd) if path.is_relative_to(self.cwd) else path
        return printable(str(short))


def is_present(path: Path) -> bool:
    """Whether something is at the path. What may not be looked at counts: reading it then says why."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True


def is_regular(path: Path) -> bool:
    """Whether a regular file is at the path, or something that may not be looked at."""
    return is_present(path) and file_fault(path) != _NOT_REGULAR


_NOT_REGULAR = "is not a regular file"


def file_fault(path: Path) -> str | None:
    """Why this process cannot read the file, as the end of a sentence; None when it can."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(mode):
        # A pipe could block the daemon, and is empty when SIGHUP reads it again.
        return _NOT_REGULAR
    return None if os.access(path, os.R_OK, effective_ids=True) else "cannot be read: Permission denied"


def world_readable(path: Path) -> bool:
    """Whether every user of the machine may read the file, as far as its own mode says."""
    return bool(path.stat().st_mode & stat.S_IROTH)


def read_text(path: Path, name: str, findings: Findings, *, key: str | None = None) -> str | None:
    """The text of a small regular file; otherwise None, and a problem that says why under `name`."""
    wrong = file_fault(path)
    try:
        if wrong is None:
            data = path.read_bytes() if path.stat().st_size <= MAX_FILE_BYTES else None
            if data is not None:
                return data.decode("utf-8-sig")
            wrong = f"is larger than {MAX_FILE_BYTES} bytes"
    except OSError as error:
        wrong = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        wrong = f"is not UTF-8 text (line {error.object.count(10, 0, error.start) + 1})"
    findings.problems.append(Problem(name, f"this file {wrong}.", key))
    return None
