"""A provider behind a bad network: every fault ends in the whole answer, or in one typed line."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.harness import running_relay
from tests.wire import DONE, HOST, until

_MODEL = "demo:text=words,deltas=10,interval_ms=5"
_TEXT = "The relay passes each delta on as one line, as "


@dataclass(frozen=True, slots=True)
class _Faults:
    """What happens to the bytes that come from the provider."""

    slice_bytes: int = 16 << 10
    """No write is larger."""
    pause_s: float = 0.0
    """Before each write."""
    end: str = ""
    """`reset` (RST), `cut` (FIN) or `stall` (nothing comes any more, and nothing ends)."""
    after_bytes: int = 0


@asynccontextmanager
async def _bad_network(target_port: Callable[[], int], faults: _Faults) -> AsyncIterator[int]:
    """Run a TCP proxy with these faults; yield its port."""
    passing: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        passing.add(task)
        back, forth = await asyncio.open_connection(HOST, target_port())
        asking = asyncio.create_task(_copy(reader, forth), name="bad network, towards the provider")
        try:
            await _spoil(back, writer, faults)
        except (ConnectionError, asyncio.CancelledError):
            return  # one side is gone, or the test is over
        finally:
            asking.cancel()
            # What was written and drained is with the kernel: a close sends it, and the FIN behind it.
            writer.close()
            forth.transport.abort()
            await asyncio.gather(asking, writer.wait_closed(), forth.wait_closed(), return_exceptions=True)

    async with await asyncio.start_server(serve, HOST, 0) as server:
        yield server.sockets[0].getsockname()[1]
        server.close()
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(16 << 10):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def _spoil(back: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: _Faults) -> None:
    passed = 0
    while data := await back.read(faults.slice_bytes):
        await asyncio.sleep(faults.pause_s)
        if faults.end:
            data = data[: faults.after_bytes - passed]
        writer.write(data)
        await writer.drain()
        passed += len(data)
        if faults.end and passed == faults.after_bytes:
            if faults.end == "stall":
                await asyncio.Event().wait()
            if faults.end == "reset":
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return


@pytest.mark.parametrize(
    ("faults", "codes"),
    [
        (_Faults(), (None,)),
        (_Faults(pause_s=0.05), (None,)),
        (_Faults(slice_bytes=1), (None,)),
        (_Faults(slice_bytes=7, pause_s=0.0003), (None,)),
        (_Faults(end="reset", after_bytes=0), ("upstream_failed",)),
        (_Faults(end="reset", after_bytes=100), ("upstream_failed",)),
        (_Faults(end="reset", after_bytes=900), ("upstream_failed",)),
        (_Faults(end="cut", after_bytes=0), ("upstream_failed",)),
        (_Faults(end="cut", after_bytes=900), ("upstream_failed", "upstream_truncated")),
        (_Faults(end="stall", after_bytes=0), ("upstream_timeout",)),
        (_Faults(end="stall", after_bytes=100), ("upstream_timeout",)),
        (_Faults(end="stall", after_bytes=900), ("upstream_timeout",)),
    ],
    ids=str,
)
async def test_a_bad_network_gives_the_answer_or_one_typed_line(
    faults: _Faults, codes: tuple[str | None, ...]
) -> None:
    """In bounded time, and nothing of the request is left behind."""
    # Short where it is to run out, long where the network is only slow.
    limit_s = 0.5 if faults.end == "stall" else 30
    target_port = 0
    async with (
        _bad_network(lambda: target_port, faults) as port,
        running_relay(
            upstream_url=lambda _upstream: f"http://{HOST}:{port}/v1",
            upstream__first_token_timeout_s=limit_s,
            upstream__idle_timeout_s=limit_s,
        ) as relay,
    ):
        target_port = relay.upstream.port
        reply = await relay.ask(_MODEL)
        assert reply.lines[-1] == DONE
        code = None if reply.error is None else reply.error.partition(":")[0]
        assert code in codes
        if code is None:
            assert reply.text == _TEXT
        else:
            assert _TEXT.startswith(reply.text)
        await until(lambda: len(relay.server.streams) == 0)
