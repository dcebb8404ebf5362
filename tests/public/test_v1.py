"""`/v1` over real sockets: what the provider is asked, what comes back, what is recorded."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from relayd.state.reader import LogReader
from relayd.state.records import Outcome, RequestRecord, UsageSource, utc_text
from relayd.state.stored_objects import Owner, StoredObjects
from tests.harness import KEY, PROVIDER_KEY, Relay, running_relay
from tests.public.test_allowances import OPERATOR, a_key
from tests.wire import HOST, QUESTION, Reply, Wire, fetch, post, until

_QUICK = "demo:interval_ms=0,deltas=3"
_CHAT = "/v1/chat/completions"
_JSON = {"Content-Type": "application/json"}
_KEY_LINE = f"Host: x\r\nAuthorization: Bearer {KEY}\r\n"


def chat(model: str = _QUICK, **fields: Any) -> bytes:
    """Return the body of a chat."""
    return json.dumps({"model": model, "messages": QUESTION, **fields}).encode()


async def ask_v1(
    relay: Relay,
    body: bytes,
    path: str = _CHAT,
    headers: Mapping[str, str] | None = None,
    *,
    key: str = KEY,
) -> Reply:
    """Send one request on a connection of its own and read the whole reply."""
    async with await Wire.open(relay.port) as wire:
        wire.send(post(f"Bearer {key}", body, {**_JSON, **(headers or {})}, path=path))
        return await wire.reply()


async def get_v1(relay: Relay, path: str, *, key: str = KEY, method: str = "GET") -> Reply:
    """Send a request without a body."""
    return await fetch(relay.port, path, {"Authorization": f"Bearer {key}"}, method=method)


def error_of(reply: Reply) -> dict[str, Any]:
    """Return the error object of a refusal, whose message is text."""
    said: dict[str, Any] = json.loads(reply.body)["error"]
    assert set(said) == {"message", "type", "param", "code"}
    assert isinstance(said["message"], str)
    return said


def events_of(reply: Reply) -> list[str]:
    """Return the data of each event of a stream."""
    return [
        line.removeprefix("data: ") for line in reply.body.decode().split("\n") if line.startswith("data: ")
    ]


# What passes.


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (_CHAT, chat()),
        (_CHAT, b' { "messages":[], "model" : "demo:interval_ms=0","x":"\\ud83d \xc3\xa9", "n":1 }\n'),
        (_CHAT, chat(stream=True, stream_options={"include_usage": False})),
        (_CHAT, chat(stream=True, stream_options={"include_usage": True})),
        (
            _CHAT,
            chat(
                "demo:interval_ms=0,fault=one_byte,deltas=2",
                stream=True,
                stream_options={"include_usage": True},
            ),
        ),
        (
            _CHAT,
            chat(
                "demo:interval_ms=0,fault=crlf+comments", stream=True, stream_options={"include_usage": True}
            ),
        ),
        ("/v1/completions", json.dumps({"model": _QUICK, "prompt": "hi"}).encode()),
        ("/v1/responses", json.dumps({"model": _QUICK, "input": "hi"}).encode()),
        ("/v1/responses", json.dumps({"model": _QUICK, "input": "hi", "stream": True}).encode()),
        ("/v1/responses/compact", json.dumps({"model": _QUICK, "input": "hi"}).encode()),
        ("/v1/embeddings", json.dumps({"model": "demo", "input": ["hi", "there"]}).encode()),
        ("/v1/moderations", json.dumps({"input": "hi"}).encode()),
        ("/v1/images/generations", json.dumps({"model": "demo", "prompt": "a pixel"}).encode()),
        (
            "/v1/audio/speech",
            json.dumps({"model": "demo:size=300000,interval_ms=0", "input": "hi", "voice": "alloy"}).encode(),
        ),
    ],
)
async def test_request_and_answer_pass_unchanged(path: str, body: bytes) -> None:
    """Byte by byte, whatever the endpoint, and the content type with them."""
    async with running_relay() as relay:
        reply = await ask_v1(relay, body, path)
        (seen,) = relay.upstream.requests
        record = await relay.record()
        assert (seen.method, seen.path, seen.body) == ("POST", path, body)
        assert reply.body == seen.answer
    assert (reply.status, reply.cut) == (200, False)
    assert (record.outcome, record.path, record.bytes_out) == (Outcome.COMPLETED, path, len(reply.body))
    assert reply.header("X-Request-Id") == record.id
    assert record.upstream_request_id == "req_demo00000000"


@pytest.mark.parametrize(
    "media_types",
    [
        ["application/x-www-form-urlencoded"],
        ["application/json; charset=utf-16"],
        ["application/json", "application/x-www-form-urlencoded"],
        ["text/plain"],
        [],
    ],
)
async def test_what_was_read_as_json_goes_on_as_json(media_types: list[str]) -> None:
    """Whatever the client calls it: a provider that reads a form would find another model in it."""
    asked = chat(z="&model=dear&")
    types = "".join(f"Content-Type: {media_type}\r\n" for media_type in media_types)
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(f"POST {_CHAT} HTTP/1.1\r\n{_KEY_LINE}{types}Content-Length: {len(asked)}\r\n\r\n".encode())
        wire.send(asked)
        assert (await wire.reply()).status == 200
        (seen,) = relay.upstream.requests
    assert (seen.headers["content-type"], seen.body) == ("application/json", asked)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": [[]] * 300_000}),
        ("/v1/completions", {"prompt": ["x"] * 300_000}),
        ("/v1/responses", {"conversation": [[]] * 300_000}),
    ],
)
async def test_a_body_is_not_taken_apart(path: str, fields: dict[str, Any]) -> None:
    """A value that is not needed is not built: it takes a few times the bytes that came."""
    asked = json.dumps({"model": _QUICK, **fields}, separators=(",", ":")).encode()
    async with running_relay() as relay:
        tracemalloc.start()
        try:
            reply = await ask_v1(relay, asked, path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert reply.status == 400
    assert peak < 10 * len(asked)


@pytest.mark.parametrize(
    ("prompt", "status"),
    [(["x"] * 2048, 200), (["x"] * 2049, 400), ([[1]] * 2049, 400), ([1] * 5000, 200), ("x," * 5000, 200)],
)
async def test_prompts_are_limited_in_number(prompt: str | list[Any], status: int) -> None:
    """Tokens are one prompt, whatever their number."""
    async with running_relay() as relay:
        reply = await ask_v1(
            relay, json.dumps({"model": _QUICK, "prompt": prompt}).encode(), "/v1/completions"
        )
        assert (reply.status, len(relay.upstream.requests)) == (status, int(status == 200))


async def test_only_the_headers_that_mean_something_go_on() -> None:
    """Neither credentials nor what tells of the person who asks; nothing of the owner's account is shown."""
    sent = {
        "Accept": "text/event-stream",
        "OpenAI-Beta": "responses=v1",
        "Idempotency-Key": "abc",
        "Cookie": "session=1",
        "OpenAI-Organization": "org-x",
        "OpenAI-Project": "proj-x",
        "X-Forwarded-For": "192.0.2.1",
        "Forwarded": "for=192.0.2.1",
        "X-OpenWebUI-User-Email": "someone@example.org",
        "X-Stainless-Lang": "python",
        "User-Agent": "OpenAI/Python",
        "Accept-Encoding": "gzip, br",
    }
    async with running_relay() as relay:
        reply = await ask_v1(relay, chat(), headers=sent)
        (seen,) = relay.upstream.requests
    assert seen.authorized
    assert seen.headers == {
        "host": f"127.0.0.1:{relay.upstream.port}",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "accept": "text/event-stream",
        "openai-beta": "responses=v1",
        "idempotency-key": "abc",
        "content-length": str(len(chat())),
    }
    names = {name.lower() for name, _ in reply.headers}
    assert {"openai-version", "openai-processing-ms", "x-request-id"} <= names
    assert not {
        name for name in names if name.startswith(("x-ratelimit", "openai-org", "openai-proj", "set-"))
    }


