"""`relayd.public.framing`: heads that two readers could understand differently, alone and over a socket."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.public.framing import MAX_TARGET_BYTES, head_fault
from tests.public.room import KEY, public_room
from tests.wire import Wire, body, until

_NAME = st.text("abcXYZ0189-!#$%&'*+.^`|~", min_size=1, max_size=12).map(str.encode)
_VALUE = st.binary(max_size=20).map(lambda raw: bytes(b for b in raw if b == 9 or 32 <= b != 127))
_CONTROLS = bytes(b for b in (*range(32), 127) if b != 9)


def _head(*fields: bytes, start: bytes = b"POST /chat HTTP/1.1", end: bytes = b"\r\n\r\n") -> bytes:
    return b"\r\n".join([start, b"Host: relay", *fields]) + end


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
    "a longest target": _head(start=b"GET /" + b"a" * (MAX_TARGET_BYTES - 1) + b" HTTP/1.1"),
    "a framing name inside a value": _head(b"A: Content-Length: 7", b"Content-Length: 5"),
    "a host's name inside a value": _head(b"A: Host: other"),
    "another underscore": _head(b"X_Content_Length: 5"),
}


@pytest.mark.parametrize("name", _UNSOUND)
def test_what_could_be_read_in_two_ways_is_refused(name: str) -> None:
    """Each form of disagreement has its sentence."""
    assert head_fault(_UNSOUND[name])


@pytest.mark.parametrize("name", _SOUND)
def test_what_is_http_by_the_letter_is_taken(name: str) -> None:
    """Strict is not more than the standard asks of who sends."""
    assert head_fault(_SOUND[name]) is None


@settings(max_examples=100)
@given(st.lists(st.tuples(_NAME, _VALUE), max_size=8), st.booleans())
def test_any_sound_fields_are_taken(fields: list[tuple[bytes, bytes]], chunked: bool) -> None:  # noqa: FBT001 - hypothesis passes it
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
def test_no_bytes_are_too_strange(head: bytes) -> None:
    """Anything at all gets an answer, and only what begins like a request may be sound."""
    if head_fault(head) is None:
        assert b" HTTP/1." in head


@pytest.mark.parametrize(
    "name",
    ["the same length twice", "a coding and a length", "LF alone", "a length's twin", "NUL", "HTTP/1.2"],
)
async def test_a_refused_head_gets_400_and_the_connection_ends(name: str) -> None:
    """What follows is not read as another request, and the provider hears of neither."""
    smuggled = b"POST /chat HTTP/1.1\r\nHost: a\r\nAuthorization: %b\r\nContent-Length: %d\r\n\r\n%b"
    follows = body("demo")
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(_UNSOUND[name] + smuggled % (KEY.encode(), len(follows), follows))
        reply = await wire.reply()
        assert reply.status == 400
        assert reply.header("Connection") == "close"
        assert reply.error is not None
        assert reply.error.startswith("bad_request: The request")
        assert await wire.ended() == b""
        await until(lambda: len(room.connections) == 0)
        assert not room.demo.requests


async def test_a_refused_head_after_a_good_request_ends_the_connection_too() -> None:
    """The check is of every head, not of a connection's first."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await wire.reply()).status == 200
        wire.send(_UNSOUND["two lengths"])
        assert (await wire.reply()).status == 400
        assert await wire.ended() == b""
