"""Heads that two readers could understand differently, alone and over a socket (`relayd.public.framing`)."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.public.framing import MAX_HEAD_BYTES, MAX_TARGET_BYTES, head_fault
from relayd.state.records import Outcome
from tests.harness import KEY, running_relay
from tests.wire import DONE, Wire, body, fetch, post, post_chunked

_NAME = st.text("abcXYZ0189-!#$%&'*+.^`|~", min_size=1, max_size=12).map(str.encode)
_VALUE = st.binary(max_size=20).map(lambda raw: bytes(b for b in raw if b == 9 or 32 <= b != 127))
_CONTROLS = bytes(b for b in (*range(32), 127) if b != 9)


def _head(*fields: bytes, start: bytes = b"POST /chat HTTP/1.1", end: bytes = b"\r\n\r\n") -> bytes:
    return b"\r\n".join([start, b"Host: relay", *fields]) + end


def _host(host: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"


_UNSOUND = {
    "two lengths": _head(b"Content-Length: 5", b"Content-Length: 6"),
    "the same length twice": _head(b"Content-Length: 5", b"content-length: 5"),
    "a list of lengths": _head(b"Content-Length: 5, 5"),
    "a signed length": _head(b"Content-Length: +5"),
    "a length in hex": _head(b"Content-Length: 0x5"),
    "an endless length": _head(b"Content-Length: " + b"9" * 16),
    "no length": _head(b"Content-Length:"),
    "two codings": _head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "a list of codings": _head(b"Transfer-Encoding: gzip, chunked"),
    "another coding": _head(b"Transfer-Encoding: identity"),
    "a coding and a length": _head(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "a length and a coding": _head(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "a coding in HTTP/1.0": _head(b"Transfer-Encoding: chunked", start=b"POST /chat HTTP/1.0"),
    "a length's twin": _head(b"Content_Length: 5"),
    "a twin beside the length": _head(b"Content-Length: 5", b"content_length: 9"),
    "a coding's twin": _head(b"Transfer_Encoding: chunked"),
    "LF alone": _head(b"Content-Length: 5").replace(b"\r\n", b"\n"),
    "LF after one field": _head(b"A: b\nContent-Length: 5"),
    "LF before the end": _head(b"Content-Length: 5", end=b"\r\n\n"),
    "a bare CR": _head(b"A: b\rContent-Length: 5"),
    "CR CR LF": _head(b"A: b\r"),
    "a folded line": _head(b"A: b", b" c"),
    "a folded first line": _head(b"A:", b"\tb"),
    "space before the colon": _head(b"Content-Length : 5"),
    "no colon": _head(b"Content-Length"),
    "no name": _head(b": 5"),
    "a name with a space": _head(b"A b: c"),
    "NUL": _head(b"A: b\0c"),
    "ESC": _head(b"A: \x1b[2J"),
    "DEL": _head(b"A: \x7f"),
    "HTTP/1.2": _head(start=b"GET / HTTP/1.2"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/01.1": _head(start=b"GET / HTTP/01.1"),
    "http in lower case": _head(start=b"GET / http/1.1"),
    "no version": _head(start=b"GET /"),
    "two spaces": _head(start=b"GET  / HTTP/1.1"),
    "a space at the end": _head(start=b"GET / HTTP/1.1 "),
    "absolute form": _head(start=b"GET http://other.example/chat HTTP/1.1"),
    "authority form": _head(start=b"CONNECT other.example:443 HTTP/1.1"),
    "a target that is not ASCII": _head(start="GET /ä HTTP/1.1".encode()),
    "a target too long": _head(start=b"GET /" + b"a" * MAX_TARGET_BYTES + b" HTTP/1.1"),
    "a space first": b" " + _head(),
    "two empty lines first": b"\r\n\r\n" + _head(),
    "nothing": b"\r\n\r\n",
    "no host": b"POST /chat HTTP/1.1\r\n\r\n",
    "two hosts": _head(b"hOsT: other"),
    "two hosts in HTTP/1.0": _head(b"Host: other", start=b"GET / HTTP/1.0"),
    **{
        f"the host {host!r}": _host(host)
        for host in (
            b"a b",
            b"a b@c/../",
            b"user@relay",
            b"relay/x",
            b"relay?x",
            b"relay#x",
            b"[::1",
            b"::1",
            b"relay:x",
            b"relay:1:2",
            b"<relay>",
            b"re\\lay",
            b'"relay"',
            b"[relay]",
            b"\xe4",
        )
    },
}

_SOUND = {
    "a plain one": _head(b"Content-Length: 5"),
    "chunks": _head(b"Transfer-Encoding: chunked"),
    "Chunks": _head(b"transfer-encoding:\tChunked \t"),
    "no body": _head(start=b"GET / HTTP/1.0"),
    "no field at all": b"GET / HTTP/1.0\r\n\r\n",
    "spaces around a length": _head(b"Content-Length:  5  "),
    "one empty line first": b"\r\n" + _head(b"Content-Length: 5"),
    "every target": _head(start=b"GET /a?b=%20&c#d HTTP/1.1"),
    "an asterisk": _head(start=b"OPTIONS * HTTP/1.1"),
    "an empty value": _head(b"A:"),
    "Latin-1": _head(b"A: \xe4\xff"),
    "the longest target": _head(start=b"GET /" + b"a" * (MAX_TARGET_BYTES - 1) + b" HTTP/1.1"),
    "a framing name inside a value": _head(b"A: Content-Length: 7", b"Content-Length: 5"),
    "a host's name inside a value": _head(b"A: Host: other"),
    **{
        f"the host {host!r}": _host(host)
        for host in (
            b"",
            b"relay.example",
            b"relay:3666",
            b"relay:",
            b"192.0.2.1:80",
            b"[2001:db8::1]:443",
            b"[::ffff:1.2.3.4]",
            b"xn--bcher-kva.example",
            b"a_b~c%20",
            b"relay \t",
        )
    },
    "another underscore": _head(b"X_Content_Length: 5"),
}


@pytest.mark.parametrize("name", _UNSOUND)
def test_what_could_be_read_in_two_ways_is_refused(name: str) -> None:
    """Each form of disagreement has its sentence."""
    fault = head_fault(_UNSOUND[name])
    assert fault is not None
    assert fault.startswith("The request")
    assert fault.endswith(".")


@pytest.mark.parametrize("name", _SOUND)
def test_what_the_standard_allows_is_accepted(name: str) -> None:
    """Strict is not stricter than the standard asks of a sender."""
    assert head_fault(_SOUND[name]) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("LF alone", "The request's head is not valid HTTP/1.1."),
        ("a target too long", "The request's path is longer than 2048 bytes."),
        ("no host", "The request has no Host field, or more than one."),
        ("the host b'a b@c/../'", "The request's Host field is not a host name or address."),
        ("a coding and a length", "The request states the length of its body more than once."),
        ("a length in hex", "The request's Content-Length is not a plain number."),
        ("another coding", "The request's Transfer-Encoding is not supported."),
        (
            "a length's twin",
            "The request has a Content-Length or Transfer-Encoding field that is spelt with an underscore.",
        ),
    ],
)
def test_a_refusal_names_the_fault(name: str, said: str) -> None:
    """So that the author of a client knows what to mend."""
    assert head_fault(_UNSOUND[name]) == said


@settings(max_examples=100)
@given(st.lists(st.tuples(_NAME, _VALUE), max_size=8), st.booleans())
def test_any_sound_fields_are_accepted(fields: list[tuple[bytes, bytes]], chunked: bool) -> None:  # noqa: FBT001 - hypothesis passes it
    """Whatever tokens and visible bytes a client sends, beside one framing field."""
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 3"
    assert head_fault(_head(*(name + b":" + value for name, value in fields), framing)) is None


@settings(max_examples=100)
@given(st.integers(min_value=0), st.sampled_from(_CONTROLS), st.sampled_from(sorted(_SOUND)))
def test_a_control_anywhere_spoils_a_head(place: int, control: int, name: str) -> None:
    """No position hides a control: at any of them the head is refused."""
    head = _SOUND[name]
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


@pytest.mark.parametrize(
    "name",
    ["the same length twice", "a coding and a length", "LF alone", "a length's twin", "NUL", "HTTP/1.2"],
)
async def test_a_refused_head_gets_400_and_the_connection_ends(name: str) -> None:
    """What follows is not read as another request, and the provider hears of neither."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(_UNSOUND[name] + post(KEY, body("demo")))
        reply = await wire.reply()
        assert reply.status == 400
        assert reply.header("Connection") == "close"
        assert reply.header("X-Relayd-Error") == "bad_request"
        assert reply.header("Content-Type") == "application/x-ndjson; charset=utf-8"
        assert reply.error == f"bad_request: {head_fault(_UNSOUND[name])}"
        assert reply.lines[-1] == DONE
        assert await wire.ended() == b""
        assert relay.upstream.total_requests == 0


