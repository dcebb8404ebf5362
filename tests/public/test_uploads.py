"""Uploads through `/v1`: passed on as they come, and held against the same rules."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.public.multipart import MultipartReader
from relayd.relay.errors import RelayError
from relayd.state.records import Outcome
from tests.harness import KEY, Relay, running_relay
from tests.public.test_allowances import a_key
from tests.public.test_v1 import error_of
from tests.relay.harness import cut
from tests.wire import HOST, PATIENCE_S, Reply, Wire, eventually, post, post_chunked, until

_PATH = "/v1/audio/transcriptions"
_BOUNDARY = "----boundary"
_TYPE = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
_MIB = 1 << 20


def form(*fields: tuple[str, str | bytes]) -> bytes:
    """Return a multipart body; a field of bytes is a file."""
    parts = []
    for name, value in fields:
        is_file = isinstance(value, bytes)
        filename = '; filename="speech.mp3"\r\nContent-Type: audio/mpeg' if is_file else ""
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'
        parts.append(head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n")
    return b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()


async def upload(relay: Relay, body: bytes, *, key: str = KEY, path: str = _PATH) -> Reply:
    """Send one upload on a connection of its own and read the whole reply."""
    async with await Wire.open(relay.port) as wire:
        wire.send(post(f"Bearer {key}", body, _TYPE, path=path))
        return await wire.reply()


@pytest.mark.parametrize("is_chunked", [True, False])
@pytest.mark.parametrize("size", [0, 10, 70_000, 3 * _MIB])
async def test_an_upload_passes_unchanged(size: int, *, is_chunked: bool) -> None:
    """Byte by byte, with its length if it has one; so does the answer."""
    body = form(("model", "demo"), ("language", "en"), ("file", b"\x00\r\n-\xff" * (size // 5)))
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        if is_chunked:
            sent = post_chunked(
                KEY, *[body[at : at + 9000] for at in range(0, len(body), 9000)], b"", headers=_TYPE
            )
            wire.send(sent.replace(b"/chat", _PATH.encode(), 1))
        else:
            wire.send(post(KEY, body, _TYPE, path=_PATH))
        reply = await wire.reply()
        (seen,) = relay.upstream.requests
        record = await relay.record()
        assert seen.body == body
        assert seen.headers["content-type"] == _TYPE["Content-Type"]
        assert seen.headers.get("content-length") == (None if is_chunked else str(len(body)))
        assert (reply.status, reply.body) == (200, seen.answer)
        wire.send(post(KEY, form(("model", "demo"), ("file", b"again")), _TYPE, path=_PATH))
        assert (await wire.reply()).status == 200
    assert (record.outcome, record.model, record.path) == (Outcome.COMPLETED, "demo", _PATH)


async def test_an_upload_without_a_file_passes_too() -> None:
    """It is whole before the provider is asked."""
    body = form(("model", "demo"), ("prompt", "x"))
    async with running_relay() as relay:
        await upload(relay, body, path="/v1/images/edits")
        assert relay.upstream.requests[0].body == body


async def test_an_alias_is_resolved_in_an_upload() -> None:
    """Only its bytes change, and the length with them."""
    body = form(("language", "alias"), ("model", "alias"), ("file", b"alias" * 1000))
    async with running_relay(toml='[aliases]\nalias = "demo:interval_ms=0"') as relay:
        assert (await upload(relay, body)).status == 200
        (seen,) = relay.upstream.requests
        assert seen.body == body.replace(
            b"\r\n\r\nalias\r\n--" + _BOUNDARY.encode() + b'\r\nContent-Disposition: form-data; name="file"',
            b"\r\n\r\ndemo:interval_ms=0\r\n--"
            + _BOUNDARY.encode()
            + b'\r\nContent-Disposition: form-data; name="file"',
        )
        assert (await relay.record()).model == "demo:interval_ms=0"


@dataclass(slots=True)
class _Sink:
    """A provider that counts what it is sent, and keeps none of it."""

    port: int = 0
    received: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request when all of it has come."""
        head = await reader.readuntil(b"\r\n\r\n")
        left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        while left:
            data = await reader.read(min(left, 1 << 14))
            if not data:
                break
            self.received += len(data)
            left -= len(data)
        writer.write(
            b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"text":"hi"}'
        )
        writer.close()