async def test_the_query_goes_on() -> None:
    """A stored response can be streamed again, and its usage is not counted twice."""
    async with running_relay() as relay:
        made = json.loads((await ask_v1(relay, _response(), "/v1/responses")).body)
        reply = await get_v1(relay, f"/v1/responses/{made['id']}?include[]=x&stream=false")
        record = await relay.record(1)
        assert relay.upstream.requests[1].query == "include[]=x&stream=false"
    assert json.loads(reply.body)["id"] == made["id"]
    assert (record.outcome, record.prompt_tokens, record.usage_source) == (Outcome.COMPLETED, None, None)


def _response(**fields: Any) -> bytes:
    return json.dumps({"model": _QUICK, "input": "hi", **fields}).encode()


# What is changed: an alias, and usage.


async def test_an_alias_is_resolved_and_nothing_else_changes() -> None:
    """The record, the limits and the provider see the model that is meant."""
    async with running_relay(
        toml=f'[aliases]\n"old-name" = "{_QUICK}"', chat__allowed_models=[_QUICK]
    ) as relay:
        body = b'{"messages":[{"role":"user","content":"model"}],  "model" : "old-name" ,"x":[1,  2]}'
        reply = await ask_v1(relay, body)
        (seen,) = relay.upstream.requests
        record = await relay.record()
    assert reply.status == 200
    assert seen.body == body.replace(b'"old-name"', f'"{_QUICK}"'.encode())
    assert record.model == _QUICK


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", '"stream_options":{"include_usage":true},'),
        ('"stream_options":null,', '"stream_options":{"include_usage":true},'),
        ('"stream_options":{},', '"stream_options":{"include_usage":true},'),
        ('"stream_options":{"x":1},', '"stream_options":{"include_usage":true,"x":1},'),
        ('"stream_options":{"include_usage":null},', '"stream_options":{"include_usage":true},'),
    ],
)
async def test_usage_is_asked_for_and_kept_from_the_client(options: str, expected: str) -> None:
    """The chunk without choices, at which many clients stumble, is taken out; nothing else is."""
    body = (
        '{%s"model":"demo:interval_ms=0,deltas=2","stream":true,"messages":[{"role":"user","content":"hi"}]}'
    )
    async with running_relay() as relay:
        reply = await ask_v1(relay, (body % options).encode())
        (seen,) = relay.upstream.requests
        record = await relay.record()
        assert seen.body == (body % expected).encode()
        events = [event + b"\n\n" for event in seen.answer.split(b"\n\n")[:-1]]
        assert reply.body == b"".join(event for event in events if b'"choices":[]' not in event)
        assert len(events) == len(events_of(reply)) + 1
    assert (record.usage_source, record.completion_tokens) == (UsageSource.PROVIDER, 2)
    assert (record.deltas, record.finish_reason) == (2, "stop")


