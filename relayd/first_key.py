"""The file with the first key, in plain text: written if no terminal could show it, gone when it was read."""

from __future__ import annotations

import asyncio
import logging
import stat
import time
from pathlib import Path

from relayd.durations import short
from relayd.state.errors import StateError
from relayd.state.keyring import KeyRing

FIRST_KEY_FILE = "first-key"
_log = logging.getLogger(__name__)

_MAX_AGE_S = 86_400.0
_LOOK_EVERY_S = 1.0


class FirstKeyFile:
    """Deletes `first-key` from the state directory once its key was used or ended, at the latest after a day.

    Args:
        state_dir: where it is, if it is there.
        ring: knows whether the key was used.
    """

    def __init__(self, state_dir: Path, ring: KeyRing) -> None:
        self.path = state_dir / FIRST_KEY_FILE
        self._ring = ring

    async def watch(self) -> None:
        """Look every second, until the file is gone."""
        while (left_s := self._left_s()) is not None:
            if left_s <= 0 or self._is_done():
                try:
                    self.path.unlink(missing_ok=True)
                except OSError as error:
                    _log.warning("%s cannot be deleted: %s; delete it", self.path, error.strerror)
                else:
                    _log.info("%s is deleted: its key was used, or is a day old", self.path)
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    def reminder(self) -> str | None:
        """Return a sentence about the file for the operator; None if there is none."""
        left_s = self._left_s()
        if left_s is None:
            return None
        return f"in {self.path} until it is used, at most {short(left_s)}: read it, then delete the file"

    def _left_s(self) -> float | None:
        """Return how much of its day the file has left, in seconds; None if there is no file."""
        try:
            info = self.path.stat()
        except OSError:
            return None
        return max(0.0, info.st_mtime + _MAX_AGE_S - time.time()) if stat.S_ISREG(info.st_mode) else None

    def _is_done(self) -> bool:
        """Return whether the key of the file was used, or opens nothing any more."""
        try:
            owner = self._ring.verify(self.path.read_bytes().strip())
        except (OSError, StateError):
            return False
        if owner is None:
            return True
        keys = self._ring.keys()
        return any(key.id == owner.key_id and key.last_used_at is not None for key in keys)
