"""`POST /chat` over real sockets: what is sent back, what the provider is asked, what is recorded."""

from __future__ import annotations

import asyncio
import json
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from relayd.public.handlers import new_request_id
from relayd.state.records import Outcome, Phase
from tests.harness import KEY, Relay, running_relay
from tests.wire import DONE, DONE_BYTES, HOST, QUESTION, Wire, ask, body, fetch, post

_THREE = "demo:text=words,deltas=3,interval_ms=0"
_WORDS = "The relay passes "


def _asked(relay: Relay, n: int = 0) -> dict[str, object]:
    """Return what the provider was sent."""
    sent: dict[str, object] = json.loads(relay.upstream.requests[n].body)
    return sent


async def test_an_answer_is_lines_with_their_keys_in_order() -> None:
    """Byte for byte as the contract says, and not to be kept by any proxy or cache on the way."""
    async with running_relay() as relay:
        reply = await relay.ask(_THREE)
        record = await relay.record()
    assert reply.body == (
        b'{"done":false,"error":false,"content":"The "}\n'
        b'{"done":false,"error":false,"content":"relay "}\n'
        b'{"done":false,"error":false,"content":"passes "}\n' + DONE_BYTES
    )
    assert reply.header("Content-Type") == "application/x-ndjson; charset=utf-8"
    assert reply.header("Cache-Control") == "no-store"
    assert reply.header("X-Accel-Buffering") == "no"
    assert reply.header("X-Content-Type-Options") == "nosniff"
    assert (reply.header("Server"), reply.header("X-Relayd-Error")) == (None, None)
    assert reply.header("X-Request-Id") == record.id
    assert (record.outcome, record.phase, record.status) == (Outcome.COMPLETED, Phase.DONE, 200)
    assert (record.deltas, record.bytes_out, record.stalled_ms) == (3, len(reply.body), 0)


@pytest.mark.parametrize(
    "model", [_THREE, "demo:interval_ms=0,fault=coalesced,batch=100", "demo:first_ms=300"]
)
async def test_a_browsers_head_fills_its_first_read(model: str) -> None:
    """Chromium reads 4,096 bytes to find the head: it finds all of it, and no part of a line."""
    origin = {"Origin": "https://page.example"}
    async with running_relay(chat__heartbeat_s=0.1) as relay:
        reader, writer = await asyncio.open_connection(HOST, relay.port)
        writer.write(post(KEY, body(model), origin))
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert len(head) == 4096
        assert (await ask(relay.port, KEY, body(model))).header("X-Padding") is None
        behind = {**origin, "X-Forwarded-For": "192.0.2.1"}
        assert (await ask(relay.port, KEY, body(model), behind)).header("X-Padding") is None


async def test_each_field_of_a_head_is_there_once() -> None:
    """Good replies and refusals, before and after the body was read; each tells the time."""
    async with running_relay(server__max_body_bytes=300) as relay, await Wire.open(relay.port) as wire:
        for sent in (post(KEY, body(_THREE)), post(KEY, b"{"), post(KEY, body(_THREE, user="x" * 400))):
            wire.send(sent)
            reply = await wire.reply()
            names = [name.lower() for name, _ in reply.headers]
            assert len(names) == len(set(names)), names
            assert ("content-length" in names) is not ("transfer-encoding" in names)
            assert {"date", "vary", "x-request-id", "cache-control", "x-content-type-options"} <= set(names)
            told_at_s = parsedate_to_datetime(reply.header("Date") or "").timestamp()
            assert abs(told_at_s - time.time()) < 30


@pytest.mark.parametrize(
    ("text", "shape"),
    [("cjk", "one_byte"), ("emoji", "one_byte"), ("words", "coalesced"), ("cjk", "crlf+comments")],
)
async def test_no_write_ends_inside_a_line(text: str, shape: str) -> None:
    """However the provider's bytes are cut, each chunk that a client gets is whole lines."""
    async with running_relay() as relay:
        reply = await relay.ask(f"demo:text={text},deltas=8,interval_ms=0,fault={shape}")
    assert [json.loads(line) for _, data in reply.pieces for line in data.splitlines()] == reply.lines
    assert all(data.endswith(b"\n") for _, data in reply.pieces)
    assert (reply.error, reply.lines[-1]) == (None, DONE)


