"""Writes what `init` leaves behind: whole or not at all, with its mode from the first instant."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644


def write(path: Path, text: str, *, mode: int) -> None:
    """Replace a file in one step; what is read there is the old or the new text.

    Args:
        path: its directory must be there.
        text: the whole of it.
        mode: of the file; a symbolic link in its place is replaced, not followed.

    Raises:
        OSError: it can't be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        raise


def keep_old(path: Path) -> Path | None:
    """Move a file out of the way, under a name that is free; None where there is none."""
    if not path.exists():
        return None
    old = path.with_name(path.name + ".old")
    number = 1
    while old.exists():
        number += 1
        old = path.with_name(f"{path.name}.old{number}")
    path.rename(old)
    return old
