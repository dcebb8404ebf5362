"""The provider's answers, and what relayd makes of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relayd.relay.failure import Code, Failure
from relayd.relay.upstream import Upstream
from tests.relay.room import PROVIDER_KEY, upstream_of
from tests.support.upstream import FaultUpstream


def _body(model: str) -> bytes:
    return b'{"stream":true,"messages":[{"role":"user","content":"Hi"}],"model":"%b"}' % model.encode()


def _nothing() -> None:
    """Nobody counts connections here."""


async def _read(upstream: Upstream, model: str) -> bytes:
    async with upstream.stream(_body(model), connected=_nothing) as body:
        whole = bytearray()

        def take(piece: bytes) -> bool:
            whole.extend(piece)
            return True

        assert not await body.pour(take)
        return bytes(whole)


async def _failure(upstream: Upstream, model: str) -> Failure:
    with pytest.raises(Failure) as failed:
        await _read(upstream, model)
    assert PROVIDER_KEY not in str(failed.value)
    return failed.value


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, Code.UPSTREAM_REJECTED),
        (401, Code.UPSTREAM_AUTH),
        (402, Code.UPSTREAM_REJECTED),
        (403, Code.UPSTREAM_AUTH),
        (404, Code.UPSTREAM_REJECTED),
        (409, Code.UPSTREAM_FAILED),
        (413, Code.UPSTREAM_REJECTED),
        (415, Code.UPSTREAM_REJECTED),
        (422, Code.UPSTREAM_REJECTED),
        (429, Code.UPSTREAM_LIMITED),
        (500, Code.UPSTREAM_FAILED),
        (502, Code.UPSTREAM_FAILED),
        (503, Code.UPSTREAM_FAILED),
        (529, Code.UPSTREAM_FAILED),
    ],
)
async def test_each_status_has_its_code(status: int, code: Code) -> None:
    """The provider's own words come along, except where its key is concerned."""
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url) as upstream:
        failure = await _failure(upstream, f"demo:fault=status,code={status},message=The%20reason.")
    assert failure.code is code
    assert ("The reason." in failure.sentence) == (code is not Code.UPSTREAM_AUTH)
    assert str(status) in failure.sentence or code is Code.UPSTREAM_LIMITED


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("17", 17), ("0", 0), ("9999999", 86400), ("soon", 1), ("-5", 1), ("1.5", 1)],
)
async def test_the_providers_retry_after_is_passed_on(header: str, seconds: int) -> None:
    """Whole seconds up to a day; what cannot be read is one second."""
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url) as upstream:
        failure = await _failure(upstream, f"demo:fault=status,code=429,retry_after={header}")
    assert failure.retry_after_s == seconds


async def test_no_retry_after_is_one_second() -> None:
    """429 always says when to come back."""
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url) as upstream:
        failure = await _failure(upstream, "demo:fault=status,code=429")
    assert failure.retry_after_s == 1


@pytest.mark.parametrize("fault", ["status,code=500", "status,code=429,retry_after=0", "cut_headers"])
async def test_a_passing_trouble_is_tried_again_before_the_first_byte(fault: str) -> None:
    """Twice failed and then well is well, within `max_retries`."""
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url, max_retries=2) as upstream:
        answer = await _read(upstream, f"demo:deltas=1,interval_ms=0,fault={fault},fail_times=2,id=a")
        assert demo.total_requests == 3
    assert b"[DONE]" in answer


async def test_more_trouble_than_retries_is_a_failure() -> None:
    """The last try's reason is told."""
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url, max_retries=1) as upstream:
        failure = await _failure(upstream, "demo:fault=status,code=503,fail_times=2,id=a")
        assert demo.total_requests == 2
    assert failure.code is Code.UPSTREAM_FAILED


async def test_a_request_that_is_wrong_is_not_tried_again() -> None:
    """400 stays 400 however often it is asked."""
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url, max_retries=2) as upstream:
        await _failure(upstream, "demo:fault=status,code=400")
        assert demo.total_requests == 1


