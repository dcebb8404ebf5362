"""One answer of the provider: its head, and the body as the kernel gave it, one wake-up a read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from relayd.relay.failure import Code, Failure

if TYPE_CHECKING:
    from relayd.relay.connection import Connection

_MAX_BUFFERED_BYTES = 16 << 10


class Broken(Failure):
    """The connection, or what came over it, cannot be used any more; `what` says why.

    As a failure it is that of a body, where nobody else puts it into words.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            Code.UPSTREAM_FAILED, "The connection to the provider broke in the middle of its answer."
        )
        self.what = what


class Answer:
    """One answer: its head is known, its body comes through `pour`.

    While nobody pours, a body is buffered up to a bound; then the socket is not read until it is
    poured again, so that a client that does not read stops the provider.
    """

    def __init__(self, connection: Connection, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._connection: Connection | None = connection
        self.status = status
        self.raw_headers = headers
        self.ended = False
        """Whether the whole body has arrived, taken or not."""
        self._error: Broken | None = None
        self._pieces: list[bytes] = []
        self._buffered_bytes = 0
        self._held = False
        """Whether the socket is not read, until somebody pours."""
        self._take: Callable[[bytes], bool] | None = None
        self._poured: asyncio.Future[bool] | None = None

    def header(self, name: bytes) -> str:
        """The first value of a header, by its name in lower case; empty where there is none."""
        for found, value in self.raw_headers:
            if found.lower() == name:
                return value.decode("latin-1")
        return ""

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """Give the body to `take` as it comes, all that one read of the socket brought in one piece.

        It is called where the bytes arrive: no turn of the loop lies between.

        Args:
            take: says whether it wants more. What it raises is raised here.

        Returns:
            Whether it was `take` that ended it; else the body has ended.

        Raises:
            Broken: the body was cut, or is not HTTP.
        """
        if self._pieces and not take(self._buffered()):
            return True
        if self._held and self._connection is not None:
            self._held = False
            self._connection.resume_reading()
        if self.ended:
            return False
        if self._error is not None:
            raise self._error
        self._take = take
        self._poured = asyncio.get_running_loop().create_future()
        try:
            return await self._poured
        finally:
            self._take = self._poured = None

    async def read(self) -> bytes:
        """The next bytes of the body, as many as are there; empty at its end. Raises as `pour`."""
        pieces: list[bytes] = []

        def take(piece: bytes) -> bool:
            pieces.append(piece)
            return False

        await self.pour(take)
        return b"".join(pieces)

    def close(self, *, wait_s: float = 0.0) -> None:
        """Give the connection back where the body has ended; else cut it, at once or when it is late.

        Args:
            wait_s: how long the end of the body may take; what comes until then is dropped.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.finish(reuse=self.ended, wait_s=wait_s)

    def feed(self, piece: bytes) -> None:
        """Take some of the body from the connection; `arrived` follows."""
        if self._connection is not None:
            self._pieces.append(piece)
            self._buffered_bytes += len(piece)

    def end(self, error: Broken | None) -> None:
        """Take the end of the body, good or bad, from the connection; `arrived` follows."""
        if not self.ended and self._error is None:
            self.ended = error is None
            self._error = error

    def arrived(self) -> None:
        """The connection has fed all that it has for now."""
        poured = self._poured
        if self._take is None or poured is None or poured.done():
            if self._buffered_bytes > _MAX_BUFFERED_BYTES:
                self._hold()
            return
        try:
            wants_more = not self._pieces or self._take(self._buffered())
        except Exception as error:  # noqa: BLE001 - raised again by `pour`, whose caller it belongs to
            if not poured.done():
                poured.set_exception(error)
            return
        if poured.done():
            return
        if not wants_more:
            # Nothing more is read meanwhile: it would be a whole receive buffer for each client that waits.
            self._hold()
            poured.set_result(True)
        elif self.ended:
            poured.set_result(False)
        elif self._error is not None:
            poured.set_exception(self._error)

    def _buffered(self) -> bytes:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._buffered_bytes = 0
        return data

    def _hold(self) -> None:
        if self._connection is not None and not self._held and not self.ended:
            self._held = True
            self._connection.pause_reading()
