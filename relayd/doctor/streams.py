"""Checks with a key: what becomes of a stream on its way. They are probes: nothing is asked of a provider."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from relayd.doctor.finding import Finding, Level, doubt, fault, good
from relayd.doctor.pace import is_held_back
from relayd.doctor.wire import PATIENCE_S, Answer, Connection, Site, Unanswered
from relayd.relay.probe import PROBE_MODEL

_LINES = 20
_PACES = (1, 3)
_LARGE_BYTES = 1_500_000
_SLOW_NOTICE_S = 1.0
_POLL_S = 0.1
_MAX_POLL_S = 1.0
_LEAVES = 2


@dataclass(frozen=True, slots=True)
class Patient:
    """The site, and a key that works there."""

    site: Site
    key: str
    interval_ms: int = 100
    """How far apart the lines of the streaming probe are sent."""
    notice_s: float = 3.0
    """How long relayd may take to learn that a client left; half of a probe's silence, where that is less."""

    def __repr__(self) -> str:
        return f"Patient({self.site.url.geturl()!r})"

    async def ask(self, connection: Connection, script: str, *, padding: int = 0) -> Answer:
        """Begin a probe; `padding` makes its body as large."""
        message = {"role": "user", "content": "x" * padding or "probe"}
        body = json.dumps({"model": f"{PROBE_MODEL}:{script}", "messages": [message]}).encode()
        return await connection.ask("POST", "/chat", {"Authorization": f"Bearer {self.key}"}, body)

    async def whole(self, script: str, *, padding: int = 0, within_s: float = PATIENCE_S) -> Answer:
        """A probe to its end, or to whatever ends it. Raises Unanswered, OSError, TimeoutError."""
        async with asyncio.timeout(within_s), self.site.connect() as connection:
            answer = await self.ask(connection, script, padding=padding)
            async for _ in connection.lines(answer):
                pass
            return answer


async def look(patient: Patient) -> AsyncIterator[Finding]:
    """Every check of streams, side by side; each finding as its check ends."""
    first, facts = await _first(patient)
    yield first
    if facts is None:
        return
    yield judge_address(str(facts["address"]), patient.site.address)
    silence_s = float(facts["silence_s"])
    checks: dict[str, Callable[[], Coroutine[Any, Any, Finding]]] = {
        "streaming": lambda: _streaming(patient),
        "large bodies": lambda: _large(patient),
        "disconnects": lambda: _disconnects(patient, silence_s),
        "heartbeats": lambda: _heartbeats(patient, silence_s),
    }
    tasks = [
        asyncio.create_task(_safely(name, check), name=f"doctor {name}") for name, check in checks.items()
    ]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _safely(name: str, check: Callable[[], Coroutine[Any, Any, Finding]]) -> Finding:
    try:
        return await check()
    except TimeoutError:
        return fault(name, "The probe did not end in its time.", "look for a proxy that holds answers back")
    except (Unanswered, OSError) as error:
        return fault(name, f"The probe was not answered: {error}.", "the proxy's own error log says why")


async def _first(patient: Patient) -> tuple[Finding, dict[str, Any] | None]:
    """Whether the key works and the relay can be probed; with what it says of itself."""
    try:
        answer = await patient.whole("lines=0")
    except (Unanswered, OSError, TimeoutError) as error:
        todo = "the proxy's own error log says why"
        return fault("key", f"A request with the key is not answered: {error}.", todo), None
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return fault(
            "key",
            "The key is refused.",
            "is it this relay's and not expired (relayd keys list), does the proxy pass Authorization on?",
        ), None
    try:
        facts = json.loads(answer.event(0)["content"])
        version = facts["version"]
    except (KeyError, ValueError, TypeError):
        said = answer.event(0).get("content") or f"HTTP {answer.status}"
        return doubt(
            "key", f"The relay can't be probed: {said}", "relayd older than this one? Upgrade it."
        ), None
    return good(
        "key", f"The key works; relayd {version}, a heartbeat every {facts['heartbeat_s']:g} s."
    ), facts


def judge_address(seen: str, address: str) -> Finding:
    """Whether relayd tells its clients apart.

    Args:
        seen: where relayd believes this request to come from.
        address: of the site, as resolved here.
    """
    try:
        inside = not ipaddress.ip_address(seen).is_global and ipaddress.ip_address(address).is_global
    except ValueError:
        inside = False
    if not inside:
        return good("address", f"relayd sees you as {seen}.")
    return fault(
        "address",
        f"relayd takes you for {seen}, the proxy: all clients look like one, and share its limits.",
        "the proxy must send X-Forwarded-For, and server.trusted_proxies must hold the proxy's address",
    )


async def _streaming(patient: Patient) -> Finding:
    """A busy machine or line may look like a proxy that holds back, but not at a slower pace as well."""
    for slower in _PACES:
        finding = await _streamed(patient, patient.interval_ms * slower)
        if finding.level is Level.GOOD:
            break
    return finding


