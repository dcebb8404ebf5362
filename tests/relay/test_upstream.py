"""The provider's client: what is asked, how its refusals are told, and when a request is sent again."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import time
from collections.abc import Sequence
from email.utils import formatdate

import httpx2
import pytest

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.refusals import UpstreamError, retry_after_s
from relayd.relay.upstream import Upstream, UpstreamOptions
from tests.relay.harness import (
    BODY,
    CHUNKED_HEAD,
    FINISH,
    PROVIDER_KEY,
    STREAM_DONE,
    Break,
    PlayedProvider,
    Step,
    answer,
    client_of,
    cut,
    delta,
    error,
    http,
    read_answer,
    running_provider,
)
from tests.wire import HOST, PATIENCE_S, until

_WHOLE = answer(delta("hi"), FINISH + STREAM_DONE)
_SAID = "The model is overloaded."


async def _refused(
    *replies: Sequence[Step], max_retries: int = 0, **options: float
) -> tuple[RelayError, PlayedProvider]:
    """Ask a provider that plays these replies; return the error, and what the provider saw."""
    async with (
        running_provider(*replies) as provider,
        client_of(provider.base_url, max_retries=max_retries, **options) as upstream,
    ):
        with pytest.raises(RelayError) as refused:
            await read_answer(upstream)
    assert PROVIDER_KEY not in str(refused.value) + refused.value.recorded
    return refused.value, provider


async def test_a_request_carries_the_key_the_body_and_what_it_accepts() -> None:
    """Each one alike, also those that are copied from the first; nothing of the SDK's own client leaks in."""
    connected: list[int] = []
    async with running_provider(_WHOLE) as provider, client_of(provider.base_url) as upstream:
        for n in range(3):
            answered = await upstream.open(
                BODY + b" " * n, lambda _route: connected.append(len(provider.requests))
            )
            assert await answered.body.read(1 << 20) == delta("hi") + FINISH + STREAM_DONE
            answered.body.close()
    for n, request in enumerate(provider.requests):
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert body == BODY + b" " * n
        headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
        assert headers["authorization"] == f"bearer {PROVIDER_KEY}"
        assert headers["content-type"] == "application/json"
        assert headers["accept"] == "text/event-stream"
        assert headers["accept-encoding"] == "identity"
    assert connected == [0, 1, 2]
    assert provider.connections == 1


async def test_the_providers_request_id_is_bounded_and_without_the_key() -> None:
    """None if there is none."""
    long = f"x-request-id: {PROVIDER_KEY}{'x' * 15_000}\r\n\r\n".encode()
    replies: list[list[Step]] = [_WHOLE, [CHUNKED_HEAD.replace(b"\r\n\r\n", b"\r\n" + long), b"0\r\n\r\n"]]
    async with running_provider(*replies) as provider, client_of(provider.base_url) as upstream:
        assert (await upstream.open(BODY, lambda _route: None)).request_id is None
        request_id = (await upstream.open(BODY, lambda _route: None)).request_id
    assert request_id is not None
    assert request_id.startswith("[key]")
    assert len(request_id) == 200


# Refusals.