async def test_usage_is_on_the_last_line_where_it_was_asked_for() -> None:
    """Only `stream_options.include_usage` adds the two fields; the record has the figures anyway."""
    async with running_relay() as relay:
        told = await relay.ask(_THREE, stream_options={"include_usage": True})
        untold = await relay.ask(_THREE, stream_options={"include_usage": False})
        failed = await relay.ask("demo:fault=cut_mid,interval_ms=0", stream_options={"include_usage": True})
        record = await relay.record(1)
    assert told.body.splitlines()[-1] == (
        b'{"done":true,"error":false,"content":"[DONE]","finish_reason":"stop",'
        b'"usage":{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5}}'
    )
    assert untold.lines[-1] == DONE
    assert failed.lines[-1] == {**DONE, "finish_reason": None, "usage": None}
    assert (record.prompt_tokens, record.completion_tokens, record.finish_reason) == (2, 3, "stop")


async def test_silence_is_filled() -> None:
    """Before the first token and between two; tests/relay/test_stream.py has the times."""
    async with running_relay(chat__heartbeat_s=0.05) as relay:
        reply = await relay.ask("demo:text=words,deltas=2,first_ms=300,interval_ms=300")
    contents = [line["content"] for line in reply.lines]
    assert contents[:1] == [""]
    assert contents[contents.index("The ") + 1] == ""
    assert (reply.text, reply.lines[-1]) == ("The relay ", DONE)


@pytest.mark.parametrize("include_usage", [False, True])
async def test_a_failure_before_the_first_byte_has_its_status(include_usage: bool) -> None:  # noqa: FBT001 - the example
    """With the same two lines as its body, the code in a header, and the usage that was asked for."""
    async with running_relay() as relay:
        options = {"stream_options": {"include_usage": include_usage}}
        reply = await relay.ask("demo:fault=status,code=503,message=down", **options)
        record = await relay.record()
    assert (reply.status, reply.header("X-Relayd-Error")) == (502, "upstream_failed")
    assert reply.header("Content-Type") == "application/x-ndjson; charset=utf-8"
    assert reply.error == "upstream_failed: The provider failed (503): down"
    unknown = {"finish_reason": None, "usage": None} if include_usage else {}
    assert (len(reply.lines), reply.lines[-1]) == (2, {**DONE, **unknown})
    assert (record.outcome, record.status) == (Outcome.UPSTREAM_ERROR, 502)
    assert record.bytes_out == len(reply.body)


async def test_a_failure_after_a_heartbeat_is_a_failure_in_the_stream() -> None:
    """Once a heartbeat went out the status is 200, and the lines tell of the failure."""
    async with running_relay(chat__heartbeat_s=0.05) as relay:
        reply = await relay.ask("demo:headers_ms=500,fault=status,code=503,message=down")
        record = await relay.record()
    assert (reply.status, reply.header("X-Relayd-Error"), record.status) == (200, None, 200)
    assert reply.error == "upstream_failed: The provider failed (503): down"
    assert reply.lines[-1] == DONE


@pytest.mark.parametrize(
    ("limit", "model", "status", "said"),
    [
        ("first_token", "demo:fault=stall_headers", 504, "The first word did not come within 0.5 s"),
        ("first_token", "demo:fault=stall_first", 504, "The first word did not come within 0.5 s"),
        ("idle", "demo:fault=stall_mid,interval_ms=0", 200, "The answer fell silent for 0.5 s"),
        ("total", "demo:deltas=10000,interval_ms=50", None, "The whole answer took longer than 0.5 s"),
    ],
)
async def test_a_provider_has_its_time(limit: str, model: str, status: int | None, said: str) -> None:
    """No head is sent before there is something to say, so that a failure can still have its status."""
    settings: dict[str, Any] = {f"upstream__{limit}_timeout_s": 0.5}
    async with running_relay(**settings) as relay:
        reply = await relay.ask(model)
    assert reply.error == f"upstream_timeout: {said}, the limit of this relay."
    assert (reply.status, reply.lines[-1]) == (status or reply.status, DONE)


