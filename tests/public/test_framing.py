"""Heads that two readers could understand differently, alone and over a socket (`relayd.public.framing`)."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.public.framing import MAX_HEAD_BYTES, MAX_TARGET_BYTES, head_fault
from relayd.state.records import Outcome
from tests.harness import KEY, running_relay
from tests.wire import DONE, Wire, body, fetch, post, post_chunked

_NAME = st.text("abcXYZ0189-!#$%&'*+.^`|~", min_size=1, max_size=12).map(str.encode)
_VALUE = st.binary(max_size=20).map(lambda raw: bytes(b for b in raw if b == 9 or 32 <= b != 127))
_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
_CONTROLS = bytes(b for b in (*range(32), 127) if b != 9)


def _head(*fields: bytes, start: bytes = b"POST /chat HTTP/1.1", end: bytes = b"\r\n\r\n") -> bytes:
    return b"\r\n".join([start, b"Host: relay", *fields]) + end


def _host(host: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"


_GET = b"GET / HTTP/1.1"
_UNSOUND = {
    "The request states the length of its body more than once.": [
        _head(b"Content-Length: 5", b"Content-Length: 6"),
        _head(b"Content-Length: 5", b"content-length: 5"),
        _head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        _head(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        _head(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        _head(b"Content-Length: 5", b"content_length: 9"),
    ],
    "The request's Content-Length is not a plain number.": [
        _head(b"Content-Length:" + value) for value in (b"5, 5", b"+5", b"0x5", b"9" * 16, b"", b" -1")
    ],
    "The request's Transfer-Encoding is not supported.": [
        _head(b"Transfer-Encoding: gzip, chunked"),
        _head(b"Transfer-Encoding: identity"),
        _head(b"Transfer-Encoding: chunked", start=b"POST /chat HTTP/1.0"),
    ],
    "The request has a Content-Length or Transfer-Encoding field that is spelt with an underscore.": [
        _head(b"Content_Length: 5"),
        _head(b"Transfer_Encoding: chunked"),
    ],
    "The request's path is longer than 2048 bytes.": [
        _head(start=b"GET /" + b"a" * MAX_TARGET_BYTES + b" HTTP/1.1")
    ],
    "The request has no Host field, or more than one.": [
        _GET + b"\r\n\r\n",
        _head(b"hOsT: other"),
        _head(b"Host: other", start=b"GET / HTTP/1.0"),
    ],
    "The request's Host field is not a host name or address.": [
        *(_host(host) for host in (b"a b", b"a b@c/../", b"user@relay", b"relay/x", b"relay?x", b"relay#x")),
        *(_host(host) for host in (b"[::1", b"::1", b"relay:x", b"relay:1:2", b"<relay>", b"re\\lay")),
        *(_host(host) for host in (b'"relay"', b"[relay]", b"\xe4")),
    ],
    "The request's head is not valid HTTP/1.1.": [
        # Line ends, folded lines, and what is no name of a field.
        _head(b"Content-Length: 5").replace(b"\r\n", b"\n"),
        _head(b"A: b\nContent-Length: 5"),
        _head(b"Content-Length: 5", end=b"\r\n\n"),
        *(_head(b"A: b" + end) for end in (b"\rContent-Length: 5", b"\r", b"\0c", b"\x1b[2J", b"\x7f")),
        *(_head(b"A: b", b" c"), _head(b"A:", b"\tb")),
        *(_head(field) for field in (b"Content-Length : 5", b"Content-Length", b": 5", b"A b: c")),
        # Other versions, and other forms of the first line.
        *(
            _head(start=b"GET / " + version)
            for version in (b"HTTP/1.2", b"HTTP/01.1", b"http/1.1", b"HTTP/1.1 ")
        ),
        *(b"PRI * HTTP/2.0\r\n\r\n", b"GET /\r\n\r\n", b"\r\n\r\n"),
        *(
            _head(start=start)
            for start in (b"GET /", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", "GET /ä HTTP/1.1".encode())
        ),
        _head(start=b"GET http://other.example/chat HTTP/1.1"),
        _head(start=b"CONNECT other.example:443 HTTP/1.1"),
        *(b" " + _head(), b"\r\n\r\n" + _head()),
    ],
}
_FAULTS = [(head, said) for said, heads in _UNSOUND.items() for head in heads]
_TWO_LENGTHS = _FAULTS[0][0]

_SOUND = [
    *(_head(), _head(b"A:"), _head(b"A: \xe4\xff"), _head(b"X_Content_Length: 5")),
    *(_head(b"Content-Length: 5"), _head(b"Content-Length:  5  "), b"\r\n" + _head(b"Content-Length: 5")),
    *(_head(b"Transfer-Encoding: chunked"), _head(b"transfer-encoding:\tChunked \t")),
    *(_head(start=b"GET / HTTP/1.0"), b"GET / HTTP/1.0\r\n\r\n"),
    *(_head(start=b"GET /a?b=%20&c#d HTTP/1.1"), _head(start=b"OPTIONS * HTTP/1.1")),
    _head(start=b"GET /" + b"a" * (MAX_TARGET_BYTES - 1) + b" HTTP/1.1"),
    # The names of framing fields within values.
    *(_head(b"A: Content-Length: 7", b"Content-Length: 5"), _head(b"A: Host: other")),
    *(_host(host) for host in (b"", b"relay.example", b"relay:3666", b"relay:", b"192.0.2.1:80")),
    *(_host(host) for host in (b"[2001:db8::1]:443", b"[::ffff:1.2.3.4]", b"a_b~c%20", b"relay \t")),
]


@pytest.mark.parametrize(("head", "said"), _FAULTS)
def test_what_could_be_read_in_two_ways_is_refused_by_name(head: bytes, said: str) -> None:
    """So that the author of a client knows what to mend."""
    assert head_fault(head) == said


@pytest.mark.parametrize("head", _SOUND)
def test_what_the_standard_allows_is_accepted(head: bytes) -> None:
    """Strict is not stricter than the standard asks of a sender."""
    assert head_fault(head) is None


@settings(max_examples=100)
@given(st.lists(st.tuples(_NAME, _VALUE), max_size=8), st.booleans())
def test_any_sound_fields_are_accepted(fields: list[tuple[bytes, bytes]], chunked: bool) -> None:  # noqa: FBT001 - hypothesis passes it
    """Whatever tokens and visible bytes a client sends, beside one framing field."""
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 3"
    assert head_fault(_head(*(name + b":" + value for name, value in fields), framing)) is None


@settings(max_examples=100)
@given(st.integers(min_value=0), st.sampled_from(_CONTROLS), st.sampled_from(_SOUND))
def test_a_control_anywhere_spoils_a_head(place: int, control: int, head: bytes) -> None:
    """No position hides a control: at any of them the head is refused."""
    place %= len(head) - 3
    spoiled = head[:place] + bytes([control]) + head[place:]
    if spoiled.removeprefix(b"\r\n") in {head, head.removeprefix(b"\r\n")}:
        return
    assert head_fault(spoiled)


@settings(max_examples=100)
@given(
    st.lists(
        st.sampled_from([b"Content-Length: 5", b"content-length:5", b"Transfer-Encoding: chunked"]),
        min_size=2,
        max_size=4,
    ),
    st.lists(_NAME, max_size=4),
)
def test_two_framing_fields_are_refused_wherever_they_stand(
    framing: list[bytes], between: list[bytes]
) -> None:
    """However many fields stand between them."""
    fields = framing[:1] + [name + b": x" for name in between] + framing[1:]
    assert head_fault(_head(*fields))


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer(head: bytes) -> None:
    """Only what begins like a request may be sound."""
    if head_fault(head) is None:
        assert b" HTTP/1." in head


@pytest.mark.parametrize(("head", "said"), [(heads[-1], said) for said, heads in _UNSOUND.items()])
async def test_a_refused_head_gets_400_and_the_connection_ends(head: bytes, said: str) -> None:
    """Behind a good request, too. What follows is not read as another request."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(_HEALTH)
        assert (await wire.reply()).status == 200
        wire.send(head + post(KEY, body("demo")))
        reply = await wire.reply()
        assert (reply.status, reply.error, reply.lines[-1]) == (400, f"bad_request: {said}", DONE)
        assert reply.header("Connection") == "close"
        assert reply.header("X-Relayd-Error") == "bad_request"
        assert reply.header("Content-Type") == "application/x-ndjson; charset=utf-8"
        assert await wire.ended() == b""
        assert relay.upstream.total_requests == 0