@pytest.mark.parametrize(
    ("status", "code"),
    [
        *((status, ErrorCode.UPSTREAM_REJECTED) for status in (400, 402, 404, 405, 413, 415, 422)),
        *((status, ErrorCode.UPSTREAM_AUTH) for status in (401, 403)),
        (429, ErrorCode.UPSTREAM_LIMITED),
        *((status, ErrorCode.UPSTREAM_FAILED) for status in (408, 409, 418, 500, 502, 503, 529)),
    ],
)
async def test_each_status_has_its_code_and_the_providers_sentence(status: int, code: ErrorCode) -> None:
    """A refusal of the request is recorded by its kind, since its sentence may quote it; others whole.

    The refusal of relayd's own key is told without the sentence, which quotes the key, and never passed on.
    """
    refused, _ = await _refused([error(status, _SAID, type="some_error", param="model")])
    assert isinstance(refused, UpstreamError)
    assert (refused.code, refused.concerns_relay) == (code, status == 401)
    assert (_SAID in refused.message) == (status != 401)
    assert str(status) in refused.message or status == 429
    if code is ErrorCode.UPSTREAM_REJECTED:
        assert refused.recorded == f"The provider refused the request ({status}): some_error, parameter model"
    else:
        assert _SAID in refused.recorded


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":"%b"}' % _SAID.encode(),
        b'{"detail":"%b"}' % _SAID.encode(),
        b'[{"error":{"message":"%b"}}]' % _SAID.encode(),
        b'{"object":"error","message":"%b"}' % _SAID.encode(),
        _SAID.encode(),
        b"<html><body>%b</body></html>" % _SAID.encode(),
    ],
)
@pytest.mark.parametrize(
    ("status", "media_type"), [(500, "application/json"), (200, "application/json"), (200, "text/plain")]
)
async def test_the_sentence_is_found_whatever_an_error_wears(
    body: bytes, status: int, media_type: str
) -> None:
    """In any shape, also with status 200; nothing says that there was no reason."""
    refused, provider = await _refused([http(status, body, media_type=media_type)], max_retries=0)
    assert refused.code is ErrorCode.UPSTREAM_FAILED
    assert refused.message.endswith(f": {_SAID}")
    assert _SAID in refused.recorded
    assert len(provider.requests) == 1


@pytest.mark.parametrize("body", [b'{"error":{"message":5}}', b'{\n "whatever": ["No!"]\n}', b"[[1], 2]"])
async def test_json_without_a_sentence_is_passed_on_as_it_is(body: bytes) -> None:
    """No list of names is complete. What nobody knows may quote the request, so it is not recorded."""
    refused, _ = await _refused([http(500, body)], max_retries=0)
    assert refused.message == f"The provider failed (500): {' '.join(body.decode().split())}"
    assert refused.recorded == "The provider failed (500): it gave no reason"


@pytest.mark.parametrize("media_type", ["application/json", "application/octet-stream", "text/event-streamx"])
async def test_an_answer_of_the_wrong_type_is_neither_told_nor_recorded(media_type: str) -> None:
    """It is no reason, but the reply."""
    refused, _ = await _refused([http(200, delta("a secret"), media_type=media_type)])
    assert refused.code is ErrorCode.UPSTREAM_FAILED
    assert "secret" not in refused.message + refused.recorded


async def test_an_error_with_status_200_that_judges_the_request_is_recorded_by_its_kind() -> None:
    """Its sentence may quote the conversation."""
    body = b'{"error":{"message":"Bad: my secret","type":"invalid_request_error"}}'
    refused, _ = await _refused([http(200, body)])
    assert refused.message.endswith(": Bad: my secret")
    assert refused.recorded.endswith(": invalid_request_error")


@pytest.mark.parametrize("reply", [http(500), http(400, b"{}"), http(429, b"null"), http(503, b"  ")])
async def test_a_refusal_without_a_reason_says_so(reply: bytes) -> None:
    """Nothing is made up."""
    refused, _ = await _refused([reply])
    assert refused.message.endswith(": it gave no reason")


