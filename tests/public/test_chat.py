"""`POST /chat` over real sockets: what is sent back, and what the provider is asked."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractAsyncContextManager

import pytest

from relayd.public.chatrequest import ChatRules
from relayd.relay.stream import StreamLimits
from relayd.relay.upstream import Upstream, UpstreamBody, UpstreamOptions
from relayd.state.records import Outcome
from tests.public.room import KEY, PROVIDER_KEY, Room, Setup, public_room
from tests.support.loop import TestLoop
from tests.wire import DONE, DONE_BYTES, QUESTION, Wire, ask, body, post, until

_THREE = "demo:text=words,deltas=3,interval_ms=0"
_WORDS = "The relay passes "


def _asked(room: Room, n: int = 0) -> dict[str, object]:
    """What the provider was sent."""
    sent: dict[str, object] = json.loads(room.demo.requests[n].body)
    return sent


async def test_an_answer_is_lines_with_their_keys_in_order() -> None:
    """Each delta is one line, byte for byte as the contract says, and one done line ends them."""
    async with public_room() as room:
        reply = await room.ask(_THREE)
        assert reply.body == (
            b'{"done":false,"error":false,"content":"The "}\n'
            b'{"done":false,"error":false,"content":"relay "}\n'
            b'{"done":false,"error":false,"content":"passes "}\n' + DONE_BYTES
        )
        record = await room.book.record()
    assert (record.outcome, record.status, record.deltas) == (Outcome.COMPLETED, 200, 3)
    assert record.bytes_out == len(reply.body)
    assert record.client == "default"


async def test_a_reply_has_the_headers_of_a_stream() -> None:
    """Proxies are told not to buffer, browsers which page may read, the caller which id it has."""
    async with public_room() as room:
        reply = await ask(room.port, KEY, body(_THREE), {"Origin": "https://page.example"})
    assert reply.header("Content-Type") == "application/x-ndjson; charset=utf-8"
    assert reply.header("Cache-Control") == "no-store"
    assert reply.header("X-Accel-Buffering") == "no"
    assert reply.header("Access-Control-Allow-Origin") == "https://page.example"
    assert reply.header("Server") is None
    assert reply.header("X-Relayd-Error") is None
    assert reply.header("X-Request-Id") == room.book.closed[0].id


@pytest.mark.parametrize("text", ["cjk", "emoji", "words"])
@pytest.mark.parametrize("shape", ["one_byte", "coalesced", "crlf+comments", "cr_only+bom"])
async def test_no_write_ends_inside_a_line(text: str, shape: str) -> None:
    """However the provider's bytes are cut, each chunk that a client gets is whole lines."""
    async with public_room() as room:
        reply = await room.ask(f"demo:text={text},deltas=8,interval_ms=0,fault={shape}")
    assert all(data.endswith(b"\n") for _, data in reply.pieces)
    assert [json.loads(line) for _, data in reply.pieces for line in data.splitlines()] == reply.lines
    assert reply.lines[-1] == DONE
    assert reply.error is None


async def test_usage_is_on_the_last_line_where_it_was_asked_for() -> None:
    """Only `stream_options.include_usage` adds the two fields; the record has the figures anyway."""
    async with public_room() as room:
        told = await room.ask(_THREE, stream_options={"include_usage": True})
        untold = await room.ask(_THREE, stream_options={"include_usage": False})
        record = await room.book.record(1)
    assert told.body.splitlines()[-1] == (
        b'{"done":true,"error":false,"content":"[DONE]","finish_reason":"stop",'
        b'"usage":{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5}}'
    )
    assert untold.lines[-1] == DONE
    assert (record.prompt_tokens, record.completion_tokens, record.finish_reason) == (2, 3, "stop")


async def test_a_failed_answer_still_ends_with_usage_fields_for_who_asked() -> None:
    """What is not known is null."""
    async with public_room() as room:
        reply = await room.ask("demo:fault=cut_mid,interval_ms=0", stream_options={"include_usage": True})
    assert reply.lines[-1] == {**DONE, "finish_reason": None, "usage": None}