async def test_a_client_that_leaves_with_a_refused_head_troubles_nobody() -> None:
    """The refusal has nowhere to go, and the next client is served."""
    async with running_relay() as relay:
        for _ in range(20):
            async with await Wire.open(relay.port) as wire:
                wire.send(_TWO_LENGTHS)
                wire.reset()
        assert (await fetch(relay.port, "/healthz")).status == 200


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES, 1 << 20])
async def test_a_head_that_is_too_large_gets_400_before_the_end(size: int) -> None:
    """On a new connection and on a kept one; it is not reset before the client could read."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        for headers, status in (({}, 401), ({"X-Filler": "x" * size}, 400)):
            wire.send(post(None, b"{}", headers))
            reply = await wire.reply()
            assert reply.status == status
        assert reply.error == "bad_request: The request's headers are larger than 16384 bytes."
        assert reply.header("Connection") == "close"
        assert reply.lines[-1] == DONE
        assert await wire.ended() == b""


async def test_a_head_of_just_the_size_is_read() -> None:
    """The limit is the limit."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        filler = "x" * (MAX_HEAD_BYTES - len(post(KEY, b"", {"X-Filler": ""})))
        wire.send(post(KEY, b"", {"X-Filler": filler}))
        assert (await wire.reply()).error == "bad_request: The body is not JSON: Input data was truncated."