async def test_a_provider_that_is_not_to_be_asked_for_usage_is_not() -> None:
    """`upstream.include_usage` holds here too: then usage is an estimate."""
    async with running_relay(upstream__include_usage=False) as relay:
        await ask_v1(relay, chat(stream=True))
        record = await relay.record()
        assert relay.upstream.requests[0].body == chat(stream=True)
    assert record.usage_source is UsageSource.ESTIMATE


# Refusals.


@pytest.mark.parametrize(
    ("settings", "body", "status", "code", "message"),
    [
        ({}, b"{", 400, "bad_request", "not JSON"),
        ({}, b"", 400, "bad_request", None),
        ({}, b'{"model":"a","model":"b"}', 400, "bad_request", "more than once"),
        ({}, chat(n="2"), 400, "bad_request", "n must be a whole number"),
        *(
            (
                {},
                b'{"model":"x","%b":%d}' % (name.encode(), number),
                400,
                "bad_request",
                f"{name} must be from 1",
            )
            for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of")
            for number in (0, 10**400)
        ),
        ({"chat__allowed_models": ["other"]}, chat(), 403, "model_not_allowed", "allowed are: other"),
        ({"chat__allowed_models": ["other"]}, b'{"messages":[]}', 400, "bad_request", "must name its model"),
        ({"chat__max_tokens_limit": 5}, chat(max_completion_tokens=6), 400, "bad_request", "at most 5"),
        ({"v1__max_body_bytes": 20}, chat(), 413, "too_large", "at most 20 bytes"),
    ],
)
async def test_a_refusal_has_openais_shape(
    settings: dict[str, Any], body: bytes, status: int, code: str, message: str | None
) -> None:
    """Our codes are in it; the provider hears of nothing."""
    async with running_relay(**settings) as relay:
        reply = await ask_v1(relay, body)
        if message is None:
            # An empty body is the provider's to judge.
            assert len(relay.upstream.requests) == 1
            return
        record = await relay.record()
        assert relay.upstream.requests == []
    said = error_of(reply)
    assert (reply.status, said["code"], said["type"]) == (status, code, "invalid_request_error")
    assert message in said["message"]
    assert reply.header("X-Relayd-Error") == code
    assert (record.outcome, record.status) == (Outcome.REJECTED, status)


async def test_a_wrong_key_is_an_invalid_api_key() -> None:
    """For open paths and others alike."""
    async with running_relay() as relay:
        for path in (_CHAT, "/v1/organization"):
            reply = await ask_v1(relay, chat(), path, key="wrong")
            assert (reply.status, error_of(reply)["code"]) == (401, "invalid_api_key")
        assert (await relay.record()).outcome is Outcome.DENIED


@pytest.mark.parametrize("settings", [{}, {"v1__enabled": False}])
async def test_a_closed_path_says_what_opens_it(settings: dict[str, Any]) -> None:
    """404 as OpenAI says it, with the name of the setting; `/chat` is not concerned."""
    async with running_relay(**settings) as relay:
        reply = await get_v1(relay, "/v1/files")
        said = error_of(reply)
        assert (reply.status, said["code"], said["type"]) == (404, None, "invalid_request_error")
        assert "v1.allow" in said["message"]
        assert relay.upstream.requests == []
        assert (await relay.ask(_QUICK)).status == 200


async def test_v1_allow_opens_more() -> None:
    """A listing passes as it is."""
    async with running_relay(v1__allow=["GET /v1/files"]) as relay:
        assert (await get_v1(relay, "/v1/files")).status == 200


