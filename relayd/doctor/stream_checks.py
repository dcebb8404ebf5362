"""Checks with a key: how a stream arrives. They are probes, which the relay answers without a provider."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import pairwise
from typing import Any

from relayd.doctor.http_client import ANSWER_TIMEOUT_S, Answer, NoAnswer, Site
from relayd.findings import CheckFailed, Finding, error, ok, warning
from relayd.relay.errors import ErrorCode
from relayd.relay.probe import PROBE_MODEL

_LINES = 20
_INTERVAL_MS = 100
_LARGE_BYTES = 1_500_000
_SLOW_NOTICE_S = 1.0
_MAX_NOTICE_S = 3.0
_FIRST_POLL_S = 0.1
_MAX_POLL_S = 1.0
_PROXY_LOG = "the proxy's own error log says why"


@dataclass(frozen=True, slots=True)
class Target:
    """A site, and a key that works there.

    Attributes:
        site: the deployment.
        key: of a client; empty leaves out the checks that need one.
    """

    site: Site
    key: str = field(repr=False)

    def stream(self, script: str) -> AbstractAsyncContextManager[Answer]:
        """Begin a probe. Raises NoAnswer."""
        return self.site.stream("POST", "/chat", self._headers(), _probe(script))

    async def ask(self, script: str, *, padding: int = 0, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
        """Send a probe, `padding` bytes larger, and read its whole answer. Raises NoAnswer."""
        body = _probe(script, padding)
        return await self.site.ask("POST", "/chat", self._headers(), body, timeout_s=timeout_s)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


def _probe(script: str, padding: int = 0) -> bytes:
    message = {"role": "user", "content": "x" * padding or "probe"}
    return json.dumps({"model": f"{PROBE_MODEL}:{script}", "messages": [message]}).encode()


async def check_streams(target: Target) -> AsyncIterator[Finding]:
    """Make every check of streams, side by side; yield each finding as its check ends.

    Raises:
        CheckFailed: the key does not work, or the relay cannot be probed.
    """
    facts = await _facts(target)
    silence_s = float(facts["silence_s"])
    yield ok(
        "key", f"The key works; relayd {facts['version']}, a heartbeat every {facts['heartbeat_s']:g} s."
    )
    yield judge_address(str(facts["address"]), target.site.address)
    checks: dict[str, Coroutine[Any, Any, Finding]] = {
        "streaming": _check_streaming(target),
        "large bodies": _check_large_body(target),
        "disconnects": _check_disconnects(target, silence_s),
        "heartbeats": _check_heartbeats(target, silence_s),
    }
    tasks = [
        asyncio.create_task(_guarded(name, check), name=f"doctor {name}") for name, check in checks.items()
    ]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _guarded(name: str, check: Coroutine[Any, Any, Finding]) -> Finding:
    try:
        return await check
    except TimeoutError:
        return error(name, "The test did not end in time.", "look for a proxy that delays answers")
    except NoAnswer as fault:
        return error(name, f"The test was not answered: {fault}.", _PROXY_LOG)


async def _facts(target: Target) -> dict[str, Any]:
    """Return what the relay says about itself in the first line of a probe."""
    try:
        answer = await target.ask("lines=0")
    except NoAnswer as fault:
        raise CheckFailed("key", f"A request with the key is not answered: {fault}.", _PROXY_LOG) from fault
    if answer.status == HTTPStatus.UNAUTHORIZED:
        raise CheckFailed(
            "key",
            "The key is refused.",
            "is it this relay's and not expired (relayd keys list), does the proxy pass Authorization on?",
        )
    facts = _content(answer)
    if "version" not in facts:
        reason = answer.event(0).get("content") or f"HTTP {answer.status}"
        remedy = "upgrade relayd if it is older than this one"
        if answer.header("X-Relayd-Error") == ErrorCode.STATE_UNAVAILABLE:
            remedy = "relayd status says more"
        raise CheckFailed("key", f"The relay cannot be tested: {reason}", remedy)
    return facts


def judge_address(seen: str, address: str) -> Finding:
    """Judge whether relayd tells its clients apart.

    Args:
        seen: the address that relayd takes this request to come from.
        address: the site's address, as resolved here.
    """
    try:
        is_proxy = not ipaddress.ip_address(seen).is_global and ipaddress.ip_address(address).is_global
    except ValueError:
        is_proxy = False
    if not is_proxy:
        return ok("address", f"relayd sees you as {seen}.")
    return error(
        "address",
        f"relayd sees you as {seen}, the proxy: all clients look like one, and share one limit.",
        "the proxy must send X-Forwarded-For, and server.trusted_proxies must hold the proxy's address",
    )


async def _check_streaming(target: Target) -> Finding:
    """Check that lines come as they are sent."""
    expected_s = _LINES * _INTERVAL_MS / 1000
    script = f"lines={_LINES},interval_ms={_INTERVAL_MS}"
    answer = await target.ask(script, timeout_s=expected_s + ANSWER_TIMEOUT_S)
    times = [when for when, line in answer.lines if b'"done":false' in line]
    if answer.status != HTTPStatus.OK or len(times) <= _LINES:
        return error("streaming", f"Only {len(times)} of {_LINES + 1} lines arrived.", _PROXY_LOG)
    sent = f"{_LINES} lines, sent over {expected_s:g} s, arrived"
    took_s = times[-1] - times[0]
    if is_held_back(answer.asked_at, times, _INTERVAL_MS / 1000):
        encoding = answer.header("Content-Encoding")
        compressed = f" and compressed ({encoding})" if encoding else ""
        return error(
            "streaming",
            f"{sent} within {took_s:.1f} s: the answer is held back{compressed}.",
            answer.advice(
                "a CDN: exempt /chat from caching and compression",
                nginx="proxy_buffering off; gzip off",
                Apache="flushpackets=on",
                Caddy="no encode",
            ),
        )
    return ok("streaming", f"{sent} over {took_s:.1f} s.")


def is_held_back(asked_at: float, times: Sequence[float], interval_s: float) -> bool:
    """Return whether lines that were sent one by one were buffered on the way.

    A proxy that buffers the whole answer lets nothing through before the last line was sent; that holds at
    any speed of machine and line. A proxy that buffers a part shows it by a lump: more than half of the
    lines, less than half an interval apart.

    Args:
        asked_at: when the request was sent, in seconds.
        times: when each line came.
        interval_s: the least time between two lines when they were sent.
    """
    if times[0] - asked_at >= interval_s * (len(times) - 1):
        return True
    lump = largest = 1
    for earlier, later in pairwise(times):
        lump = lump + 1 if later - earlier < interval_s / 2 else 1
        largest = max(largest, lump)
    return largest > len(times) / 2


async def _check_heartbeats(target: Target, silence_s: float) -> Finding:
    began = time.monotonic()
    answer = await target.ask("silence=1", timeout_s=silence_s + ANSWER_TIMEOUT_S)
    took_s = time.monotonic() - began
    contents = [answer.event(number).get("content") for number in range(len(answer.lines))]
    if "awake " not in contents:
        return error(
            "heartbeats",
            f"A silent stream is cut after {took_s:.0f} s.",
            "give the proxy a longer timeout than chat.heartbeat_s, or lower that; "
            + answer.advice(nginx="proxy_read_timeout 60s", HAProxy="timeout server and timeout client 60s"),
        )
    if "" not in contents:
        return error(
            "heartbeats",
            f"No heartbeat arrived during {silence_s:.0f} s of silence, so clients may give up.",
            "something holds small pieces back; "
            + answer.advice("no filter on answers", nginx="proxy_buffering off"),
        )
    return ok("heartbeats", f"They arrived during {silence_s:.0f} s of silence.")


async def _check_large_body(target: Target) -> Finding:
    answer = await target.ask("lines=0", padding=_LARGE_BYTES)
    if answer.status == HTTPStatus.OK:
        return ok("large bodies", f"{_LARGE_BYTES / 1e6:g} MB arrive.")
    if answer.header("X-Relayd-Error") == "too_large":
        return ok("large bodies", "relayd itself accepts less, as server.max_body_bytes says.")
    return error(
        "large bodies",
        f"A request of {_LARGE_BYTES / 1e6:g} MB gets {answer.status} before it reaches relayd.",
        "let the proxy accept more than server.max_body_bytes; "
        + answer.advice(nginx="client_max_body_size 3m", Caddy="request_body max_size 3MB"),
    )


async def _check_disconnects(target: Target, silence_s: float) -> Finding:
    """Leave during a silence, when no write could tell the proxy, and ask whether relayd noticed."""
    watched = secrets.token_hex(8)
    answer, left_at = await _leave(target, watched)
    over_at = answer.asked_at + silence_s  # at the earliest: the relay began after it was asked
    if over_at - left_at < min(_MAX_NOTICE_S, silence_s / 2):
        return warning(
            "disconnects",
            "This test could not leave an answer before its end, because the answer arrived too late.",
            "fix what delays answers, and run again",
        )
    late_s = await _noticed_after_s(target, watched, left_at, over_at + ANSWER_TIMEOUT_S)
    if late_s is None or late_s > _MAX_NOTICE_S:
        noticed = "did not notice" if late_s is None else f"noticed only {late_s:.1f} s later"
        return error(
            "disconnects",
            f"A client left, and relayd {noticed}: the model keeps writing, and costs money.",
            answer.advice(
                HAProxy="option abortonclose in defaults",
                Caddy="no flush_interval -1",
                nginx="proxy_ignore_client_abort off",
            ),
        )
    message = f"relayd noticed after {late_s:.1f} s that a client had left."
    if late_s <= _SLOW_NOTICE_S:
        return ok("disconnects", message)
    remedy = "something in between keeps connections open, which costs money"
    return warning("disconnects", message, remedy)


async def _leave(target: Target, watched: str) -> tuple[Answer, float]:
    """Ask for a silence, and leave at the first line; return the answer and when it was left."""
    async with (
        asyncio.timeout(ANSWER_TIMEOUT_S),
        target.stream(f"silence=1,watch={watched}") as answer,
        aclosing(answer.read_lines()) as lines,
    ):
        await anext(lines, None)
    return answer, time.monotonic()


async def _noticed_after_s(target: Target, watched: str, left_at: float, until: float) -> float | None:
    """Return the seconds, at least, until relayd knew that its client had left; None: it wrote to the end."""
    poll_s = _FIRST_POLL_S
    while (now := time.monotonic()) < until:
        told = _content(await target.ask(f"ask={watched}"))
        match told.get("state"):
            case "left":
                # Measured from `now`, before the question was sent: its own way does not count.
                return max(0.0, now - float(told["ago_s"]) - left_at)
            case "done":
                return None
        await asyncio.sleep(poll_s)
        poll_s = min(poll_s * 1.5, _MAX_POLL_S)
    return None


def _content(answer: Answer) -> dict[str, Any]:
    """Return the JSON in the first line of a probe; empty if it is something else."""
    try:
        told = json.loads(answer.event(0).get("content") or "{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