@pytest.mark.parametrize("stream", [True, False, None])
async def test_the_stream_field_changes_nothing(stream: bool | None) -> None:  # noqa: FBT001 - a JSON value
    """/chat always streams."""
    async with running_relay() as relay:
        reply = await relay.ask(_THREE, stream=stream)
        assert _asked(relay)["stream"] is True
    assert reply.text == _WORDS


async def test_the_operators_rules_hold_for_every_request() -> None:
    """Default model, allowed models, the ceiling of tokens, and whether usage is asked for."""
    async with running_relay(
        chat__default_model=_THREE,
        chat__allowed_models=[_THREE],
        chat__max_tokens_limit=5,
        upstream__include_usage=False,
    ) as relay:
        assert (await relay.ask(None)).text == _WORDS
        assert _asked(relay)["model"] == _THREE
        assert "stream_options" not in _asked(relay)
        assert (await relay.record()).model == _THREE
        foreign = await relay.ask("other")
        assert (foreign.status, foreign.header("X-Relayd-Error")) == (403, "model_not_allowed")
        assert (await relay.ask(_THREE, max_tokens=6)).status == 400
        assert relay.upstream.total_requests == 1
        assert (await relay.record(1)).outcome is Outcome.REJECTED


async def test_a_probe_is_answered_without_the_provider() -> None:
    """`relayd doctor` asks one; a script that makes no sense is a bad request."""
    async with running_relay(chat__allowed_models=["demo"]) as relay:
        reply = await relay.ask("relayd-probe:lines=2")
        facts, *rest = reply.text.splitlines()
        assert json.loads(facts)["address"] == "127.0.0.1"
        assert rest == ["0 1 "]
        refused = await relay.ask("relayd-probe:lines=x")
        assert refused.error == "bad_request: relayd-probe does not know 'lines=x'."
        assert relay.upstream.total_requests == 0
        assert (await relay.record()).model == "relayd-probe:lines=2"


async def test_what_the_client_wrote_is_what_the_provider_gets() -> None:
    """Messages with images and tools, and every sampling field, are forwarded as they are."""
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function"}]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,é\ud83c"}}]},
    ]
    fields = {"messages": messages, "temperature": 0.5, "stop": ["x"], "seed": 7, "verbosity": "low"}
    async with running_relay() as relay:
        payload = b"\xef\xbb\xbf" + json.dumps({"model": _THREE, **fields}).encode()
        reply = await ask(relay.port, KEY, payload, {"Content-Type": "text/plain"})
        assert (reply.status, reply.error) == (200, None)
        sent = _asked(relay)
    assert {name: sent[name] for name in fields} == fields


async def test_a_client_of_http_1_0_reads_to_the_end_of_the_connection() -> None:
    """It knows no chunks, so it gets bare lines and then the end, even if it asks to stay."""
    for headers in ({}, {"Connection": "keep-alive"}):
        async with running_relay() as relay:
            for model in (_THREE, "demo:text=words,deltas=3,interval_ms=30"):
                async with await Wire.open(relay.port) as wire:
                    wire.send(post(KEY, body(model), headers, version="HTTP/1.0"))
                    reply = await wire.reply()
                    assert reply.header("Transfer-Encoding") is None
                    assert reply.header("Connection") in {None, "close"}
                    assert reply.text == _WORDS
                    assert reply.lines[-1] == DONE
                    assert await wire.ended() == b""