async def test_silence_before_the_first_token_is_filled() -> None:
    """An empty line comes after each heartbeat; a client that appends content appends nothing."""
    async with public_room(Setup(limits=StreamLimits(heartbeat_s=0.05))) as room:
        reply = await room.ask("demo:text=words,deltas=1,first_ms=500")
    beats = [line for line in reply.lines if line["content"] == ""]
    assert len(beats) >= 2
    assert reply.lines[: len(beats)] == beats
    assert reply.text == "The "
    assert reply.lines[-1] == DONE


async def test_silence_between_tokens_is_filled() -> None:
    """The heartbeat counts from the last line, whatever the line was."""
    async with public_room(Setup(limits=StreamLimits(heartbeat_s=0.05))) as room:
        reply = await room.ask("demo:text=words,deltas=2,interval_ms=500")
    assert [line["content"] for line in reply.lines if line["content"]] == ["The ", "relay ", "[DONE]"]
    assert len([line for line in reply.lines if line["content"] == ""]) >= 2


async def test_a_lively_stream_has_no_heartbeat() -> None:
    """While lines come, no empty one is among them."""
    async with public_room(Setup(limits=StreamLimits(heartbeat_s=1))) as room:
        reply = await room.ask("demo:text=words,deltas=20,interval_ms=60")
    assert len(reply.lines) == 21


async def test_a_failure_after_a_heartbeat_is_a_failure_in_the_stream() -> None:
    """Once a heartbeat went out the status is 200, and the lines tell of the failure."""
    limits = StreamLimits(heartbeat_s=0.05, first_token_timeout_s=0.5)
    async with public_room(Setup(limits=limits)) as room:
        reply = await room.ask("demo:fault=stall_headers")
        record = await room.book.record()
    assert reply.status == 200
    assert reply.error is not None
    assert reply.error.startswith("upstream_timeout: ")
    assert reply.lines[-1] == DONE
    assert record.status == 200


async def test_a_refusal_of_the_model_is_content() -> None:
    """What the model says when it refuses is read like any answer."""
    async with public_room() as room:
        reply = await room.ask(_THREE + ",refusal=1")
    assert reply.text == _WORDS


@pytest.mark.parametrize("stream", [True, False, None])
async def test_the_stream_field_changes_nothing(stream: bool | None) -> None:  # noqa: FBT001 - a JSON value
    """/chat always streams."""
    async with public_room() as room:
        reply = await room.ask(_THREE, stream=stream)
        assert _asked(room)["stream"] is True
    assert reply.text == _WORDS


async def test_the_default_model_is_asked_where_none_is_named() -> None:
    """The operator's model stands in, for the provider and in the record."""
    async with public_room(Setup(rules=ChatRules(default_model=_THREE))) as room:
        reply = await room.ask(None)
        assert _asked(room)["model"] == _THREE
        assert (await room.book.record()).model == _THREE
    assert reply.text == _WORDS


async def test_what_the_client_wrote_is_what_the_provider_gets() -> None:
    """Messages with images and tools, and every sampling field, are forwarded as they are."""
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function"}]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,é"}}]},
    ]
    fields = {"messages": messages, "temperature": 0.5, "stop": ["x"], "seed": 7, "verbosity": "low"}
    async with public_room() as room:
        assert (await ask(room.port, KEY, json.dumps({"model": _THREE, **fields}).encode())).error is None
        sent = _asked(room)
    assert {name: sent[name] for name in fields} == fields


@pytest.mark.parametrize("form", [KEY, f"Bearer {KEY}", f"bearer   {KEY} ", f"BEARER {KEY}"])
async def test_a_key_may_come_with_and_without_its_scheme(form: str) -> None:
    """Both forms of the header are the same key."""
    async with public_room() as room:
        assert (await ask(room.port, form, body(_THREE))).status == 200


async def test_a_client_of_http_1_0_reads_to_the_end_of_the_connection() -> None:
    """It knows no chunks, so it gets bare lines and then the end."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, body(_THREE), version="HTTP/1.0"))
        reply = await wire.reply()
    assert reply.header("Transfer-Encoding") is None
    assert reply.text == _WORDS
    assert reply.lines[-1] == DONE


async def test_a_client_of_http_1_0_that_wants_to_stay_is_told_no() -> None:
    """A reply whose end is the connection's end cannot keep it, whatever the client asked for."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, body(_THREE), {"Connection": "keep-alive"}, version="HTTP/1.0"))
        reply = await wire.reply()
    assert reply.header("Connection") in {None, "close"}
    assert reply.lines[-1] == DONE