@asynccontextmanager
async def _running_sink() -> AsyncIterator[_Sink]:
    sink = _Sink()
    async with await asyncio.start_server(sink.serve, HOST, 0, limit=1 << 14) as server:
        sink.port = server.sockets[0].getsockname()[1]
        yield sink


async def test_a_large_upload_takes_no_memory() -> None:
    """25 MB go through with less than 1 MiB held at any time, by the client, the relay and the provider."""
    size = 25_000_000
    piece = bytes(range(256)) * 64
    start = form(("model", "demo"), ("file", b"X")).partition(b"X")[0]
    async with (
        _running_sink() as sink,
        running_relay(upstream_url=lambda _: f"http://{HOST}:{sink.port}/v1") as relay,
        await Wire.open(relay.port) as wire,
    ):
        end = f"\r\n--{_BOUNDARY}--\r\n".encode()
        wire.send(post(KEY, start, _TYPE, path=_PATH, length=len(start) + size + len(end)))
        tracemalloc.start()
        try:
            async with asyncio.timeout(PATIENCE_S):
                for at in range(0, size, len(piece)):
                    wire.send(piece[: size - at])
                    await wire.drained()
                wire.send(end)
                reply = await wire.reply()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert reply.body == b'{"text":"hi"}'
    assert sink.received == len(start) + size + len(end)
    assert peak < _MIB


async def test_a_provider_that_does_not_read_slows_the_client() -> None:
    """What it has not taken waits at the client."""
    body = form(("model", "demo"), ("file", b"x" * 20 * _MIB))
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        relay.upstream.held_at_bytes = 100_000
        wire.send(post(KEY, body, _TYPE, path=_PATH))
        taken = -1
        while taken != (taken := wire.taken(len(body))) or taken < 100_000:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.2)  # the kernels have filled up when it no longer grows
        assert taken < 16 * _MIB
        relay.upstream.release_uploads()
        assert (await wire.reply()).status == 200
        assert relay.upstream.requests[0].body == body


