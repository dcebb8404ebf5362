"""Every row of the contract's error table, provoked over a real socket and found in the database."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from relayd.relay.errors import ErrorCode
from relayd.state.records import Outcome, Phase
from tests.e2e.daemon import KEY, PROVIDER_KEY, Daemon, closed_port
from tests.wire import DONE_BYTES, Reply, Wire, ask, body, post, until

ORIGIN = "https://page.example"
_MAX_BODY = 4096
_MODELS_OF_STRICT = ["demo"]


@dataclass(frozen=True, slots=True)
class Case:
    """A failure before the first byte."""

    code: str
    status: int
    payload: bytes
    says: str
    retry_after: str | None = None
    outcome: Outcome = Outcome.UPSTREAM_ERROR
    key: str | None = KEY


def _fault(script: str) -> bytes:
    return body(f"demo:{script}")


_REFUSED = {"outcome": Outcome.REJECTED}
_BEFORE_THE_FIRST_BYTE = {
    "not json": Case("bad_request", 400, b"{", "not JSON", **_REFUSED),
    "unknown field": Case("bad_request", 400, body("demo", n=2), "unknown field `n`", **_REFUSED),
    "no key": Case("unauthorized", 401, body("demo"), "no valid key", key=None, outcome=Outcome.DENIED),
    "wrong key": Case("unauthorized", 401, body("demo"), "no valid key", key="wrong", outcome=Outcome.DENIED),
    "too large": Case("too_large", 413, b" " * (_MAX_BODY + 1), "at most 4096 bytes", **_REFUSED),
    "refused by the provider": Case(
        "upstream_rejected", 400, _fault("fault=status,code=400,message=No%20such%20thing."), "No such thing."
    ),
    "no such model": Case("upstream_rejected", 400, _fault("fault=status,code=404"), "(404)"),
    "not to be processed": Case("upstream_rejected", 400, _fault("fault=status,code=422"), "(422)"),
    "rate limit": Case(
        "upstream_limited",
        429,
        _fault("fault=status,code=429,retry_after=70"),
        "Rate limit",
        retry_after="70",
    ),
    "the relay's own key": Case("upstream_auth", 502, _fault("fault=echo_key"), "own key (401)"),
    "not allowed": Case(
        "upstream_auth", 502, _fault("fault=status,code=403"), "does not allow this relay's account"
    ),
    "provider fails": Case(
        "upstream_failed", 502, _fault("fault=status,code=500"), "The provider failed (500)"
    ),
    "provider hangs up": Case("upstream_failed", 502, _fault("fault=cut_headers"), "without an answer"),
    "garbage": Case("upstream_truncated", 502, _fault("fault=garbage"), "before it was finished"),
    "a web page": Case("upstream_failed", 502, _fault("fault=html"), "event stream"),
    "a redirect": Case("upstream_failed", 502, _fault("fault=redirect"), "redirect (307)"),
    "compressed": Case("upstream_failed", 502, _fault("fault=gzip"), "compressed"),
    "an error event": Case("upstream_failed", 502, _fault("fault=error_event,after=0"), "reported an error"),
    "nothing at all": Case(
        "upstream_truncated", 502, _fault("deltas=0,finish=none"), "before it was finished"
    ),
}


@dataclass(frozen=True, slots=True)
class Break:
    """A failure in the middle of the answer."""

    code: str
    script: str
    says: str


_MID_STREAM = {
    "cut": Break("upstream_failed", "fault=cut_mid", "broke"),
    "closed": Break("upstream_failed", "fault=cut_fin", "broke"),
    "an error event": Break("upstream_failed", "fault=error_event,message=Out%20of%20luck.", "Out of luck."),
    "broken json": Break("upstream_failed", "fault=bad_json", "not a chat completion chunk"),
    "broken utf-8": Break("upstream_failed", "fault=bad_utf8", "not a chat completion chunk"),
    "a huge event": Break("upstream_failed", "fault=huge_event,size=2000000", "more than 1048576 bytes"),
    "ended early": Break("upstream_truncated", "fault=end_early", "before it was finished"),
    "no finish reason": Break("upstream_truncated", "deltas=3,finish=none", "before it was finished"),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon in front of a provider that fails as it is asked to; its times are tested in tests/public."""
    settings = {
        "upstream.max_retries": 0,
        "server.max_body_bytes": _MAX_BODY,
    }
    with Daemon(tmp_path_factory.mktemp("demo"), settings=settings) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a list of models in front of a provider that is not there."""
    settings = {
        "upstream.base_url": f"http://127.0.0.1:{closed_port()}/v1",
        "upstream.max_retries": 0,
        "chat.allowed_models": _MODELS_OF_STRICT,
    }
    with Daemon(tmp_path_factory.mktemp("strict"), settings=settings) as daemon:
        yield daemon


async def _check(daemon: Daemon, reply: Reply, code: str, status: int, says: str, outcome: Outcome) -> None:
    """Status, headers, lines and record of a failure before the first byte."""
    assert reply.status == status
    assert reply.header("X-Relayd-Error") == code
    assert reply.header("Content-Type") == "application/x-ndjson; charset=utf-8"
    assert reply.header("Access-Control-Allow-Origin") == ORIGIN
    assert reply.header("Access-Control-Allow-Credentials") == "true"
    assert reply.header("Access-Control-Expose-Headers") == "X-Request-Id, X-Relayd-Error, Retry-After"
    assert reply.header("Vary") == "Origin"
    assert (reply.header("Retry-After") is not None) == (status in {429, 503} and code != "cancelled")
    assert len(reply.lines) == 2
    await _check_end(daemon, reply, code, says, outcome)


async def _check_end(daemon: Daemon, reply: Reply, code: str, says: str, outcome: Outcome) -> None:
    """The last two lines of a failed reply, and its record."""
    assert not reply.cut
    *_, error, done = reply.body.splitlines(keepends=True)
    assert error.startswith(b'{"done":false,"error":true,"content":"%b: ' % code.encode())
    assert done == DONE_BYTES
    assert reply.body.count(b'"done":true') == 1
    assert reply.error is not None
    assert says in reply.error
    assert PROVIDER_KEY[:12] not in reply.error
    record = await daemon.record(reply)
    assert (record.phase, record.outcome, record.status) == (Phase.DONE, outcome, reply.status)
    assert record.error is not None
    assert record.error.code == code
    if code == "upstream_rejected":
        # The provider's sentence may quote the conversation, which is never written down.
        assert "invalid_request_error" in record.error.message
    else:
        assert f"{code}: {record.error.message}".startswith(reply.error or "-")
    assert record.origin == ORIGIN


async def _ask(daemon: Daemon, payload: bytes, key: str | None = KEY) -> Reply:
    return await ask(daemon.port, key, payload, {"Origin": ORIGIN})


@pytest.mark.parametrize("name", _BEFORE_THE_FIRST_BYTE)
async def test_a_failure_before_the_first_byte_has_its_status_and_its_lines(demo: Daemon, name: str) -> None:
    """Both kinds of client see it: those that check the status, and those that only read lines."""
    case = _BEFORE_THE_FIRST_BYTE[name]
    reply = await _ask(demo, case.payload, case.key)
    await _check(demo, reply, case.code, case.status, case.says, case.outcome)
    assert reply.header("Retry-After") == case.retry_after


@pytest.mark.parametrize("name", _MID_STREAM)
async def test_a_failure_in_the_middle_is_the_last_but_one_line(demo: Daemon, name: str) -> None:
    """What came before it counts, the error line and the done line end it, and the record tells both."""
    case = _MID_STREAM[name]
    reply = await _ask(demo, _fault(f"text=words,interval_ms=5,{case.script}"))
    assert reply.status == 200
    assert reply.header("X-Relayd-Error") is None
    assert (len(reply.lines), reply.text) == (5, "The relay passes ")
    await _check_end(demo, reply, case.code, case.says, Outcome.UPSTREAM_ERROR)
    assert (await demo.record(reply)).deltas == 3


async def test_a_model_outside_the_list_is_refused(strict: Daemon) -> None:
    """`model_not_allowed`: the provider is not asked."""
    reply = await _ask(strict, body("gpt-9"))
    await _check(strict, reply, "model_not_allowed", 403, "allowed are: demo", Outcome.REJECTED)


async def test_a_provider_that_is_not_there_is_unreachable(strict: Daemon) -> None:
    """`upstream_unreachable`: the sentence says what the system said."""
    reply = await _ask(strict, body("demo"))
    await _check(strict, reply, "upstream_unreachable", 502, "refused", Outcome.UPSTREAM_ERROR)


@asynccontextmanager
async def _streaming(daemon: Daemon, script: str) -> AsyncIterator[tuple[Wire, Reply, str]]:
    """A stream that has begun: its wire, its reply so far, its id."""
    async with await Wire.open(daemon.port) as wire:
        reply = await wire.begin(post(KEY, body(f"demo:{script}"), {"Origin": ORIGIN}))
        request_id = reply.header("X-Request-Id")
        assert request_id is not None
        yield wire, reply, request_id


async def _waiting(daemon: Daemon, wire: Wire) -> str:
    """A request that waits for its first token; returns its id."""
    wire.send(post(KEY, body("demo:fault=stall_first"), {"Origin": ORIGIN}))
    await until(lambda: _open_ids(daemon))
    return _open_ids(daemon)[0]


def _open_ids(daemon: Daemon) -> list[str]:
    return [
        record.id
        for record in daemon.records()
        if record.phase is not Phase.DONE and record.model == "demo:fault=stall_first"
    ]


async def test_the_operator_cancels_before_the_first_byte(daemon: Daemon) -> None:
    """`cancelled`, with a status."""
    async with await Wire.open(daemon.port) as wire:
        await daemon.admin.cancel(await _waiting(daemon, wire))
        reply = await wire.reply()
    await _check(daemon, reply, "cancelled", 503, "operator", Outcome.CANCELLED)


async def test_the_operator_cancels_in_the_middle(daemon: Daemon) -> None:
    """`cancelled`, as a line."""
    async with _streaming(daemon, "deltas=1000,interval_ms=20") as (wire, reply, request_id):
        await daemon.admin.cancel(request_id)
        await wire.rest(reply)
    assert reply.status == 200
    await _check_end(daemon, reply, "cancelled", "operator", Outcome.CANCELLED)


async def test_a_revoked_key_is_cut_in_every_phase(tmp_path: Path) -> None:
    """`key_revoked` before the first byte and in the middle; the key's next request is unauthorized."""
    with Daemon(tmp_path) as daemon:
        async with (
            await Wire.open(daemon.port) as waiting,
            _streaming(daemon, "deltas=1000,interval_ms=20") as (wire, streamed, _),
        ):
            await _waiting(daemon, waiting)
            ring = await daemon.admin.keys()
            await daemon.admin.revoke_key(
                ring.keys[0].id, cut=True, generation=ring.generation, idempotency_key=uuid4().hex
            )
            await wire.rest(streamed)
            refused = await waiting.reply()
        await _check(daemon, refused, "key_revoked", 401, "revoked", Outcome.CANCELLED)
        await _check_end(daemon, streamed, "key_revoked", "revoked", Outcome.CANCELLED)
        after = await _ask(daemon, body("demo"))
        await _check(daemon, after, "unauthorized", 401, "no valid key", Outcome.DENIED)