async def test_a_connection_serves_again_after_a_stream() -> None:
    """Requests one after the other share a connection, failed ones between good ones."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        for n in range(6):
            wire.send(post(KEY, body(_THREE) if n % 2 == 0 else b"{"))
            reply = await wire.reply()
            assert reply.status == (400 if n % 2 else 200)
            assert reply.lines[-1] == DONE
        assert len(room.book.closed) == 6
        assert await room.registry.wait_empty(30)


async def test_requests_sent_at_once_are_answered_one_after_the_other() -> None:
    """A client that pipelines gets each reply whole and in order."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, body(_THREE)) + post(KEY, b"{") + post(KEY, body("demo:text=cjk,deltas=1")))
        replies = [await wire.reply() for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 400, 200]
    assert [reply.text for reply in replies] == [_WORDS, "", "流"]


async def test_a_trailing_line_end_is_no_reason_to_go() -> None:
    """Some clients send CRLF after the body: the stream goes on, and the next request is understood."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, body(_THREE)) + b"\r\n")
        assert (await wire.reply()).text == _WORDS


async def test_a_chunked_body_is_read() -> None:
    """A body without a length is a body."""
    payload = body(_THREE)
    head = post(KEY, b"", {"Transfer-Encoding": "chunked"}).replace(b"Content-Length: 0\r\n", b"")
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(head + b"%x\r\n%b\r\n" % (10, payload[:10]))
        await room.admitted()
        wire.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(payload) - 10, payload[10:]))
        assert (await wire.reply()).text == _WORDS


async def test_a_chunked_body_over_the_limit_is_refused_as_it_grows() -> None:
    """Without a length the size shows only on the way: 413 comes before all of it is read."""
    head = post(KEY, b"", {"Transfer-Encoding": "chunked"}).replace(b"Content-Length: 0\r\n", b"")
    async with public_room(Setup(max_body_bytes=1000)) as room, await Wire.open(room.port) as wire:
        wire.send(head + b"258\r\n" + b" " * 600 + b"\r\n258\r\n" + b" " * 600 + b"\r\n")
        reply = await wire.reply()
        record = await room.book.record()
    assert reply.status == 413
    assert reply.header("Connection") == "close"
    assert record.error is not None
    assert record.error.code == "too_large"


async def test_expect_100_continue_is_answered_before_the_body() -> None:
    """A client like curl asks before it sends a large body; who is admitted is told to go on."""
    payload = body(_THREE)
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, b"", {"Expect": "100-continue"}, length=len(payload)))
        assert (await wire.head()).status == 100
        wire.send(payload)
        assert (await wire.reply()).text == _WORDS


async def test_expect_100_continue_is_refused_without_a_key() -> None:
    """Who is not admitted never sends the body."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post("wrong", b"", {"Expect": "100-continue"}, length=100))
        assert (await wire.reply()).status == 401


async def test_a_slow_body_has_its_time() -> None:
    """A body that does not arrive is a bad request, and its place is free again."""
    async with public_room(Setup(body_timeout_s=0.1)) as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, b"{", length=100))
        reply = await wire.reply()
        assert reply.status == 400
        assert reply.error == "bad_request: The body did not arrive within 0.1 s."
        assert reply.lines[-1] == DONE
        assert await wire.ended() == b""
        assert await room.registry.wait_empty(30)
        assert (await room.book.record()).outcome is Outcome.REJECTED


async def test_a_refused_body_is_not_refused_again_when_its_time_is_over() -> None:
    """The body's clock stops with the refusal: one reply, one record."""
    head = post(KEY, b"", {"Transfer-Encoding": "chunked"}).replace(b"Content-Length: 0\r\n", b"")
    setup = Setup(max_body_bytes=100, body_timeout_s=0.2)
    async with public_room(setup) as room, await Wire.open(room.port) as wire:
        wire.send(head + b"258\r\n" + b" " * 600 + b"\r\n")
        assert (await wire.reply()).status == 413
        assert await wire.ended() == b""
        assert len(room.book.closed) == 1


