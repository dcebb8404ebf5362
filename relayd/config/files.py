"""Files that the configuration names: where a path leads, whether it can be read, and its text."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MAX_FILE_BYTES = 1024 * 1024


class FileError(Exception):
    """A file cannot be used; the text ends the sentence "this file ..."."""


def is_present(path: Path) -> bool:
    """Return whether something is at the path, or may be: a permission error shows when it is read."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True


def check_file(path: Path) -> None:
    """Check that this process can read a regular file.

    Raises:
        FileError: it cannot.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileError("does not exist") from None
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        # A pipe could block the daemon, and is empty when SIGHUP reads it again.
        raise FileError("is not a regular file")
    if not os.access(path, os.R_OK, effective_ids=True):
        raise FileError("cannot be read: Permission denied")


def read_text(path: Path) -> str:
    """Return the text of a small regular file.

    Raises:
        FileError: it cannot be read, is too large or is not UTF-8.
    """
    check_file(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise FileError(f"is larger than {MAX_FILE_BYTES} bytes")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise FileError(f"is not UTF-8 text (line {line})") from error


def is_world_readable(path: Path) -> bool:
    """Return whether the file's mode lets every user of the machine read it."""
    return bool(path.stat().st_mode & stat.S_IROTH)