async def test_a_websocket_is_refused_so_that_its_client_falls_back() -> None:
    """With the status that says so, after which the connection serves another request."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        upgrade = (
            f"GET /v1/responses HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {KEY}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        wire.send(upgrade.encode())
        reply = await wire.reply()
        assert (reply.status, reply.header("Upgrade")) == (426, "HTTP/1.1")
        assert "WebSocket" in error_of(reply)["message"]
        wire.send(post(KEY, _response(), path="/v1/responses"))
        assert (await wire.reply()).status == 200


async def test_limits_and_pauses_tell_when_to_come_back() -> None:
    """In both forms that the SDKs read."""
    async with running_relay(server__max_streams=1) as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, chat("demo:fault=stall_headers"), path=_CHAT))
        await relay.upstream.wait_request(0)
        reply = await ask_v1(relay, chat())
        assert (reply.status, error_of(reply)["code"]) == (429, "rate_limit_exceeded")
        assert (reply.header("Retry-After"), reply.header("retry-after-ms")) == ("5", "5000")
        relay.server.accepting.pause()
        reply = await ask_v1(relay, chat())
        assert (reply.status, error_of(reply)["code"]) == (503, "draining")
        assert error_of(reply)["type"] == "server_error"


async def test_a_budget_that_is_used_up_is_final() -> None:
    """Codex and the SDKs stop at `insufficient_quota`."""
    async with running_relay() as relay:
        key = await a_key(relay, tokens_per_day=10)
        reply = await ask_v1(relay, chat(max_tokens=1000), key=key)
        assert relay.upstream.requests == []
    said = error_of(reply)
    assert (reply.status, said["code"], said["type"]) == (429, "insufficient_quota", "insufficient_quota")
    assert reply.header("x-should-retry") == "false"
    assert "tokens_per_day" in said["message"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"n": 3, "max_tokens": 400}, "1,2"), ({"max_tokens": 900, "background": True}, "background")],
)
async def test_what_multiplies_or_hides_use_is_counted_or_refused(
    fields: dict[str, Any], message: str
) -> None:
    """`n` answers cost n times; what runs on by itself is not for bounded clients."""
    async with running_relay() as relay:
        key = await a_key(relay, tokens_per_day=1000)
        reply = await ask_v1(relay, chat(**fields), key=key)
        assert message in error_of(reply)["message"]
        assert relay.upstream.requests == []


# The provider's refusals.


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("script", "headers"),
    [
        ("code=400,message=too%20long", {}),
        ("code=403,message=no%20access%20in%20this%20region%20or%20tier", {}),
        ("code=404,message=no%20model", {}),
        (
            "code=429,retry_after=7,retry_after_ms=6500,should_retry=false",
            {"Retry-After": "7", "retry-after-ms": "6500", "x-should-retry": "false"},
        ),
        ("code=500", {}),
        ("code=503", {}),
    ],
)
async def test_the_providers_refusal_passes_as_it_is(
    script: str, headers: dict[str, str], *, stream: bool
) -> None:
    """Status, body and what it says about retries; it is asked once."""
    async with running_relay() as relay:
        reply = await ask_v1(relay, chat(f"demo:fault=status,{script}", stream=stream))
        (seen,) = relay.upstream.requests
        record = await relay.record()
        assert reply.body == seen.answer
    assert reply.status == int(script[5:8])
    assert {name: reply.header(name) for name in headers} == headers
    assert reply.header("Content-Type") == "application/json"
    assert not [name for name, _ in reply.headers if name.lower().startswith("x-ratelimit")]
    assert (record.outcome, record.status) == (Outcome.UPSTREAM_ERROR, reply.status)


@pytest.mark.parametrize(
    "script", ["code=401", "code=403,error=unsupported_country_region_territory", "code=401,fault=echo_key"]
)
async def test_a_refusal_of_the_relays_own_key_or_region_is_not_the_clients(script: str) -> None:
    """It is 502, as the client can do nothing about it, and shows no key."""
    async with running_relay() as relay:
        model = f"demo:{script}" if "fault" in script else f"demo:fault=status,{script}"
        reply = await ask_v1(relay, chat(model))
        record = await relay.record()
    assert (reply.status, error_of(reply)["code"]) == (502, "upstream_auth")
    assert reply.header("x-should-retry") == "false"
    assert record.error is not None
    assert PROVIDER_KEY not in f"{reply.body!r}{record.error}"


async def test_the_providers_key_is_taken_out_of_its_refusal() -> None:
    """Whatever status it has."""
    async with running_relay() as relay:
        reply = await ask_v1(relay, chat("demo:fault=echo_key,code=400"))
    assert reply.status == 400
    assert PROVIDER_KEY.encode() not in reply.body
    assert b"[key]" in reply.body


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("demo:fault=redirect", 502, "upstream_failed"),
        ("demo:fault=cut_headers", 502, "upstream_failed"),
        ("demo:fault=stall_headers", 504, "upstream_timeout"),
        ("demo:fault=stall_first", 504, "upstream_timeout"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_before_the_first_byte_has_its_status(
    model: str, status: int, code: str, *, stream: bool
) -> None:
    """So the SDKs may try again."""
    async with running_relay(upstream__first_token_timeout_s=0.2) as relay:
        reply = await ask_v1(relay, chat(model, stream=stream))
        record = await relay.record()
    assert record.error is not None
    assert (record.error.code, record.outcome) == (code, Outcome.UPSTREAM_ERROR)
    assert (reply.status, error_of(reply)["code"]) == (status, code)


# Ends.


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        (path, fault)
        for path in (_CHAT, "/v1/completions", "/v1/responses")
        for fault in ("cut_mid", "cut_fin", "end_early", "bad_json", "stall_mid")
        # The Responses of the test provider have no such fault.
        if (path, fault) != ("/v1/responses", "bad_json")
    ],
)
async def test_a_stream_that_breaks_off_ends_with_an_error(path: str, fault: str) -> None:
    """The HTTP response ends in order, without `[DONE]`; the last event is what SDKs raise on."""
    asked = {"messages": QUESTION, "prompt": "hi", "input": "hi"}
    body = {"model": f"demo:interval_ms=0,fault={fault}", "stream": True, **asked}
    async with running_relay(upstream__idle_timeout_s=0.3 if "stall" in fault else 60) as relay:
        reply = await ask_v1(relay, json.dumps(body).encode(), path)
        record = await relay.record()
    assert (reply.status, reply.cut) == (200, False)
    assert b"[DONE]" not in reply.body
    told = json.loads(events_of(reply)[-1])
    assert isinstance(told["error"]["message"], str)
    assert record.outcome is Outcome.UPSTREAM_ERROR
    assert record.error is not None
    assert told["error"]["code"] == record.error.code
    assert record.deltas == 3 or "stall" in fault
    if path == "/v1/responses":
        assert told["type"] == "response.failed"
        assert told["response"]["error"]["code"] == record.error.code


async def test_an_error_event_of_the_provider_passes_as_it_is() -> None:
    """Nothing follows it."""
    async with running_relay() as relay:
        reply = await ask_v1(
            relay, chat("demo:interval_ms=0,fault=error_event,message=Overloaded", stream=True)
        )
        record = await relay.record()
    assert json.loads(events_of(reply)[-1])["error"]["message"] == "Overloaded"
    assert [json.loads(event).get("error") for event in events_of(reply)].count(None) == len(
        events_of(reply)
    ) - 1
    assert record.error is not None
    assert "Overloaded" in record.error.message


@pytest.mark.parametrize("fault", ["cut_mid", "cut_fin"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/audio/speech"])
async def test_a_body_that_breaks_off_never_ends_in_order(path: str, fault: str) -> None:
    """Neither one with a length nor a chunked one can be taken for whole."""
    body = {"model": f"demo:interval_ms=0,fault={fault}", "input": "hi", "voice": "alloy"}
    async with running_relay() as relay:
        reply = await ask_v1(relay, json.dumps(body).encode(), path)
        record = await relay.record()
    assert reply.cut
    assert len(reply.body) > 0
    assert record.outcome is Outcome.UPSTREAM_ERROR


@pytest.mark.parametrize("end", ["cancelled", "key_revoked", "draining"])
@pytest.mark.parametrize("path", [_CHAT, "/v1/responses"])
async def test_the_operator_ends_a_stream_with_an_error(path: str, end: str) -> None:
    """After its first byte: an event. A cut key and a stop of the daemon do the same."""
    body = {
        "model": "demo:interval_ms=0,fault=stall_mid",
        "stream": True,
        "messages": QUESTION,
        "input": "hi",
    }
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, json.dumps(body).encode(), _JSON, path=path))
        reply = await wire.head()
        await until(lambda: [stream.record.deltas for stream in relay.server.streams] == [3])
        (stream,) = relay.server.streams
        if end == "cancelled":
            relay.server.streams.cancel(stream.record.id)
        elif end == "key_revoked":
            relay.server.streams.cut_key(stream.record.key_id or "")
        else:
            relay.server.request_stop()
            relay.server.request_stop()
        await wire.rest(reply)
        record = await relay.record()
        await relay.upstream.wait_closed(0)
    assert not reply.cut
    assert json.loads(events_of(reply)[-1])["error"]["code"] == end
    assert record.outcome is (Outcome.SHUTDOWN if end == "draining" else Outcome.CANCELLED)


async def test_a_cancelled_request_without_a_byte_is_not_to_be_sent_again() -> None:
    """The SDKs would send it up to twice more."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, chat("demo:fault=stall_headers"), _JSON, path=_CHAT))
        await relay.upstream.wait_request(0)
        (stream,) = relay.server.streams
        relay.server.streams.cancel(stream.record.id)
        reply = await wire.reply()
    assert (reply.status, error_of(reply)["code"]) == (503, "cancelled")
    assert (reply.header("x-should-retry"), reply.header("Retry-After")) == ("false", None)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["demo:fault=stall_headers", "demo:interval_ms=0,fault=stall_mid"])
