"""A way to PostgreSQL that breaks at a COMMIT, before or after the server has done it."""

from __future__ import annotations

import socket
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.wire import PATIENCE_S

_SOCKET = ".s.PGSQL.5432"
_PIECE = 65536


class LossyProxy:
    """Passes the bytes of connections on, until it is told to lose the answer to a COMMIT.

    Args:
        directory: where its socket is made: the `host` of a client.
        server: the directory of the server's socket.
    """

    def __init__(self, directory: Path, server: Path) -> None:
        self._server, self._directory = str(server / _SOCKET), str(directory)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(directory / _SOCKET))
        self._listening.listen()
        self._is_down = False
        self._is_armed = False
        self._is_done_first = self._stays_down = False
        self._after = b""
        self._answered = threading.Event()
        self._open: deque[socket.socket] = deque()
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, url: str) -> str:
        """Return the URL of a database of the server by this way."""
        return url.replace(self._server.removesuffix(f"/{_SOCKET}"), self._directory)

    def lose_commit(self, *, is_done_first: bool, stays_down: bool = True, after: bytes = b"") -> None:
        """Break all connections at the next COMMIT.

        Args:
            is_done_first: whether the server gets it.
            stays_down: whether none is let in before `mend`.
            after: which the transaction must have in it.
        """
        self._answered.clear()
        self._after, self._stays_down = after, stays_down
        self._is_armed, self._is_done_first = True, is_done_first

    def mend(self) -> None:
        """Let connections in again."""
        self._is_down = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_down = True
        # Ends the thread, which close() would not.
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self._is_down:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server)
            self._open.extend((client, server))
            for source, target in ((client, server), (server, client)):
                threading.Thread(
                    target=self._pass, args=(source, target, source is client), daemon=True
                ).start()

    def _pass(self, source: socket.socket, target: socket.socket, is_clients: bool) -> None:  # noqa: FBT001
        said = b""
        with suppress(OSError):
            while data := source.recv(_PIECE):
                said += data if is_clients else b""
                if is_clients and b"COMMIT" in data:
                    if self._is_armed and self._after in said:
                        self._lose(data, target)
                        return
                    said = b""
                if self._is_down:
                    # The answer to the COMMIT.
                    self._answered.set()
                    return
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _lose(self, data: bytes, server: socket.socket) -> None:
        self._is_armed, self._is_down = False, True
        if self._is_done_first:
            server.sendall(data)
            self._answered.wait(PATIENCE_S)
        # First: who was cut off comes again at once.
        self._is_down = self._stays_down
        self._cut()

    def _cut(self) -> None:
        # Who is cut off may be back before the last one is: new ones stay.
        for _ in range(len(self._open)):
            end = self._open.popleft()
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