@pytest.mark.parametrize(
    ("media_type", "body", "is_stream"),
    [
        ("text/event-stream", FINISH, True),
        ("TEXT/EVENT-STREAM ;x=y", FINISH, True),
        ("text/plain; charset=utf-8", FINISH, True),
        ("", FINISH, True),
        ("text/plain", b": the model is loading\n\n" + FINISH, True),
        ("text/event-streamx", FINISH, False),
        ("text/plain", b"Data is being moved.", False),
        ("text/plain", b"", False),
        ("application/text/event-stream", FINISH, False),
        ("text/html", b"", False),
    ],
)
async def test_an_event_stream_is_known_by_its_media_type(
    media_type: str,
    body: bytes,
    is_stream: bool,  # noqa: FBT001 - the example
) -> None:
    """Case and parameters do not matter; anything else may mean that the owner named another address."""
    reply = http(200, body, media_type=media_type)
    if is_stream:
        head, _, _ = reply.partition(b"\r\n\r\n")
        steps = [head + b"\r\n\r\n", *cut(body, range(len(body)))]
        async with running_provider(steps) as provider, client_of(provider.base_url) as upstream:
            assert await read_answer(upstream) == body
    else:
        refused, _ = await _refused([reply])
        assert refused.code is ErrorCode.UPSTREAM_FAILED
        assert "is upstream.base_url its API?" in refused.message


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (403, {"message": "Country, region, or territory not supported", "code": None}),
        (403, {"message": "No.", "code": "unsupported_country_region_territory"}),
        (400, {"message": "User location is not supported for the API use.", "code": None}),
        (403, {"message": "This model is not available in your region.", "code": None}),
    ],
)
async def test_a_refusal_of_the_servers_region_says_so(status: int, fields: dict[str, str | None]) -> None:
    """It is no matter of the key, and moving the server is the cure."""
    refused, _ = await _refused([error(status, **fields)])  # type: ignore[arg-type]  # message is in fields
    assert refused.code is ErrorCode.UPSTREAM_AUTH
    assert refused.message.startswith("The provider does not serve the region of this relay's server")
    assert str(fields["message"]) in refused.message


@pytest.mark.parametrize(
    ("reply", "code", "told", "recorded"),
    [
        (
            error(403, "No o9 for you."),
            ErrorCode.UPSTREAM_AUTH,
            "The provider does not allow this relay's account to do this (403): No o9 for you.",
            "No o9 for you.",
        ),
        (
            error(401, f"Incorrect API key provided: {PROVIDER_KEY[:6]}****ests."),
            ErrorCode.UPSTREAM_AUTH,
            "The provider refused this relay's own key (401); the relay's owner must replace it.",
            "Incorrect API key provided: [key]",
        ),
        (
            http(307, b"", "Location: /elsewhere"),
            ErrorCode.UPSTREAM_FAILED,
            "The provider answered with a redirect (307), which is not followed; ",
            "its final address.",
        ),
    ],
    ids=["permission", "key", "redirect"],
)
async def test_what_the_owner_must_mend_is_told_as_such(
    reply: bytes, code: ErrorCode, told: str, recorded: str
) -> None:
    """No part of the key is shown, nor sent to another address; the record has the provider's words."""
    refused, provider = await _refused([reply])
    assert (refused.code, len(provider.requests)) == (code, 1)
    assert refused.message.startswith(told)
    assert refused.recorded.endswith(recorded)


async def test_an_endless_refusal_is_read_up_to_a_bound() -> None:
    """Its status counts, and what it said is cut."""
    head = b"HTTP/1.1 400 X\r\nContent-Length: 50000000\r\n\r\n"
    refused, provider = await _refused([head, *[b"x" * 65_536] * 700])
    assert refused.code is ErrorCode.UPSTREAM_REJECTED
    assert len(refused.message) < 600
    assert provider.sent_bytes < 20_000_000