@pytest.mark.parametrize(
    ("bounds", "fields", "message"),
    [
        ({"models": ["demo"]}, [("file", b"x" * 300_000), ("model", "demo")], "must come before"),
        ({"tokens_per_day": 10_000_000}, [("file", b"x"), ("model", "demo")], "must come before"),
        ({"models": ["demo"]}, [("prompt", "x"), ("file", b"x")], "must come before"),
        ({"models": ["demo"]}, [("model", "other"), ("file", b"x")], "is not allowed"),
        ({}, [("model", "demo"), ("model", "other"), ("file", b"x")], "model must be there once"),
        ({}, [("Model", "demo"), ("file", b"x")], "model must be there once"),
        ({}, [("model", b"demo"), ("file", b"x")], "model must be there once"),
        ({}, [("model", "x" * 2000), ("file", b"x")], "too long"),
        ({}, [("model", "demo"), ("n", "2.0"), ("file", b"x")], "n must be a whole number"),
        ({}, [("model", "demo"), ("n", "0"), ("file", b"x")], "n must be from 1 to"),
        ({}, [("model", "demo"), ("n", "9" * 400), ("file", b"x")], "n must be from 1 to"),
    ],
)
async def test_an_upload_that_is_not_allowed_is_refused(
    bounds: dict[str, Any], fields: list[tuple[str, str | bytes]], message: str
) -> None:
    """Before the provider hears of it; the connection serves the next request."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        key = await a_key(relay, **bounds)
        wire.send(post(key, form(*fields), _TYPE, path=_PATH))
        reply = await wire.reply()
        assert relay.upstream.requests == []
        assert message in error_of(reply)["message"]
        assert (await relay.record()).outcome is Outcome.REJECTED
        wire.send(post(key, form(("model", "demo"), ("file", b"x")), _TYPE, path=_PATH))
        assert (await wire.reply()).status == 200


@pytest.mark.parametrize(
    ("bounds", "late", "message"),
    [
        ({"models": ["demo"]}, ("model", "dear"), "model must be there once"),
        ({"tokens_per_day": 100_000_000}, ("n", "100"), "n must come before the file"),
    ],
)
@pytest.mark.parametrize("before", [[("file", b"x" * 500_000)], [("prompt", "x" * 500_000), ("file", b"x")]])
async def test_a_field_behind_the_file_does_not_change_what_was_checked(
    before: list[tuple[str, str | bytes]], bounds: dict[str, Any], late: tuple[str, str], message: str
) -> None:
    """The upload is broken off, so that the provider never has all of it."""
    body = form(("model", "demo"), before[0], late, *before[1:])
    async with running_relay() as relay:
        key = await a_key(relay, **bounds)
        reply = await upload(relay, body, key=key)
        assert (reply.status, message in error_of(reply)["message"]) == (400, True)
        await until(lambda: not relay.upstream.connections)
        assert relay.upstream.requests == []
        assert (await relay.record()).outcome is Outcome.REJECTED


@pytest.mark.parametrize("size", [10, 500_000])
@pytest.mark.parametrize(
    "toml",
    [
        '[aliases]\nold = "demo"',
        '[[upstream.route]]\nname = "a"\nmodels = ["demo"]\n[[upstream.route]]\nname = "b"\nmodels = ["old"]',
    ],
    ids=["alias", "routes"],
)
async def test_a_model_that_decides_where_an_upload_goes_must_come_before_the_file(
    toml: str, size: int
) -> None:
    """Behind it, the provider would be asked for an alias, or one that does not serve the model."""
    async with running_relay(toml=toml) as relay:
        reply = await upload(relay, form(("file", b"x" * size), ("model", "old")))
        assert (reply.status, error_of(reply)["message"]) == (
            400,
            "The field model must come before the file.",
        )
        await until(lambda: not relay.upstream.connections)
        assert relay.upstream.requests == []


async def test_a_model_behind_the_file_is_recorded_where_it_is_not_bounded() -> None:
    """The Node SDK writes the fields in the order of its caller."""
    body = form(("file", b"x" * 300_000), ("model", "demo"))
    async with running_relay() as relay:
        assert (await upload(relay, body)).status == 200
        assert relay.upstream.requests[0].body == body
        assert (await relay.record()).model == "demo"


@pytest.mark.parametrize(
    ("headers", "body", "message"),
    [
        ({"Content-Type": "multipart/form-data"}, b"x", "with a boundary"),
        ({"Content-Type": f"multipart/form-data; boundary={'x' * 300}"}, b"x", "boundary"),
        ({"Content-Type": "multipart/related; boundary=x"}, b"--x\r\n", "must be multipart/form-data"),
        (_TYPE, b"no multipart at all", "not valid multipart/form-data"),
    ],
)
async def test_an_upload_that_cannot_be_read_is_refused(
    headers: dict[str, str], body: bytes, message: str
) -> None:
    """Nothing goes on that was not understood."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, body, headers, path=_PATH))
        reply = await wire.reply()
        assert (reply.status, message in error_of(reply)["message"]) == (400, True)
        assert relay.upstream.requests == []


@pytest.mark.parametrize(
    "lines",
    [
        b"form-data; name*=utf-8''model",
        b'form-data; name="model"; name="language"',
        b'form-data; name="mo\\del"',
        b'form-data; name="model"\r\nContent-Disposition: form-data; name="language"',
        b'form-data; name="model"\r\nContent-Transfer-Encoding: quoted-printable',
        b'form-data; name="model"; filename*=x',
    ],
)
def test_a_field_that_servers_read_differently_is_refused(lines: bytes) -> None:
    """The provider could take it for the model, and the relay for something else."""
    reader = MultipartReader("multipart/form-data; boundary=b")
    with pytest.raises(RelayError):
        reader.feed(b"--b\r\nContent-Disposition: " + lines + b"\r\n\r\nx\r\n--b--\r\n")