async def test_a_connection_serves_one_request_after_the_other() -> None:
    """Also those that are sent at once: replies are whole and in order, and failed ones end nothing."""
    async with running_relay(server__max_streams=1) as relay, await Wire.open(relay.port) as wire:
        good, bad = post(KEY, body(_THREE)), post(KEY, b"{")
        wire.send(good + b"\r\n" + bad + good + bad)
        for n in range(6):
            reply = await wire.reply()
            assert (reply.status, reply.text) == ((400, "") if n % 2 else (200, _WORDS))
            assert reply.header("Connection") is None
            assert reply.lines[-1] == DONE
            if n == 3:
                wire.send(good)
                wire.send(bad)
        outcomes = [(await relay.record(n)).outcome for n in range(6)]
    assert outcomes == [Outcome.COMPLETED, Outcome.REJECTED] * 3


@pytest.mark.parametrize("value", ["close", "Close", "TE, close", "close,Upgrade"])
async def test_a_connection_that_the_client_ends_is_ended(value: str) -> None:
    """The reply says so, an error too; it is whole, and nothing comes after it."""
    async with running_relay() as relay:
        async with await Wire.open(relay.port) as wire:
            wire.send(post(KEY, body(_THREE), {"Connection": value}))
            reply = await wire.reply()
            assert (reply.header("Connection"), reply.lines[-1]) == ("close", DONE)
            assert await wire.ended() == b""
        async with await Wire.open(relay.port) as wire:
            wire.send(post(KEY, body(_THREE), {"Connection": value}, path="/nothing"))
            reply = await wire.reply()
            assert (reply.header("Connection"), reply.status) == ("close", 404)
            assert await wire.ended() == b""


@pytest.mark.parametrize("method", ["GET", "PUT", "BREW", "HEAD"])
async def test_other_methods_are_refused_in_json(method: str) -> None:
    """They are no chats: no lines and no record."""
    async with running_relay() as relay:
        reply = await fetch(relay.port, "/chat", {"Authorization": KEY}, method=method)
        assert (await relay.ask(_THREE)).status == 200
        assert (await relay.record()).outcome is Outcome.COMPLETED
    assert reply.status == 405
    assert reply.header("Allow") == "POST, OPTIONS"
    if method != "HEAD":
        error = json.loads(reply.body)["error"]
        assert error == {"code": "method_not_allowed", "message": f"{method} is not allowed at this path."}


async def test_the_record_says_who_asked_and_not_what() -> None:
    """Client, key, address, origin, program, path and model; long headers are cut to 200 characters."""
    headers = {"Origin": "https://page.example/" + "x" * 300, "User-Agent": "curl/8" + "y" * 300}
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        request = post(KEY, body(_THREE, user="secret-text"), headers, path="/chat?key=secret-query")
        wire.send(request)
        reply = await wire.reply()
        record = await relay.record()
        (key,) = relay.state.ring.keys()
    assert record.id == reply.header("X-Request-Id")
    assert (record.client, record.key_id, record.ip) == ("default", key.id, "127.0.0.1")
    assert record.origin == headers["Origin"][:200]
    assert record.user_agent == headers["User-Agent"][:200]
    assert (record.path, record.model, record.boot_id) == ("/chat", _THREE, "boot")
    assert record.duration_ms is not None
    assert not re.search(f"secret|{KEY}|Say hi|relay passes", repr(record))


def test_a_request_id_is_short_plain_new_and_sorts_by_time() -> None:
    """16 characters without those that people mistake for one another; the first nine are milliseconds."""
    ids = {new_request_id() for _ in range(5000)}
    assert len(ids) == 5000
    assert all(re.fullmatch(r"[0-9a-hjkmnp-tv-z]{16}", known) for known in ids)
    time.sleep(0.002)
    latest = new_request_id()
    assert max(ids) < latest
    number = sum(
        "0123456789abcdefghjkmnpqrstvwxyz".index(char) << 5 * k for k, char in enumerate(latest[8::-1])
    )
    assert abs(number / 1000 - time.time()) < 30
