"""A TCP proxy that spoils what passes: latency, slices, bandwidth, reset, stall, cut."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
_READ_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to the bytes that come back from the target; None: nothing."""

    latency_s: float = 0.0
    """Each read waits so long."""
    slice_bytes: int | None = None
    """No write is larger."""
    bytes_per_s: float | None = None
    reset_after: int | None = None
    """After so many bytes both sides see a RST."""
    stall_after: int | None = None
    """After so many bytes nothing comes any more, and nothing ends."""
    cut_after: int | None = None
    """After so many bytes the client side sees a FIN."""

    @property
    def end(self) -> int | None:
        """After how many bytes it ends, in whatever way."""
        return next((n for n in (self.reset_after, self.stall_after, self.cut_after) if n is not None), None)


class FaultProxy:
    """Listens while it is entered; what it is told of faults holds for connections from then on.

    Args:
        target_port: on this machine.
        faults: may be changed at any time.
    """

    def __init__(self, target_port: int, faults: Faults | None = None) -> None:
        self.target_port = target_port
        self.faults = faults or Faults()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass(reader, writer), name="fault proxy")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(HOST, self.target_port)
        faults = self.faults
        asking = asyncio.create_task(_copy(reader, forth), name="fault proxy, forth")
        try:
            await _spoil(back, writer, faults)
        except ConnectionError:
            # One side is gone, and so goes the other.
            return
        finally:
            asking.cancel()
            # What was written and drained is with the kernel: a close sends it, and the FIN behind it.
            writer.close()
            forth.transport.abort()
            await asyncio.gather(asking, writer.wait_closed(), forth.wait_closed(), return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_READ_BYTES):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def _spoil(back: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Faults) -> None:
    passed, end = 0, faults.end
    while data := await back.read(faults.slice_bytes or _READ_BYTES):
        if faults.latency_s:
            await asyncio.sleep(faults.latency_s)
        if faults.bytes_per_s is not None:
            await asyncio.sleep(len(data) / faults.bytes_per_s)
        if end is not None:
            data = data[: end - passed]
        writer.write(data)
        await writer.drain()
        passed += len(data)
        if passed == end:
            if faults.stall_after is not None:
                await asyncio.Event().wait()
            if faults.reset_after is not None:
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