async def _streamed(patient: Patient, interval_ms: int) -> Finding:
    expected_s = _LINES * interval_ms / 1000
    answer = await patient.whole(
        f"lines={_LINES},interval_ms={interval_ms}", within_s=expected_s + PATIENCE_S
    )
    times = [when for when, line in answer.lines if line and b'"done":false' in line]
    if answer.status != HTTPStatus.OK or len(times) <= _LINES:
        return fault(
            "streaming",
            f"Only {len(times)} of {_LINES + 1} lines came{', and the connection was cut' * answer.cut}.",
            "the proxy's own error log says why",
        )
    span_s = times[-1] - times[0]
    if is_held_back(answer.asked_at, times, interval_ms / 1000):
        packed = answer.header("Content-Encoding")
        return fault(
            "streaming",
            f"{_LINES} lines, sent over {expected_s:g} s, came within {span_s:.1f} s: the answer is held back"
            f"{f' and compressed ({packed})' if packed else ''}.",
            "nginx: proxy_buffering off; gzip off; Apache: flushpackets=on; Caddy: no encode; "
            "a CDN: exempt /chat from caching and compression",
        )
    return good("streaming", f"{_LINES} lines, sent over {expected_s:g} s, came over {span_s:.1f} s.")


async def _heartbeats(patient: Patient, silence_s: float) -> Finding:
    began = time.monotonic()
    answer = await patient.whole("silence=1", within_s=silence_s + PATIENCE_S)
    took_s = time.monotonic() - began
    contents = [answer.event(number).get("content") for number in range(len(answer.lines))]
    if "awake " not in contents:
        return fault(
            "heartbeats",
            f"A stream that is silent is cut after {took_s:.0f} s.",
            "give the proxy more patience than chat.heartbeat_s (nginx: proxy_read_timeout 60s; "
            "HAProxy: timeout server and timeout client 60s), or lower chat.heartbeat_s",
        )
    if "" not in contents:
        return fault(
            "heartbeats",
            f"Through {silence_s:.0f} s of silence no heartbeat came: clients may give up there.",
            "something holds small pieces back: nginx: proxy_buffering off; no filter on answers",
        )
    return good("heartbeats", f"They came through {silence_s:.0f} s of silence.")


async def _large(patient: Patient) -> Finding:
    answer = await patient.whole("lines=0", padding=_LARGE_BYTES)
    if answer.status == HTTPStatus.OK:
        return good("large bodies", f"{_LARGE_BYTES / 1e6:g} MB pass.")
    if answer.header("X-Relayd-Error") == "too_large":
        return good("large bodies", "relayd itself takes less, as server.max_body_bytes says.")
    return fault(
        "large bodies",
        f"A request of {_LARGE_BYTES / 1e6:g} MB, as with a picture, is answered {answer.status} on its way.",
        "let the proxy take more than server.max_body_bytes (nginx: client_max_body_size 3m)",
    )


async def _disconnects(patient: Patient, silence_s: float) -> Finding:
    """Leave in a silence, when nothing that is written could tell the proxy, and ask what relayd noticed."""
    enough_s = min(patient.notice_s, silence_s / 2)
    for _ in range(_LEAVES):
        watched = secrets.token_hex(8)
        asked_at, left_at = await _leave(patient, watched)
        over_at = asked_at + silence_s  # at the earliest: the relay began after it was asked
        late_s = await _noticed(patient, watched, left_at, over_at + PATIENCE_S)
        if late_s is not None:
            return _judge_notice(late_s, patient.notice_s)
        if over_at - left_at >= enough_s:
            return _unnoticed(f"{over_at - left_at:.1f} s after a client left, relayd does not know")
    return doubt(
        "disconnects",
        "An answer could not be left before its end: it came too late.",
        "mend what holds answers back, and look again",
    )


async def _leave(patient: Patient, watched: str) -> tuple[float, float]:
    """Ask for a silence, and leave at the first line; returns when it was asked for and when left."""
    async with asyncio.timeout(PATIENCE_S), patient.site.connect() as connection:
        answer = await patient.ask(connection, f"silence=1,watch={watched}")
        async with aclosing(connection.lines(answer)) as lines:
            await anext(lines, None)
    return answer.asked_at, time.monotonic()


async def _noticed(patient: Patient, watched: str, left_at: float, until: float) -> float | None:
    """The seconds, at least, until relayd knew that its client had left; None: it wrote to the end."""
    poll_s = _POLL_S
    while (now := time.monotonic()) < until:
        told = _content(await patient.whole(f"ask={watched}"))
        match told.get("state"):
            case "left":
                # Told after `now`: what the question itself took is not held against anybody.
                return max(0.0, now - float(told["ago_s"]) - left_at)
            case "done":
                return None
        await asyncio.sleep(poll_s)
        poll_s = min(poll_s * 1.5, _MAX_POLL_S)
    return None


def _content(answer: Answer) -> dict[str, Any]:
    """What a probe says in its first line; empty where that is something else."""
    try:
        told = json.loads(answer.event(0).get("content") or "{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _judge_notice(late_s: float, limit_s: float) -> Finding:
    said = f"relayd knew {late_s:.1f} s after a client left."
    if late_s <= _SLOW_NOTICE_S:
        return good("disconnects", said)
    if late_s <= limit_s:
        todo = "something between holds on to connections; each second is paid for"
        return doubt("disconnects", said, todo)
    return _unnoticed(f"relayd knew only {late_s:.1f} s after a client left")


def _unnoticed(said: str) -> Finding:
    return fault(
        "disconnects",
        f"{said}: the model writes on.",
        "HAProxy: option abortonclose in defaults; Caddy: no flush_interval -1; "
        "nginx: proxy_ignore_client_abort off",
    )