async def test_each_head_of_a_connection_is_checked() -> None:
    """A refused head after a good request ends the connection too."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await wire.reply()).status == 200
        wire.send(_UNSOUND["two lengths"])
        assert (await wire.reply()).status == 400
        assert await wire.ended() == b""


async def test_a_client_that_leaves_with_a_refused_head_troubles_nobody() -> None:
    """The refusal has nowhere to go, and the next client is served."""
    async with running_relay() as relay:
        for _ in range(20):
            async with await Wire.open(relay.port) as wire:
                wire.send(_UNSOUND["two lengths"])
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
    """Silence has `keep_alive_s`; from its first byte a head has `header_timeout_s`."""
    async with running_relay(server__header_timeout_s=0.2, server__keep_alive_s=2) as relay:
        async with await Wire.open(relay.port) as wire:
            for pause_s in (0.0, 0.5):
                await asyncio.sleep(pause_s)
                wire.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await wire.reply()).status == 200
            began_at = asyncio.get_running_loop().time()
            wire.send(b"GET /healthz HTTP/1.1\r\n")
            assert await wire.ended() == b""
            assert asyncio.get_running_loop().time() - began_at < 1.5
        async with await Wire.open(relay.port) as wire:
            wire.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await wire.reply()).status == 200
            began_at = asyncio.get_running_loop().time()
            assert await wire.ended() == b""
            assert asyncio.get_running_loop().time() - began_at >= 1.5


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