@pytest.mark.parametrize("end", [Break.RESET, Break.CLOSE, Break.WAIT])
async def test_a_refusal_that_breaks_off_still_has_its_status(
    end: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that never ends is waited for only so long: five seconds, here less."""
    monkeypatch.setattr("relayd.relay.refusals._ERROR_BODY_TIMEOUT_S", 0.2)
    head = b"HTTP/1.1 404 X\r\nContent-Length: 500\r\nContent-Type: application/json\r\n\r\n{"
    refused, _ = await _refused([head, end])
    assert refused.code is ErrorCode.UPSTREAM_REJECTED
    assert refused.message == "The provider refused the request (404): it gave no reason"


@pytest.mark.parametrize("status", [200, 400, 429])
async def test_a_refusal_gives_its_connection_back(status: int) -> None:
    """The next request goes over it; one whose body was not read to its end is cut instead."""
    async with running_provider([http(status, b"{}")]) as provider, client_of(provider.base_url) as upstream:
        for _ in range(3):
            with pytest.raises(RelayError):
                await read_answer(upstream)
        assert provider.connections == 1
    head = f"HTTP/1.1 {status} X\r\nContent-Length: 9000000\r\n\r\n".encode()
    endless: list[Step] = [head + b"x" * 70_000, Break.WAIT]
    async with running_provider(endless) as provider, client_of(provider.base_url) as upstream:
        with pytest.raises(RelayError):
            await read_answer(upstream)
        await provider.relay_left()


# Compression.


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Encoding: gzip",),
        ("content-encoding: Br",),
        ("Content-Encoding: identity", "Content-Encoding: gzip"),
        ("Content-Encoding: gzip, gzip",),
    ],
)
async def test_a_compressed_answer_is_refused_unread_and_not_asked_for_again(
    headers: tuple[str, ...],
) -> None:
    """Each request costs; and 5 KB may unpack to 3 GB. A refusal keeps its status without its words."""
    body = gzip.compress(json.dumps({"error": {"message": _SAID}}).encode())
    answered, once = await _refused(
        [http(200, body, *headers, media_type="text/event-stream")], max_retries=2
    )
    assert (answered.code, answered.message) == (
        ErrorCode.UPSTREAM_FAILED,
        "The provider compressed its answer, which relayd did not ask for.",
    )
    refused, twice = await _refused([http(429, body, *headers, "Retry-After: 120")], max_retries=2)
    assert (refused.code, refused.retry_after_s) == (ErrorCode.UPSTREAM_LIMITED, 120)
    assert refused.message.endswith("it gave no reason")
    assert len(once.requests) == len(twice.requests) == 1


async def test_an_answer_that_says_it_is_not_compressed_is_well() -> None:
    """`identity` is what was asked for."""
    head = CHUNKED_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: identity\r\n\r\n")
    async with running_provider([head, *_WHOLE[1:]]) as provider, client_of(provider.base_url) as upstream:
        assert await read_answer(upstream)


# Waiting and retrying.


def _http_date(in_s: float) -> str:
    return formatdate(time.time() + in_s, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "120"}, 120),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "2500", "retry-after": "9"}, 2.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        *(({"retry-after": value}, 86_400) for value in ("9999999", "1e400", "9" * 400)),
        ({"retry-after": "Wed, 28 Nov 9999 20:49:37 -1200"}, 86_400),
        ({"retry-after": "Mon, 01 Jan 0001 00:00:00 +1200"}, 0),
        *(({"retry-after": value}, None) for value in ("", "soon", "-5", "nan", "inf")),
        *(
            ({"retry-after": f"Fri, 28 {month_and_year} 20:49:37 GMT"}, None)
            for month_and_year in ("Foo 2026", "Nov 99999", "Nov 99999999999")
        ),
    ],
)
def test_the_wait_that_a_provider_asks_for_is_read_in_every_form(
    headers: dict[str, str], wait_s: float | None
) -> None:
    """Seconds, a fraction, OpenAI's milliseconds; a day at most. One that cannot be read is none."""
    assert retry_after_s(httpx2.Headers(headers)) == wait_s


@pytest.mark.parametrize(("in_s", "low", "high"), [(3600, 3500, 3600), (-90, 0, 0), (1e7, 86_400, 86_400)])
def test_the_wait_may_be_a_date(in_s: float, low: float, high: float) -> None:
    """One that is over is no wait."""
    wait_s = retry_after_s(httpx2.Headers({"retry-after": _http_date(in_s)}))
    assert wait_s is not None
    assert low <= wait_s <= high


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [("Retry-After: 120", 120), ("Retry-After: 5.2", 6), ("retry-after-ms: 7001", 8)],
)
async def test_a_long_wait_is_passed_on_at_once(header: str, wait_s: int) -> None:
    """Rounded up to whole seconds; the request is not sent again."""
    refused, provider = await _refused([error(429, _SAID, header)], max_retries=2)
    assert (refused.code, refused.retry_after_s) == (ErrorCode.UPSTREAM_LIMITED, wait_s)
    assert len(provider.requests) == 1


