"""A few read-only connections, lent to whichever thread asks."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relayd.state.database import Connect, explain, open_for_reading
from relayd.state.errors import StateUnreachable

SIZE = 4


class ReadPool:
    """Opens up to four connections as they are needed; a fifth reader waits for one."""

    def __init__(self, path: Path, connect: Connect = sqlite3.connect) -> None:
        self._path = path
        self._connect = connect
        self._free = threading.BoundedSemaphore(SIZE)
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection; one that failed is closed, not lent again.

        Raises:
            StateError: opening it or working with it failed.
        """
        with self._free:
            connection = self._take()
            try:
                yield connection
            except sqlite3.Error as error:
                connection.close()
                raise explain(error, self._path) from error
            except BaseException:
                connection.close()
                raise
            self._give_back(connection)

    def close(self) -> None:
        """Close what is idle now, and what is lent as soon as it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise StateUnreachable(f"The reader of {self._path} is closed.")
            if self._idle:
                return self._idle.pop()
        return open_for_reading(self._path, self._connect)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()