@pytest.mark.parametrize("at", [0, 20, 45, 49, 50, 51, 53, 55])
def test_a_field_that_was_passed_on_in_part_is_late(at: int) -> None:
    """Wherever it was cut, what was checked is without it."""
    part = b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n10\r\n--b--\r\n'
    reader = MultipartReader("multipart/form-data; boundary=b")
    reader.feed(part[:at])
    reader.pass_on()
    reader.feed(part[at:])
    assert reader.fields["n"].text == "10"
    assert reader.late == {"n"}


@pytest.mark.parametrize("options", ["; boundary=b; boundary=c", "; boundary*=utf-8''b", ""])
def test_an_upload_without_one_boundary_is_refused(options: str) -> None:
    """For the same reason."""
    with pytest.raises(RelayError):
        MultipartReader(f"multipart/form-data{options}")


def test_names_of_files_may_hold_anything() -> None:
    """Quotes, semicolons, other scripts: only the name of the field counts."""
    reader = MultipartReader('Multipart/Form-Data; charset=utf-8; Boundary="b"')
    reader.feed(
        b"--b\r\ncontent-disposition: form-data; name=model\r\n\r\nx\r\n"
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a\\"; name=n; \xc3\xa9"\r\n\r\n'
    )
    assert {name: field.text for name, field in reader.fields.items()} == {"model": "x"}
    assert reader.has_file


async def test_an_upload_over_the_limit_is_refused_or_broken_off() -> None:
    """With a length at once, without one when it shows."""
    body = form(("model", "demo"), ("file", b"x" * 300_000))
    async with running_relay(v1__max_body_bytes=200_000) as relay, await Wire.open(relay.port) as wire:
        assert (await upload(relay, body)).status == 413
        chunks = [body[at : at + 16384] for at in range(0, len(body), 16384)]
        wire.send(post_chunked(KEY, *chunks, b"", headers=_TYPE).replace(b"/chat", _PATH.encode(), 1))
        reply = await wire.reply()
        assert (reply.status, error_of(reply)["code"]) == (413, "too_large")
        assert relay.upstream.requests == []


async def test_the_provider_is_left_when_the_client_leaves_in_the_middle() -> None:
    """Of its upload: the provider's connection ends, the slot is free."""
    body = form(("model", "demo"), ("file", b"x" * 3_000_000))
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, body[:1_000_000], _TYPE, path=_PATH, length=len(body)))
        await until(lambda: relay.upstream.uploading)
        wire.finish()
        assert (await relay.record()).outcome is Outcome.CLIENT_CLOSED
        await until(lambda: not relay.upstream.connections)
        assert not len(relay.server.streams)


async def test_the_operator_ends_an_upload() -> None:
    """Its client reads why, and the provider is left."""
    body = form(("model", "demo"), ("file", b"x" * 3_000_000))
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, body[:1_000_000], _TYPE, path=_PATH, length=len(body)))
        await until(lambda: relay.upstream.uploading)
        (stream,) = relay.server.streams
        relay.server.streams.cancel(stream.record.id)
        reply = await wire.reply()
        assert (reply.status, error_of(reply)["code"]) == (503, "cancelled")
        await until(lambda: not relay.upstream.connections)
        wire.send(body[1_000_000:])
        wire.send(post(KEY, form(("model", "demo"), ("file", b"x")), _TYPE, path=_PATH))
        assert (await wire.reply()).status == 200