@pytest.mark.parametrize("reply", [error(429, _SAID), error(429, _SAID, "Retry-After: soon")])
async def test_a_limit_without_a_wait_says_one_second(reply: bytes) -> None:
    """429 always says when to come back."""
    refused, _ = await _refused([reply])
    assert refused.retry_after_s == 1


@pytest.mark.parametrize(
    ("status", "header"),
    [
        *((status, "retry-after-ms: 50") for status in (408, 409, 429, 500, 503)),
        (429, "Retry-After: 0.05"),
        (500, "X-Nothing: y"),
        (500, "x-should-retry: false"),
    ],
)
async def test_a_passing_trouble_is_tried_again(status: int, header: str) -> None:
    """Twice failed and then well is well: three sends over one connection, as the SDK retries.

    A provider's own wish is no veto here: those of relayd are only quota and wait.
    """
    failing = [error(status, _SAID, header)]
    async with (
        running_provider(failing, failing, _WHOLE) as provider,
        client_of(provider.base_url, max_retries=2) as upstream,
    ):
        assert await read_answer(upstream)
    assert len(provider.requests) == 3
    assert len({request.partition(b"\r\n\r\n")[2] for request in provider.requests}) == 1
    assert provider.connections == 1


@pytest.mark.parametrize("max_retries", [0, 1, 2])
async def test_a_request_is_sent_at_most_once_more_than_it_is_retried(max_retries: int) -> None:
    """The last refusal is the one that is told."""
    replies = [[error(503, f"Failure {n}.", "retry-after-ms: 20")] for n in range(5)]
    refused, provider = await _refused(*replies, max_retries=max_retries)
    assert len(provider.requests) == max_retries + 1
    assert refused.message == f"The provider failed (503): Failure {max_retries}."


async def test_the_waits_in_all_fit_the_limit() -> None:
    """Two of 0.3 s do, within 0.7 s; the third would not."""
    began_at = time.monotonic()
    refused, provider = await _refused(
        [error(429, _SAID, "Retry-After: 0.3")], max_retries=5, max_retry_wait_s=0.7
    )
    assert len(provider.requests) == 3
    assert refused.retry_after_s == 1
    assert time.monotonic() - began_at >= 0.6


@pytest.mark.parametrize(("max_retry_wait_s", "sends"), [(0.0, 1), (0.5, 2), (1.4, 2), (1.5, 3)])
async def test_without_a_wished_wait_the_sdks_own_counts(max_retry_wait_s: float, sends: int) -> None:
    """Half a second, doubled each time."""
    _, provider = await _refused([error(500, _SAID)], max_retries=2, max_retry_wait_s=max_retry_wait_s)
    assert len(provider.requests) == sends


async def test_other_limits_hold_from_the_next_request_on() -> None:
    """A reload of the configuration changes retries and waits."""
    async with running_provider([error(500, _SAID)]) as provider, client_of(provider.base_url) as upstream:
        for options in ({"max_retries": 1}, {"max_retries": 1, "max_retry_wait_s": 0.1}, {"max_retries": 0}):
            upstream.configure(PROVIDER_KEY, UpstreamOptions(provider.base_url, **options))
            before = len(provider.requests)
            with pytest.raises(RelayError):
                await read_answer(upstream)
            assert len(provider.requests) - before == (2 if options == {"max_retries": 1} else 1)