@pytest.mark.parametrize("said", [b"", b"POST /chat HTTP/1.1\r\nHost:"])
async def test_a_head_has_its_time(said: bytes) -> None:
    """A new connection that sends no whole head is closed, silent or not."""
    async with running_relay(server__header_timeout_s=0.2) as relay, await Wire.open(relay.port) as wire:
        wire.send(said)
        assert await wire.ended() == b""


async def test_a_connection_is_kept_between_two_requests() -> None:
    """Silence has `keep_alive_s`, here ten minutes; from its first byte a head has `header_timeout_s`."""
    async with (
        running_relay(server__header_timeout_s=2, server__keep_alive_s=600) as relay,
        await Wire.open(relay.port) as wire,
    ):
        for pause_s in (0.0, 2.5):
            await asyncio.sleep(pause_s)
            wire.send(_HEALTH)
            assert (await wire.reply()).status == 200
        wire.send(_HEALTH[:20])
        assert await wire.ended() == b""


async def test_an_idle_connection_ends_after_its_time() -> None:
    """And not before."""
    async with (
        running_relay(server__header_timeout_s=0.5, server__keep_alive_s=1) as relay,
        await Wire.open(relay.port) as wire,
    ):
        began_at = time.monotonic()
        wire.send(_HEALTH)
        assert (await wire.reply()).status == 200
        assert await wire.ended() == b""
        assert time.monotonic() - began_at >= 0.95


async def test_a_head_that_began_with_the_request_before_has_its_time_too() -> None:
    """Its first bytes came together with that request; it has no more than `header_timeout_s`."""
    async with (
        running_relay(server__header_timeout_s=0.2, server__keep_alive_s=600) as relay,
        await Wire.open(relay.port) as wire,
    ):
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /healthz HT")
        assert (await wire.reply()).status == 200
        assert await wire.ended() == b""


async def test_a_connection_may_be_idle_for_less_time_than_a_head_has() -> None:
    """`keep_alive_s` holds by itself."""
    async with (
        running_relay(server__header_timeout_s=600, server__keep_alive_s=0.2) as relay,
        await Wire.open(relay.port) as wire,
    ):
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await wire.reply()).status == 200
        assert await wire.ended() == b""


@pytest.mark.parametrize("wrong", [b"zz\r\n", b"2\r\nabX\r\n", b"0\r\nTrailer: x\r\n\r\n", b"0" * 1000])
async def test_a_body_that_is_not_http_is_refused_in_lines(wrong: bytes) -> None:
    """Chunk extensions and trailers are among them; the request is recorded, and its slot free again."""
    async with running_relay(server__max_streams=1) as relay:
        for n in range(2):
            async with await Wire.open(relay.port) as wire:
                wire.send(post_chunked(KEY) + wrong)
                reply = await wire.reply()
                assert reply.status == 400
                assert reply.error == "bad_request: The request's body is not valid HTTP/1.1."
                assert reply.header("X-Relayd-Error") == "bad_request"
                assert reply.lines[-1] == DONE
                assert await wire.ended() == b""
            record = await relay.record(n)
            assert (record.outcome, record.status) == (Outcome.REJECTED, 400)


async def test_a_refused_body_that_is_not_http_gets_one_answer() -> None:
    """The client reads its 401, and no second answer that a proxy would hand to the next request."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post_chunked("wrong"))
        assert (await wire.reply()).status == 401
        wire.send(b"zz\r\n")
        assert await wire.ended() == b""
        assert (await relay.record()).outcome is Outcome.DENIED
