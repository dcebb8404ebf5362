"""How the demo upstream's streams go: their pace, their shapes, and the ways in which they go wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib

import pytest

from relayd.demo import DemoUpstream
from relayd.demo.script import SHAPES
from tests.support.upstream import ask, chat, event_data, finish_of, payloads, port_of, question, text_of
from tests.wire import HOST, Reply, Wire

BURST = "demo:interval_ms=0,deltas=6,text=words"
WORDS = "The relay passes each delta on "


async def stream(model: str, *, usage: bool = False) -> Reply:
    """One whole reply of an upstream of its own, which must not have failed by itself."""
    async with DemoUpstream() as upstream:
        return await ask(upstream, question(model, usage=usage))


async def test_a_stream_as_the_provider_sends_it() -> None:
    """Role, deltas, finish reason, usage where asked for, `[DONE]`; then the connection stays open."""
    reply = await stream(BURST, usage=True)
    chunks = payloads(reply.body)
    assert (reply.status, reply.cut) == (200, False)
    assert reply.header("Content-Type") == "text/event-stream; charset=utf-8"
    assert (reply.header("x-request-id") or "").startswith("req_")
    assert reply.header("Connection") is None
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert text_of(chunks) == WORDS
    assert finish_of(chunks) == "stop"
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 6)


async def test_usage_comes_only_where_asked_for() -> None:
    """Without `include_usage` there is no chunk with usage; with it, it says what the script says."""
    assert all("usage" not in chunk for chunk in payloads((await stream(BURST)).body))
    told = payloads((await stream(f"{BURST},prompt_tokens=70,completion_tokens=9", usage=True)).body)[-1]
    assert (told["usage"]["prompt_tokens"], told["usage"]["total_tokens"]) == (70, 79)


@pytest.mark.parametrize("shape", sorted(SHAPES - {"tool_calls", "huge_event", "slow_drip", "gzip"}))
async def test_every_shape_is_a_whole_stream(shape: str) -> None:
    """A shape changes the bytes; the text, its finish reason and the end stay."""
    chunks = payloads((await stream(f"{BURST},size=1000,fault={shape}")).body)
    assert text_of(chunks) == WORDS
    assert finish_of(chunks) == "stop"


async def test_shapes_join() -> None:
    """Several shapes may be asked for at once."""
    reply = await stream(f"{BURST},fault=bom+cr_only+multiline_data+comments+unused_fields+one_byte")
    assert reply.body.startswith(b"\xef\xbb\xbf: PROCESSING\r\r")
    assert text_of(payloads(reply.body)) == WORDS


async def test_one_byte_is_one_byte_a_chunk() -> None:
    """Each byte of the body is a chunk and a write of its own."""
    reply = await stream("demo:interval_ms=0,deltas=1,fault=one_byte")
    assert {len(data) for _, data in reply.pieces} == {1}


async def test_slow_drip_keeps_its_pace_for_each_byte() -> None:
    """Bytes come one by one, an interval apart: always something, hardly ever a whole event."""
    async with DemoUpstream() as upstream, await Wire.open(port_of(upstream)) as wire:
        started = time.monotonic()
        wire.send(chat(question("demo:interval_ms=10,fault=slow_drip")))
        reply = await wire.head()
        for _ in range(20):
            assert len(await wire.first_piece(reply)) == 1
    for place, (at, _) in enumerate(reply.pieces):
        assert at - started >= 0.009 * place


async def test_coalesced_events_come_in_batches() -> None:
    """`batch` events travel in one write, the rest with the end."""
    model = "demo:interval_ms=20,deltas=7,text=words,fault=coalesced,batch=3"
    async with DemoUpstream() as upstream:
        reader, writer = await asyncio.open_connection(HOST, port_of(upstream))
        writer.write(chat(question(model)))
        raw, seen = b"", set[int]()
        async with asyncio.timeout(30):
            while not raw.endswith(b"0\r\n\r\n"):
                raw += await reader.read(1 << 16)
                seen.add(raw.count(b'"delta":{"content"'))
        writer.transport.abort()
    assert 7 in seen
    assert seen <= {0, 3, 6, 7}


async def test_gzip_is_compressed_though_nobody_asked() -> None:
    """The body is gzip, each event readable as soon as it comes."""
    reply = await stream(f"{BURST},fault=gzip")
    assert reply.header("Content-Encoding") == "gzip"
    assert text_of(payloads(gzip.decompress(reply.body))) == WORDS
    first = zlib.decompressobj(wbits=31).decompress(reply.pieces[0][1])
    assert json.loads(event_data(first)[0])["choices"][0]["delta"]["role"] == "assistant"


async def test_tool_calls_come_instead_of_text() -> None:
    """The deltas are a tool's name and arguments, and the reason says so."""
    chunks = payloads((await stream(f"{BURST},fault=tool_calls")).body)
    calls = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in chunks[1:-1]]
    assert calls[0]["function"]["name"] == "look_up"
    assert "".join(call["function"]["arguments"] for call in calls) == WORDS
    assert finish_of(chunks) == "tool_calls"