async def test_paused_intake_refuses_new_work_and_keeps_the_old(daemon: Daemon) -> None:
    """`draining` while the operator has paused; the open stream ends well; `resume` takes new work."""
    async with _streaming(daemon, "deltas=10,interval_ms=20") as (wire, reply, _):
        await daemon.admin.pause()
        try:
            refused = await _ask(daemon, body("demo"))
        finally:
            await daemon.admin.resume()
        await wire.rest(reply)
    await _check(daemon, refused, "draining", 503, "paused", Outcome.REJECTED)
    assert reply.error is None
    assert (await _ask(daemon, body("demo:deltas=1"))).status == 200


async def test_a_stopping_daemon_ends_what_is_left_in_every_phase(tmp_path: Path) -> None:
    """`draining` with its status before the first byte, and as a line in the middle; no socket is left."""
    settings = {"server.drain_timeout_s": 0.2}
    with Daemon(tmp_path, settings=settings) as daemon:
        async with (
            await Wire.open(daemon.port) as waiting,
            _streaming(daemon, "deltas=1000,interval_ms=20") as (wire, streamed, _),
        ):
            await _waiting(daemon, waiting)
            daemon.signal(signal.SIGTERM)
            await wire.rest(streamed)
            refused = await waiting.reply()
        assert await asyncio.to_thread(daemon.wait) == 0
        assert sorted(path.name for path in daemon.state_dir.iterdir()) == ["relayd.db", "relayd.lock"]
        await _check(daemon, refused, "draining", 503, "stopping", Outcome.SHUTDOWN)
        await _check_end(daemon, streamed, "draining", "stopping", Outcome.SHUTDOWN)


