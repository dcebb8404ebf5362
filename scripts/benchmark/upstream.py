"""A provider that costs next to nothing: raw asyncio protocols, so that only the relay is measured.

Every relay passes the messages on unchanged, so they carry the order: `bench:DELTAS,INTERVAL_MS,WAIT_MS`
asks for that many deltas at that pace after a wait. The text of a delta is the time when it was sent:
CLOCK_MONOTONIC in nanoseconds, 20 digits. All processes of a machine share this clock.

Run it with `python -m benchmark.upstream PORT`.
"""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import time
from typing import cast

import httptools
import uvloop

from benchmark.programs import reserve_descriptors

STAMP_DIGITS = 20
_ORDER = re.compile(rb"bench:(\d+),(\d+(?:\.\d+)?),(\d+)")
_USAGE = re.compile(rb'"include_usage": *true')

_CHUNK = (
    b'{"id":"chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT","object":"chat.completion.chunk",'
    b'"created":1741569952,"model":"gpt-4o-mini","service_tier":"default",'
    b'"system_fingerprint":"fp_44709d6fcb","choices":[%b]%b}'
)
_CHOICE = b'{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}'
_TOKENS = b'{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29}'


def _event(payload: bytes) -> bytes:
    """Return one server-sent event as one HTTP chunk."""
    event = b"data: " + payload + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def _chunk(delta: bytes, finish: bytes = b"null", tail: bytes = b"") -> bytes:
    return _CHUNK % (_CHOICE % (delta, finish), tail)


_MARK = b"@" * STAMP_DIGITS
_BEFORE, _AFTER = _event(_chunk(b'{"content":"%b"}' % _MARK)).split(_MARK)
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"x-request-id: req_bench\r\nTransfer-Encoding: chunked\r\n\r\n"
    + _event(_chunk(b'{"role":"assistant","content":"","refusal":null}'))
)
_FINISH = _event(_chunk(b"{}", b'"stop"'))
_USAGE_EVENT = _event(_CHUNK % (b"", b',"usage":' + _TOKENS))
_END = _event(b"[DONE]") + b"0\r\n\r\n"
_MODEL_LIST = (
    b'{"object":"list","data":[{"id":"gpt-4o-mini","object":"model","created":0,"owned_by":"bench"}]}'
)
_MODELS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_MODEL_LIST),
    _MODEL_LIST,
)


class Connection(asyncio.Protocol):
    """One connection; its requests are answered one after the other.

    httptools calls the methods that begin with `on`.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._path = self._body = b""
        self._left = 0
        self._interval_s = 0.0
        self._due = 0.0
        self._end = b""
        self._timer: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _error: Exception | None) -> None:
        """End an unfinished stream."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse requests."""
        self._parser.feed_data(data)

    def on_url(self, path: bytes) -> None:
        """Begin a request."""
        self._path, self._body = path, b""

    def on_body(self, data: bytes) -> None:
        """Collect the body."""
        self._body += data

    def on_message_complete(self) -> None:
        """Answer the request."""
        order = _ORDER.search(self._body)
        if order is None:
            self._transport.write(_MODELS)
        else:
            self._left, self._interval_s = int(order[1]), float(order[2]) / 1000
            self._end = _FINISH + (_USAGE_EVENT if _USAGE.search(self._body) else b"") + _END
            wait_s = int(order[3]) / 1000
            if wait_s:
                self._timer = self._loop.call_later(wait_s, self._begin)
            else:
                self._begin()

    def _begin(self) -> None:
        self._transport.write(_HEAD)
        self._due = self._loop.time()
        self._tick()

    def _tick(self) -> None:
        """Write one delta; after a delay the pace starts anew instead of catching up."""
        self._write_delta()
        if self._left:
            self._due = max(self._due + self._interval_s, self._loop.time())
            self._timer = self._loop.call_at(self._due, self._tick)

    def _write_delta(self) -> None:
        self._left -= 1
        self._transport.write(b"%b%020d%b" % (_BEFORE, time.monotonic_ns(), _AFTER))
        if not self._left:
            self._transport.write(self._end)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    reserve_descriptors()
    gc.disable()
    uvloop.run(_serve(int(sys.argv[1])))