async def test_a_used_up_quota_is_told_at_once() -> None:
    """No wait brings it back."""
    refused, provider = await _refused(
        [error(429, "You exceeded your current quota.", code="insufficient_quota")], max_retries=2
    )
    assert refused.code is ErrorCode.UPSTREAM_LIMITED
    assert refused.message.endswith(": You exceeded your current quota.")
    assert len(provider.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_a_request_that_is_wrong_is_not_sent_again(status: int) -> None:
    """It stays wrong, also where the provider says otherwise."""
    _, provider = await _refused([error(status, _SAID, "x-should-retry: true")], max_retries=2)
    assert len(provider.requests) == 1


@pytest.mark.parametrize("max_retries", [0, 2])
@pytest.mark.parametrize("end", [Break.RESET, Break.CLOSE, b"not http\r\n\r\n"])
@pytest.mark.parametrize("kept", [False, True])
async def test_a_request_that_may_have_been_read_is_sent_once(
    max_retries: int,
    end: Step,
    kept: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Over a fresh connection and a kept one: it may have cost something."""
    replies: list[list[Step]] = [*([_WHOLE] if kept else []), [end, Break.WAIT]]
    async with (
        running_provider(*replies) as provider,
        client_of(provider.base_url, max_retries=max_retries) as upstream,
    ):
        if kept:
            await read_answer(upstream)
        with pytest.raises(RelayError) as refused:
            await read_answer(upstream)
        assert provider.connections == 1
        assert len(provider.requests) == 1 + kept
    assert refused.value.code is ErrorCode.UPSTREAM_FAILED
    assert refused.value.message == "The provider closed the connection without an answer."


async def test_a_connection_that_cannot_be_made_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was sent, so that the second attempt may find the provider back."""
    caplog.set_level(logging.INFO, "openai")
    with socket.socket() as sock:
        # Bound and not listening: connections are refused, and no other process can have the port.
        sock.bind((HOST, 0))
        async with client_of(f"http://{HOST}:{sock.getsockname()[1]}/v1", max_retries=2) as upstream:
            opening = asyncio.create_task(read_answer(upstream))
            await until(lambda: "Retrying request" in caplog.text)
            back = PlayedProvider([_WHOLE])
            server = await asyncio.start_server(back.serve, sock=sock)
            assert await asyncio.wait_for(opening, PATIENCE_S)
        server.close()
        await back.relay_left()
        assert len(back.requests) == 1


@pytest.mark.parametrize(
    ("base_url", "said"),
    [
        ("http://127.0.0.1:1/v1", "The provider cannot be reached: Connection refused."),
        ("http://nowhere.invalid/v1", "The provider cannot be reached: "),
        ("https://127.0.0.1:1/v1", "The provider cannot be reached: Connection refused."),
    ],
)
@pytest.mark.parametrize("options", [{}, {"max_retries": 2, "max_retry_wait_s": 0.1}])
async def test_a_provider_that_is_not_there_is_unreachable(
    base_url: str, said: str, options: dict[str, float]
) -> None:
    """In the system's words; also where a retry would wait too long."""
    connected: list[None] = []
    async with client_of(base_url, **options) as upstream:
        with pytest.raises(RelayError) as refused:
            await asyncio.wait_for(upstream.open(BODY, lambda _route: connected.append(None)), PATIENCE_S)
    assert refused.value.code is ErrorCode.UPSTREAM_UNREACHABLE
    assert refused.value.message.startswith(said)
    assert connected == []


@pytest.mark.parametrize("step", [[Break.WAIT], [error(429, _SAID, "Retry-After: 4")]])
async def test_cancelling_a_request_frees_the_provider(
    step: list[Step], caplog: pytest.LogCaptureFixture
) -> None:
    """While its head is waited for, and while a retry waits for its time."""
    caplog.set_level(logging.INFO, "openai")
    async with running_provider(step) as provider:
        async with client_of(provider.base_url, max_retries=2) as upstream:
            opening = asyncio.create_task(upstream.open(BODY, lambda _route: None))
            if step == [Break.WAIT]:
                await until(lambda: provider.requests)
            else:
                await until(lambda: "Retrying request" in caplog.text)
            opening.cancel()
            await asyncio.wait((opening,))
            assert opening.cancelled()
            if step == [Break.WAIT]:
                await provider.relay_left()
        assert len(provider.requests) == 1


async def test_the_key_is_shown_by_no_repr() -> None:
    """Neither by the client's nor by its parts'."""
    async with client_of("http://127.0.0.1:1/v1") as upstream:
        assert isinstance(upstream, Upstream)
        assert PROVIDER_KEY not in repr(upstream) + repr(upstream.redact) + repr(vars(upstream))