async def test_the_provider_is_left_when_the_client_leaves(model: str, *, stream: bool) -> None:
    """In each phase, with the same record as on /chat."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, chat(model, stream=stream), _JSON, path=_CHAT))
        await relay.upstream.wait_request(0)
        if "stall_mid" in model:
            await wire.head()
        wire.finish()
        await relay.upstream.wait_closed(0)
        assert (await relay.record()).outcome is Outcome.CLIENT_CLOSED


# Silence.


async def test_a_silence_is_filled_also_before_the_head() -> None:
    """A comment without an empty line, which no decoder takes for an event; then the answer as it is."""
    model = "demo:interval_ms=0,deltas=3,headers_ms=500,first_ms=500"
    async with running_relay(chat__heartbeat_s=0.1) as relay:
        reply = await ask_v1(relay, chat(model, stream=True, stream_options={"include_usage": True}))
        (seen,) = relay.upstream.requests
        assert reply.body.startswith(b":\n")
        assert reply.body.replace(b":\n", b"") == (seen.answer.replace(b":\n", b""))
    assert reply.header("Content-Type") == "text/event-stream; charset=utf-8"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("fault=status,code=400,message=too%20long", None),
        ("fault=cut_headers", "upstream_failed"),
        ("fault=html", "upstream_failed"),
    ],
)
async def test_a_refusal_after_a_heartbeat_is_an_event(script: str, code: str | None) -> None:
    """With the provider's own words."""
    async with running_relay(chat__heartbeat_s=0.05) as relay:
        reply = await ask_v1(relay, chat(f"demo:headers_ms=400,{script}", stream=True))
    assert (reply.status, reply.cut) == (200, False)
    told = json.loads(events_of(reply)[-1])["error"]
    assert told["code"] == code
    if code is None:
        assert told["message"] == "too long"