async def test_a_huge_event_is_one_event() -> None:
    """One delta has `size` bytes of text."""
    chunks = payloads((await stream(f"{BURST},size=3000000,fault=huge_event,after=2")).body)
    sizes = [len(chunk["choices"][0]["delta"].get("content") or "") for chunk in chunks]
    assert sizes.index(3_000_000) == 3


async def test_header_flood_has_its_size() -> None:
    """The reply's headers add up to `size` bytes or more."""
    async with DemoUpstream() as upstream:
        reader, writer = await asyncio.open_connection(HOST, port_of(upstream), limit=1 << 20)
        writer.write(chat(question(f"{BURST},size=100000,fault=header_flood")))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        writer.transport.abort()
    assert len(head) > 100_000


async def test_refusal_text_comes_as_refusal() -> None:
    """`refusal=1` puts the text into `refusal`; `role=0` leaves the first chunk out."""
    chunks = payloads((await stream(f"{BURST},refusal=1,role=0,finish=length")).body)
    assert text_of(chunks, "refusal") == WORDS
    assert text_of(chunks) == ""
    assert finish_of(chunks) == "length"


@pytest.mark.parametrize("fault", ["stall_first", "stall_mid", "stall_after_finish"])
async def test_a_stall_says_nothing_more_and_ends_when_the_client_leaves(fault: str) -> None:
    """The stream goes silent at its place, and the upstream notices the client's leaving."""
    async with DemoUpstream() as upstream:
        async with await Wire.open(port_of(upstream)) as wire:
            wire.send(chat(question(f"{BURST},fault={fault},after=2")))
            reply = await wire.head()
            deltas = {"stall_first": 0, "stall_mid": 2, "stall_after_finish": 6}[fault]
            async with asyncio.timeout(30):
                while reply.body.count(b'"delta":{"content"') < deltas:
                    await wire.first_piece(reply)
                if fault == "stall_after_finish":
                    assert b'"finish_reason":"stop"' in await wire.first_piece(reply)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wire.first_piece(reply), 0.1)
        seen = await upstream.wait_closed(0)
        assert (seen.deltas, seen.completed) == (deltas, False)


async def test_a_stall_with_comments_keeps_the_line_busy() -> None:
    """`stall_first+comments` sends comments for ever and no event."""
    async with DemoUpstream() as upstream, await Wire.open(port_of(upstream)) as wire:
        wire.send(chat(question("demo:interval_ms=5,fault=stall_first+comments")))
        reply = await wire.head()
        for _ in range(5):
            await wire.first_piece(reply)
    assert reply.body == b": PROCESSING\n\n" * 5


@pytest.mark.parametrize(("fault", "reset"), [("cut_mid", True), ("cut_fin", False)])
async def test_cuts_break_the_connection_inside_the_body(fault: str, *, reset: bool) -> None:
    """`cut_mid` ends with RST, `cut_fin` with FIN; the body's closing chunk comes with neither."""
    async with DemoUpstream() as upstream:
        reader, writer = await asyncio.open_connection(HOST, port_of(upstream))
        writer.write(chat(question(f"demo:interval_ms=300,text=words,fault={fault},after=2")))
        raw, was_reset = b"", False
        async with asyncio.timeout(30):
            try:
                while data := await reader.read(1 << 16):
                    raw += data
            except ConnectionResetError:
                was_reset = True
        writer.transport.abort()
        seen = await upstream.wait_ended(0)
    assert was_reset is reset
    assert raw.count(b'"delta":{"content"') == 2
    assert not raw.endswith(b"0\r\n\r\n")
    assert seen.closed_by_client_at is None