@pytest.mark.parametrize("long_field", [("file", b"x" * 40_000), ("prompt", "x" * 40_000)])
async def test_an_upload_in_tiny_pieces_is_broken_off(long_field: tuple[str, str | bytes]) -> None:
    """Each piece costs a turn of the event loop, whatever its size: of the file, or of what precedes it."""
    body = form(("model", "demo"), long_field, ("file", b"x"))
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, body[:1000], _TYPE, path=_PATH, length=len(body)))
        reading = asyncio.create_task(wire.reply(), name="reply")
        while not reading.done():
            wire.send(b"x")
            await asyncio.sleep(0.0005)
        reply = await reading
        assert (reply.status, "tiny pieces" in error_of(reply)["message"]) == (400, True)
        assert relay.upstream.requests == []
        assert (await relay.record()).outcome is Outcome.REJECTED


async def test_an_upload_that_stands_still_is_ended() -> None:
    """Its client gets an answer; if it sends nothing then either, its connection ends."""
    body = form(("model", "demo"), ("file", b"x" * 3_000_000))
    async with running_relay(server__body_timeout_s=0.2) as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, body[:100_000], _TYPE, path=_PATH, length=len(body)))
        reply = await wire.reply()
        assert (reply.status, "arrive" in error_of(reply)["message"]) == (400, True)
        assert await wire.ended() == b""
        await until(lambda: not relay.upstream.connections)


async def test_an_upload_that_makes_progress_has_more_time() -> None:
    """64 KiB in each `server.body_timeout_s` are enough, however long all of it takes."""
    body = form(("model", "demo"), ("file", b"x" * 1_000_000))
    async with running_relay(server__body_timeout_s=0.5) as relay:

        async def is_taken() -> bool:
            before = len(relay.records)
            # The connection of an upload that was broken off is closed under the client.
            with suppress(OSError, RuntimeError):
                async with await Wire.open(relay.port) as wire:
                    wire.send(post(KEY, body[:100_000], _TYPE, path=_PATH, length=len(body)))
                    for at in range(100_000, len(body), 100_000):
                        await asyncio.sleep(0.1)
                        wire.send(body[at : at + 100_000])
                    await until(lambda: len(relay.records) > before)
            return (await relay.record(before)).outcome is Outcome.COMPLETED

        # Once more if a busy machine has let it stand still.
        await eventually(is_taken)


async def test_a_refusal_comes_before_the_upload_is_whole() -> None:
    """The client reads it and may stop sending."""
    body = form(("model", "demo"), ("file", b"x" * 3_000_000))

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        said = b'{"error":{"message":"no","type":"invalid_request_error","param":null,"code":null}}'
        writer.write(
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(said)
            + said
        )
        await reader.read()
        writer.close()

    async with await asyncio.start_server(refuse, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with (
            running_relay(upstream_url=lambda _: f"http://{HOST}:{port}/v1") as relay,
            await Wire.open(relay.port) as wire,
        ):
            wire.send(post(KEY, body[:200_000], _TYPE, path=_PATH, length=len(body)))
            reply = await wire.reply()
            assert (reply.status, error_of(reply)["message"]) == (400, "no")
            wire.send(body[200_000:])
            wire.send(post(KEY, json.dumps({"model": "demo"}).encode(), path="/v1/embeddings"))
            assert (await wire.reply()).status == 400


@given(st.lists(st.integers(0, 2000), max_size=12), st.binary(max_size=60))
def test_the_fields_are_found_at_any_split(cuts: list[int], data: bytes) -> None:
    """And where they stand."""
    body = form(("model", "whisper-1"), ("n", "2"), ("file", data), ("stream", "true"))
    reader = MultipartReader(_TYPE["Content-Type"])
    try:
        for piece in cut(body, cuts):
            reader.feed(piece)
    except RelayError:
        assert f"--{_BOUNDARY}".encode() in data
        return
    values = {name: value.text for name, value in reader.fields.items()}
    assert values == {"model": "whisper-1", "n": "2", "stream": "true"}
    assert reader.has_file
    for value in reader.fields.values():
        assert body[value.start : value.end] == value.text.encode()