async def test_a_body_that_is_waited_for_is_not_filled() -> None:
    """There is no place for a heartbeat in JSON."""
    async with running_relay(chat__heartbeat_s=0.05) as relay:
        reply = await ask_v1(relay, chat("demo:headers_ms=300,interval_ms=0"))
        assert reply.body == relay.upstream.requests[0].answer


# Stored objects.


async def test_a_query_that_is_not_utf_8_passes() -> None:
    """It is the provider's to read; the request holds nothing when it has ended."""
    async with running_relay(server__max_streams=1) as relay:
        made = json.loads((await ask_v1(relay, _response(), "/v1/responses")).body)["id"]
        async with await Wire.open(relay.port) as wire:
            for _ in range(2):
                wire.send(f"GET /v1/responses/{made}?stream=%ff HTTP/1.1\r\n{_KEY_LINE}\r\n".encode())
                assert (await wire.reply()).status == 200


async def test_what_another_instance_stored_a_moment_ago_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose next request goes to another instance gets no 404 because the database is not so far."""
    looked: list[str] = []

    def object_owner(_: LogReader, object_id: str) -> Owner | None:
        looked.append(object_id)
        return Owner("default", None, "responses", utc_text(time.time())) if len(looked) > 1 else None

    monkeypatch.setattr(LogReader, "object_owner", object_owner)
    monkeypatch.setattr(StoredObjects, "is_shared", True)
    async with running_relay() as relay:
        made = json.loads((await ask_v1(relay, _response(), "/v1/responses")).body)["id"]
        relay.state.stored_objects._recent.clear()
        await until(lambda: not relay.state.stored_objects._waiting)
        assert (await get_v1(relay, f"/v1/responses/{made}")).status == 200
        assert looked == [made, made]


async def test_what_a_client_stored_is_its_own() -> None:
    """For anybody else it does not exist, neither in a path nor in a body; the provider is not asked."""
    async with running_relay(v1__allow=["* /v1/conversations*"]) as relay:
        other = await a_key(relay, "other")
        made = json.loads((await ask_v1(relay, _response(), "/v1/responses")).body)["id"]
        talk = json.loads((await ask_v1(relay, b"{}", "/v1/conversations")).body)["id"]
        streamed = events_of(await ask_v1(relay, _response(stream=True), "/v1/responses"))
        later = json.loads(streamed[0])["response"]["id"]
        asked = len(relay.upstream.requests)
        for key, status in ((other, 404), (KEY, 200)):
            replies = [
                *[await get_v1(relay, f"/v1/responses/{known}", key=key) for known in (made, later)],
                await get_v1(relay, f"/v1/conversations/{talk}", key=key),
                await ask_v1(relay, _response(previous_response_id=made), "/v1/responses", key=key),
                await ask_v1(relay, _response(conversation=talk), "/v1/responses", key=key),
                await ask_v1(relay, _response(conversation={"id": talk}), "/v1/responses", key=key),
                await get_v1(relay, f"/v1/responses/{made}", key=key, method="DELETE"),
            ]
            assert [reply.status for reply in replies] == [status] * len(replies)
            cancelled = await ask_v1(relay, b"", f"/v1/responses/{later}/cancel", key=key)
            # The provider cancels only what runs in the background.
            assert cancelled.status == (400 if key == KEY else 404)
            if key == other:
                assert len(relay.upstream.requests) == asked
                assert error_of(replies[0])["message"] == f"Response with id '{made}' not found."
                assert error_of(replies[3])["param"] == "previous_response_id"
        unknown = await get_v1(relay, "/v1/responses/resp_of_nobody")
        assert (unknown.status, error_of(unknown)["code"]) == (404, None)


async def test_a_client_does_not_inherit_from_a_removed_one() -> None:
    """A name that is used again is another client: what the old one stored does not exist for it."""
    async with running_relay() as relay:
        statuses: list[int] = []
        for _ in range(2):
            key = await a_key(relay, "web")
            if not statuses:
                made = json.loads((await ask_v1(relay, _response(), "/v1/responses", key=key)).body)["id"]
            statuses.append((await get_v1(relay, f"/v1/responses/{made}", key=key)).status)
            await relay.state.ring.remove_client("web", cut=False, caller=OPERATOR)
        assert statuses == [200, 404]


@pytest.mark.parametrize("conversation", [5, {}, {"id": 5}, [], [[]] * 1000, {"id": [[]] * 1000}])
async def test_a_conversation_that_cannot_be_read_is_refused(conversation: object) -> None:
    """The provider might read what is not checked here."""
    async with running_relay() as relay:
        reply = await ask_v1(relay, _response(conversation=conversation), "/v1/responses")
        assert reply.status == 400
        assert relay.upstream.requests == []


# Models.


async def test_a_client_sees_the_models_that_it_may_use() -> None:
    """Those that both lists allow, and the aliases of these."""
    aliases = '[aliases]\n"gpt-3.5-turbo" = "gpt-4o-mini"\nclosed = "demo"'
    async with running_relay(toml=aliases) as relay:
        key = await a_key(relay, models=["gpt-*"])

        async def listed(key: str) -> list[str]:
            models = json.loads((await get_v1(relay, "/v1/models", key=key)).body)
            assert models["object"] == "list"
            return [model["id"] for model in models["data"]]

        assert await listed(KEY) == ["demo", "gpt-4o-mini", "gpt-3.5-turbo", "closed"]
        assert await listed(key) == ["gpt-4o-mini", "gpt-3.5-turbo"]
        shown = [
            await get_v1(relay, f"/v1/models/{name}", key=key) for name in ("gpt-4o-mini", "gpt-3.5-turbo")
        ]
        assert [json.loads(reply.body)["id"] for reply in shown] == ["gpt-4o-mini", "gpt-3.5-turbo"]
        for name in ("demo", "closed"):
            reply = await get_v1(relay, f"/v1/models/{name}", key=key)
            assert (reply.status, error_of(reply)["code"]) == (404, "model_not_found")


# Pages.


async def test_pages_may_send_the_headers_of_their_sdk() -> None:
    """What a preflight asks for is allowed; what scripts need of a response is exposed."""
    asked = "authorization, content-type, x-stainless-lang, x-stainless-retry-count"
    origin = {"Origin": "https://page.example"}
    async with running_relay() as relay:
        reply = await fetch(
            relay.port,
            "/v1/responses/x",
            {**origin, "Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": asked},
            method="OPTIONS",
        )
        assert reply.status == 204
        assert reply.header("Access-Control-Allow-Origin") == "https://page.example"
        assert reply.header("Access-Control-Allow-Headers") == asked
        assert "DELETE" in (reply.header("Access-Control-Allow-Methods") or "")
        reply = await ask_v1(relay, chat(), headers=origin)
        exposed = (reply.header("Access-Control-Expose-Headers") or "").lower()
        for name in ("x-request-id", "retry-after", "retry-after-ms", "x-ratelimit-remaining-tokens"):
            assert name in exposed.split(", ")
        refused = await ask_v1(relay, chat(), headers=origin, key="wrong")
        assert refused.header("Access-Control-Allow-Origin") == "https://page.example"
    async with running_relay(cors__allow_origins=["https://other.example"]) as relay:
        reply = await ask_v1(relay, chat(), headers=origin)
        assert reply.header("Access-Control-Expose-Headers") is None


async def test_a_client_that_reads_slowly_slows_the_provider() -> None:
    """An audio body waits in the provider's socket, not in memory."""
    body = json.dumps({"model": "demo:size=3000000,interval_ms=0", "input": "hi", "voice": "alloy"}).encode()
    async with running_relay() as relay, await Wire.open(relay.port, receive_buffer_bytes=4096) as wire:
        wire.send(post(KEY, body, _JSON, path="/v1/audio/speech"))
        reply = await wire.head()
        wire.pause()
        (stream,) = relay.server.streams
        await until(lambda: stream.blocked)
        assert relay.upstream.requests[0].bytes_sent < 3_000_000
        wire.resume()
        await wire.rest(reply)
        record: RequestRecord = await relay.record()
        assert reply.body == relay.upstream.requests[0].answer
    assert record.outcome is Outcome.COMPLETED
    assert record.stalled_ms >= 0
    assert not asyncio.all_tasks() - {asyncio.current_task()}