def test_every_row_of_the_table_is_provoked() -> None:
    """`internal` needs a bug, `upstream_timeout` short times: tests/public/test_chat.py has them.

    tests/public/test_admission.py has `busy`, and test_allowances.py what only clients with bounds meet.
    """
    provoked = {case.code for case in _BEFORE_THE_FIRST_BYTE.values()}
    provoked |= {case.code for case in _MID_STREAM.values()}
    provoked |= {"model_not_allowed", "upstream_unreachable", "cancelled", "key_revoked", "draining"}
    assert provoked == {str(code) for code in ErrorCode} - {
        "internal",
        "busy",
        "upstream_timeout",
        "over_budget",
        "model_unpriced",
        "state_unavailable",
    }


async def test_after_all_that_the_relay_still_relays(demo: Daemon) -> None:
    """No failure leaves anything behind: no open record, no bug in the log, no key."""
    reply = await _ask(demo, body("demo:deltas=2,interval_ms=0"))
    assert (await demo.record(reply)).outcome is Outcome.COMPLETED
    assert all(record.phase is Phase.DONE for record in demo.records())
    assert "met a bug" not in demo.stderr
    assert "Traceback" not in demo.stderr
    assert KEY not in demo.stderr
    assert PROVIDER_KEY not in demo.stderr
    assert KEY.encode() not in demo.database.read_bytes()
