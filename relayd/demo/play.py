"""Plays a script over one connection: a stream at its pace, in its shape, with its fault."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from tornado.http1connection import HTTP1Connection
from tornado.iostream import IOStream

from relayd.demo.script import Script
from relayd.demo.seen import Seen
from relayd.demo.wire import BOM, DONE, Chunks, Events, encode, error_body, stamp

_LINGER_NONE = struct.pack("ii", 1, 0)


async def stall() -> None:
    """Say nothing until the client leaves or the upstream closes: both cancel this task."""
    await asyncio.get_running_loop().create_future()


def cut(conn: HTTP1Connection) -> None:
    """Reset the connection: the peer gets RST instead of an orderly end."""
    if not conn.stream.closed():
        conn.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    conn.close()


class Body:
    """Writes a chunked body in the shape that the script asks for.

    It frames the chunks itself instead of asking Tornado's connection to: that is what lets the head travel
    with the first chunk and the last chunk with the body's end, a system call each that benchmarks save.

    Args:
        stream: what to write to.
        script: its faults say in which shape.
        head: the status line and headers; they go out with the first flush.
    """

    def __init__(self, stream: IOStream, script: Script, head: bytes) -> None:
        self._stream = stream
        self._raw = [head]
        self._bytes = bytearray()
        self._gzip = zlib.compressobj(wbits=31) if "gzip" in script.faults else None
        self._bytewise = bool(script.faults & {"one_byte", "slow_drip"})
        self._byte_pause_s = script.interval_ms / 1000 if "slow_drip" in script.faults else 0.0
        self._batch = script.batch if "coalesced" in script.faults else 1
        self._batched = 0
        self._plain = not script.faults & {"gzip", "one_byte", "slow_drip", "coalesced"}

    async def send(self, data: bytes) -> None:
        """Write an event; returns when it is in the kernel's buffer, so that a slow reader slows it.

        Raises:
            StreamClosedError: the client has gone.
        """
        if self._plain and not self._raw:
            await self._stream.write(b"%x\r\n%b\r\n" % (len(data), data))
            return
        self.hold(data)
        self._batched += 1
        if self._batched >= self._batch:
            await self.flush()

    def hold(self, data: bytes) -> None:
        """Let an event go out with the next flush."""
        if self._gzip is not None:
            data = self._gzip.compress(data) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
        self._hold_chunk(data)

    async def end(self) -> None:
        """Write what was held and the end of the body; errors as in `send`."""
        if self._gzip is not None:
            self._hold_chunk(self._gzip.flush())
        if self._bytewise:
            await self.flush()
        self._raw.append(b"0\r\n\r\n")
        await self.flush()

    async def flush(self) -> None:
        """Write what was held; errors as in `send`."""
        raw, self._raw, self._batched = b"".join(self._raw), [], 0
        if raw:
            await self._stream.write(raw)
        waiting, self._bytes = self._bytes, bytearray()
        for value in waiting:
            await self._stream.write(b"1\r\n%c\r\n" % value)
            await asyncio.sleep(self._byte_pause_s)

    def _hold_chunk(self, data: bytes) -> None:
        if self._bytewise:
            self._bytes += data
        else:
            self._raw.append(b"%x\r\n%b\r\n" % (len(data), data))


@dataclass(frozen=True, slots=True)
class Reply:
    """What is said, apart from how."""

    chunks: Chunks
    pieces: Sequence[bytes]
    include_usage: bool
    prompt_tokens: int
    completion_tokens: int


class Player:
    """One streamed reply, from the first chunk to its end."""

    def __init__(self, conn: HTTP1Connection, script: Script, body: Body, reply: Reply, seen: Seen) -> None:
        self._conn = conn
        self._script = script
        self._reply = reply
        self._seen = seen
        self._body = body
        self._events = Events(script.faults)
        self._total = len(reply.pieces) if script.deltas is None else script.deltas
        self._break_at = -1 if script.break_ is None else min(script.after, self._total)
        self._huge_at = min(script.after, self._total - 1) if "huge_event" in script.faults else -1
        self._interval_s = 0.0 if "slow_drip" in script.faults else script.interval_ms / 1000
        self._due = 0.0

    async def play(self) -> None:
        """Send the whole body; the reply is over when this returns, whichever way it ends.

        Raises:
            StreamClosedError: the client has gone.
        """
        body, chunks, faults = self._body, self._reply.chunks, self._script.faults
        if "bom" in faults:
            body.hold(BOM)
        if self._script.break_ == "stall_first":
            await self._stall()
        if "empty_choices" in faults:
            self._hold(chunks.empty())
        if self._script.role:
            self._hold(chunks.role())
        if "tool_calls" in faults:
            self._hold(chunks.tool())
        await body.flush()
        if self._script.first_ms:
            await asyncio.sleep(self._script.first_ms / 1000)
        if await self._send_deltas():
            await self._hold_end()
        if not self._conn.stream.closed():
            await body.end()
            self._conn.finish()

    async def _send_deltas(self) -> bool:
        """Send the text at its pace; false when the stream ends here."""
        stamped = self._script.text == "stamp"
        text, pieces = self._reply.chunks.text, self._reply.pieces
        self._due = time.monotonic()
        for k in range(self._total):
            if k:
                await self._pace()
            if k == self._break_at and not await self._break_off():
                return False
            if k == self._huge_at:
                piece = encode("x" * self._script.size)
            elif stamped:
                piece = stamp()
            else:
                piece = pieces[k % len(pieces)]
            await self._send(text(piece))
            self._seen.deltas += 1
        return self._break_at != self._total or await self._break_off()

    async def _pace(self) -> None:
        """Wait for the next delta's time; one that is late is sent at once, and no debt is kept."""
        now = time.monotonic()
        self._due = max(self._due + self._interval_s, now)
        await asyncio.sleep(self._due - now)

    async def _break_off(self) -> bool:
        """Do what the script's fault says at this point; true when the stream goes on."""
        fault = self._script.break_
        if fault in {"cut_mid", "cut_fin"}:
            await self._body.flush()
        if fault == "stall_mid":
            await self._stall()
        elif fault == "cut_mid":
            cut(self._conn)
        elif fault == "cut_fin":
            self._conn.close()
        elif fault == "bad_json":
            await self._send(self._reply.chunks.text(b'"cut in half')[:-20])
        elif fault == "bad_utf8":
            await self._send(self._reply.chunks.text(b'"caf\xe9 \xff"'))
        elif fault == "error_event":
            await self._send(error_body(self._script.code or 500, self._script.message))
        return fault not in {"cut_mid", "cut_fin", "error_event", "end_early"}

    async def _hold_end(self) -> None:
        """Say the finish reason, the usage and `[DONE]`, as far as the script lets them come."""
        script, chunks = self._script, self._reply.chunks
        if script.finish_reason:
            self._hold(chunks.finish(script.finish_reason))
        if script.break_ == "stall_after_finish":
            await self._stall()
        if self._reply.include_usage:
            self._hold(chunks.usage(self._reply.prompt_tokens, self._reply.completion_tokens))
        if script.break_ != "no_done":
            self._hold(DONE)

    def _hold(self, payload: bytes) -> None:
        self._body.hold(self._events.event(payload))

    async def _send(self, payload: bytes) -> None:
        await self._body.send(self._events.event(payload))

    async def _stall(self) -> None:
        """Send no more deltas; with `comments` the line is kept busy without saying anything."""
        await self._body.flush()
        while "comments" in self._script.faults and self._script.interval_ms:
            await asyncio.sleep(self._script.interval_ms / 1000)
            await self._body.send(self._events.comment())
        await stall()