# Providers that answer in odd ways.


@asynccontextmanager
async def _relay_to(answer: bytes) -> AsyncIterator[Relay]:
    """Run a relay whose provider sends these bytes to each request and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0))
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with running_relay(upstream_url=lambda _: f"http://{HOST}:{port}/v1") as relay:
            yield relay


_STREAM = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    "media_type", [b"", b"Content-Type: text/plain\r\n", b"Content-Type: Text/Event-Stream\r\n"]
)
async def test_a_stream_without_its_type_is_one_if_it_was_asked_for(media_type: bytes) -> None:
    """Some servers forget it; the client is told."""
    async with _relay_to(b"HTTP/1.1 200 OK\r\n" + media_type + b"\r\n" + _STREAM) as relay:
        reply = await ask_v1(relay, chat("demo", stream=True))
        assert (reply.status, reply.body, reply.cut) == (200, _STREAM, False)
        assert (reply.header("Content-Type") or "").lower().startswith("text/event-stream")
        assert (await relay.record()).finish_reason == "stop"


@pytest.mark.parametrize(
    ("answer", "status", "body", "media_type"),
    [
        (b"204 No Content\r\n\r\n", 204, b"", None),
        (b"201 Created\r\nContent-Length: 2\r\n\r\n{}", 201, b"{}", None),
        (
            b"200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n",
            200,
            b"",
            "application/json",
        ),
        (
            b"200 OK\r\nContent-Type: a/b\r\nOpenAI-Model: a\tb\r\n\r\nuntil the end",
            200,
            b"until the end",
            "a/b",
        ),
        (b"200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", 200, b"x", None),
        (b"502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n<h1>Bad", 502, b"<h1>Bad", "text/html"),
    ],
)
async def test_whatever_has_a_status_passes(
    answer: bytes, status: int, body: bytes, media_type: str | None
) -> None:
    """With its type and length, if it has them."""
    async with _relay_to(b"HTTP/1.1 " + answer) as relay:
        reply = await ask_v1(relay, json.dumps({"model": "demo", "input": "x"}).encode(), "/v1/embeddings")
        assert (reply.status, reply.body, reply.cut) == (status, body, False)
        assert reply.header("Content-Type") == media_type
        assert reply.header("Retry-After") is None
        if status < 300:
            assert (await relay.record()).outcome is Outcome.COMPLETED


async def test_a_refusal_whose_words_cannot_be_read_has_some() -> None:
    """The SDKs need a message."""
    head = (
        b"HTTP/1.1 429 Too Many\r\nContent-Encoding: gzip\r\nContent-Type: text/x\r\nRetry-After: 9\r\n\r\n"
    )
    async with _relay_to(head + b"\x1f\x8b") as relay:
        reply = await ask_v1(relay, chat("demo"))
    assert (reply.status, error_of(reply)["code"], reply.header("Retry-After")) == (
        429,
        "upstream_limited",
        "9",
    )
    assert reply.header("Content-Encoding") is None


@pytest.mark.parametrize("path", ["/chat", _CHAT])
async def test_an_open_stream_keeps_no_request(path: str) -> None:
    """Agents send a megabyte with each request, and their answers take minutes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        while left:
            left -= len(await reader.read(min(left, 1 << 16)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        writer.write(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')
        await reader.read()
        writer.close()

    question = [{"role": "user", "content": "x" * 1_000_000}]
    sent = post(
        KEY,
        json.dumps({"messages": question, **({"stream": True} if path == _CHAT else {})}).encode(),
        path=path,
    )
    async with (
        await asyncio.start_server(answer, HOST, 0) as server,
        running_relay(
            upstream_url=lambda _: f"http://{HOST}:{server.sockets[0].getsockname()[1]}/v1"
        ) as relay,
        AsyncExitStack() as stack,
    ):
        tracemalloc.start()
        try:
            for _ in range(10):
                wire = await stack.enter_async_context(await Wire.open(relay.port))
                await wire.begin(sent)
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        # The SDK's client keeps the request that it built once.
        assert held < 5_000_000