@pytest.mark.parametrize(
    ("fault", "last", "deltas"),
    [("end_early", b"delta", 3), ("no_done", b'"finish_reason":"stop"', 6), ("error_event", b'{"error":', 3)],
)
async def test_clean_ends_that_are_not_whole(fault: str, last: bytes, deltas: int) -> None:
    """The body ends in an orderly way without `[DONE]`, after what the fault's name says."""
    reply = await stream(f"{BURST},fault={fault}")
    data = event_data(reply.body)
    assert not reply.cut
    assert last in data[-1]
    assert b"[DONE]" not in data
    assert sum(b'"delta":{"content"' in item for item in data) == deltas


async def test_an_in_band_error_says_what_it_is_told() -> None:
    """The error event has the provider's form, with the script's code and message."""
    reply = await stream(f"{BURST},fault=error_event,after=0,code=429,message=too%20much")
    error = json.loads(event_data(reply.body)[-1])["error"]
    assert (error["message"], error["code"]) == ("too much", "rate_limit_exceeded")


async def test_no_finish_reason_with_done() -> None:
    """`finish=none` ends with `[DONE]` and says no reason."""
    assert finish_of(payloads((await stream(f"{BURST},finish=none")).body)) is None


@pytest.mark.parametrize(
    ("fault", "error"), [("bad_json", json.JSONDecodeError), ("bad_utf8", UnicodeDecodeError)]
)
async def test_a_spoilt_event_stands_among_good_ones(fault: str, error: type[ValueError]) -> None:
    """One event can't be read; the stream goes on after it as if nothing had happened."""
    data = event_data((await stream(f"{BURST},fault={fault},after=2")).body)
    with pytest.raises(error):
        json.loads(data[3])
    good = [json.loads(item) for item in data[:3] + data[4:-1]]
    assert text_of(good) == WORDS


async def test_a_break_beyond_the_last_delta_comes_after_it() -> None:
    """`after` larger than the number of deltas breaks the stream before its finish reason."""
    reply = await stream(f"{BURST},fault=end_early,after=1000")
    data = [json.loads(item) for item in event_data(reply.body)]
    assert text_of(data) == WORDS
    assert finish_of(data) is None


async def test_the_pace_is_kept() -> None:
    """Deltas come an interval apart, none early, and the delays before headers and text are kept."""
    started = time.monotonic()
    async with DemoUpstream() as upstream, await Wire.open(port_of(upstream)) as wire:
        wire.send(chat(question("demo:interval_ms=40,deltas=4,headers_ms=100,first_ms=80")))
        reply = await wire.head()
        head_at = time.monotonic()
        async for _ in wire.pieces(reply):
            pass
    role_at, *deltas = (at for at, data in reply.pieces if b'"content"' in data)
    assert head_at - started >= 0.095
    assert role_at - started >= 0.095
    # Against the start, not the one before: a machine that lags may deliver two at once, but none early.
    for place, at in enumerate(deltas):
        assert at - started >= 0.175 + 0.04 * place


async def test_stamps_are_the_sender_s_clock() -> None:
    """`text=stamp` says when each delta was written, on the clock that all processes share."""
    reply = await stream("demo:interval_ms=10,deltas=3,text=stamp")
    for at, data in reply.pieces:
        if b'"content":"' in data and b'"role"' not in data:
            sent_ns = int(json.loads(event_data(data)[0])["choices"][0]["delta"]["content"])
            assert 0 <= at * 1e9 - sent_ns < 60e9


async def test_a_reader_that_does_not_read_stops_the_writer() -> None:
    """The upstream waits for a slow client instead of filling its memory, and sees it leave."""
    async with DemoUpstream() as upstream, await Wire.open(port_of(upstream)) as wire:
        wire.pause()
        wire.send(chat(question("demo:interval_ms=0,deltas=1000000,text=x10000")))
        seen = await upstream.wait_request(0)
        written = -1
        async with asyncio.timeout(30):
            while written != seen.deltas or not written:
                written = seen.deltas
                await asyncio.sleep(0.2)
        assert written * 10_000 < 64e6
        wire.reset()
        assert (await upstream.wait_closed(0)).completed is False