async def test_a_slow_head_is_cut_off() -> None:
    """A connection that sends no whole head is closed."""
    async with public_room(Setup(header_timeout_s=0.1)) as room, await Wire.open(room.port) as wire:
        wire.send(b"POST /chat HTTP/1.1\r\nHost:")
        assert await wire.ended() == b""


@pytest.mark.parametrize("method", ["GET", "PUT", "BREW", "HEAD"])
async def test_other_methods_are_refused_in_json(method: str) -> None:
    """They are no chats: no lines, no record, and the connection's end is announced."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, body(_THREE)).replace(b"POST", method.encode(), 1))
        reply = await (wire.head() if method == "HEAD" else wire.reply())
        assert await wire.ended() == b""
        assert room.book.closed == []
    assert reply.status == 405
    assert reply.header("Allow") == "POST, OPTIONS"
    assert method == "HEAD" or set(json.loads(reply.body)["error"]) == {"code", "message"}
    assert reply.header("Connection") == "close"


class _Buggy(Upstream):
    """A client of the provider with a bug in it."""

    def stream(self, body: bytes, **_: object) -> AbstractAsyncContextManager[UpstreamBody]:  # type: ignore[override]
        """Meet the bug."""
        raise ZeroDivisionError(f"a bug beside {len(body)} bytes")


async def test_a_bug_is_internal_and_its_details_stay_in_the_log(
    io_loop: TestLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """The client learns the request's id and nothing else; the log has the traceback under it."""
    setup = Setup(upstream=lambda url: _Buggy(PROVIDER_KEY, UpstreamOptions(url)))
    async with public_room(setup) as room:
        reply = await ask(room.port, KEY, body(_THREE), {"Origin": "https://page.example"})
        record = await room.book.record()
        assert await room.registry.wait_empty(30)
    assert reply.status == 500
    assert reply.header("X-Relayd-Error") == "internal"
    assert reply.header("Access-Control-Allow-Origin") == "https://page.example"
    assert len(reply.lines) == 2
    assert reply.lines[1] == DONE
    assert reply.error is not None
    assert record.id in reply.error
    assert "ZeroDivisionError" not in reply.error
    assert record.outcome is Outcome.CRASHED
    assert f"request {record.id} met a bug" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert io_loop is not None


async def test_a_client_that_reads_nothing_is_dropped() -> None:
    """After the write timeout its connection is cut, its provider's too, and the record says why."""
    setup = Setup(write_timeout_s=0.3)
    async with public_room(setup) as room, await Wire.open(room.port) as wire:
        wire.pause()
        wire.send(post(KEY, body("demo:text=x100000,deltas=1000,interval_ms=0")))
        record = await room.book.record()
        assert record.outcome is Outcome.CLIENT_STALLED
        assert record.stalled_ms >= 300
        await room.demo.wait_closed(0)
        assert await room.registry.wait_empty(30)


async def test_waiting_for_a_slow_reader_is_not_the_providers_silence() -> None:
    """While the client must be waited for, no clock of the provider runs."""
    setup = Setup(limits=StreamLimits(idle_timeout_s=1))
    async with public_room(setup) as room, await Wire.open(room.port) as wire:
        wire.pause()
        wire.send(post(KEY, body("demo:text=x100000,deltas=200,interval_ms=0")))
        await until(lambda: any(stream.writing for stream in room.registry))
        await asyncio.sleep(1.5)
        wire.resume()
        reply = await wire.reply()
    assert reply.error is None
    assert len(reply.text) == 200 * 100000


async def test_who_pipelines_and_never_reads_holds_no_place_for_ever() -> None:
    """Refusals that the client never takes end with its connection, after the write timeout."""
    setup = Setup(write_timeout_s=0.2, send_buffer_bytes=4096)
    async with public_room(setup) as room, await Wire.open(room.port, receive_buffer_bytes=4096) as wire:
        wire.pause()
        wire.send(post(KEY, b"{") * 200)
        await until(wire.lost)
        assert await room.registry.wait_empty(30)