async def test_the_key_goes_to_the_provider_and_nowhere_else() -> None:
    """The provider accepts it; where it repeats it, nobody is shown it; a redirect does not carry it on."""
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url) as upstream:
        await _read(upstream, "demo:deltas=1")
        assert demo.requests[0].authorized
        echoed = await _failure(upstream, "demo:fault=echo_key,code=400")
        assert "[key]" in echoed.sentence
        redirected = await _failure(upstream, "demo:fault=redirect")
        assert "redirect (307)" in redirected.sentence
        assert demo.total_requests == 3
    assert PROVIDER_KEY not in repr(upstream) + repr(upstream.scrub)


async def test_a_wrong_key_is_the_owners_business() -> None:
    """The provider's refusal of relayd's own key is told without a part of it, masked or not."""
    async with FaultUpstream("another-key-entirely") as demo, upstream_of(demo.base_url) as upstream:
        failure = await _failure(upstream, "demo")
    assert failure.code is Code.UPSTREAM_AUTH
    assert PROVIDER_KEY[:9] not in failure.sentence
    assert "*" not in failure.sentence


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("fault=html", "event stream"),
        ("fault=gzip", "compressed"),
        ("fault=header_flood,size=200000", "closed the connection"),
        ("fault=cut_headers", "without an answer"),
        ("fault=huge_error_body,size=3000000", "failed (500)"),
    ],
)
async def test_what_is_no_stream_is_a_failure(script: str, said: str) -> None:
    """Each with its own sentence, and with bounded memory."""
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url) as upstream:
        failure = await asyncio.wait_for(_failure(upstream, f"demo:{script}"), 30)
    assert failure.code is Code.UPSTREAM_FAILED
    assert said in failure.sentence
    assert len(failure.sentence) < 700


async def test_leaving_closes_the_providers_request() -> None:
    """At any time before the end: the provider sees it at once."""
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url) as upstream:
        async with upstream.stream(_body("demo:deltas=1000,interval_ms=5"), connected=_nothing) as body:
            assert await body.pour(lambda _piece: False)
        assert (await demo.wait_closed(0)).completed is False


async def test_a_cancelled_wait_for_headers_closes_the_request() -> None:
    """Also while a retry waits for its time."""
    for model in ("demo:fault=stall_headers", "demo:fault=status,code=429,retry_after=30"):
        async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url, max_retries=2) as upstream:
            reading = asyncio.create_task(_read(upstream, model), name="read")
            await demo.wait_request(0)
            await asyncio.sleep(0.02)
            reading.cancel()
            await asyncio.wait((reading,), timeout=30)
            assert reading.cancelled()
            await demo.wait_ended(0)
            assert demo.total_requests == 1


async def test_a_whole_answer_frees_its_connection_for_the_next() -> None:
    """Ten requests one after the other share one connection, errors among them; leaving costs it."""
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url) as upstream:
        for n in range(10):
            await _read(upstream, "demo:deltas=2,interval_ms=0")
            if n == 5:
                await _failure(upstream, "demo:fault=status,code=400")
        assert _connections_to(demo) == 1
        async with upstream.stream(_body("demo:deltas=1000,interval_ms=5"), connected=_nothing) as body:
            assert await body.pour(lambda _piece: False)
        await demo.wait_closed(11)
        assert _connections_to(demo) == 0


def _connections_to(demo: FaultUpstream) -> int:
    """Established connections at the demo's end."""
    ours = f":{demo.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(local.endswith(ours) and state == "01" for _, local, _, state, *_ in lines)


async def test_nobody_there_is_unreachable() -> None:
    """No address, no listener, no name: the sentence says what the system said."""
    for url in ("http://127.0.0.1:1/v1", "http://nowhere.invalid/v1"):
        async with upstream_of(url) as upstream:
            failure = await _failure(upstream, "demo")
        assert failure.code is Code.UPSTREAM_UNREACHABLE
        assert failure.sentence.startswith("The provider cannot be reached: ")
