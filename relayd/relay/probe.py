"""A request that the relay answers by itself, so that `relayd doctor` sees what lies between it and a client.

The provider is not asked and nothing is paid; in all else it is a request like any: key, limits, log. The
model's name is the script: `relayd-probe:lines=20,interval_ms=50` streams, `relayd-probe:silence=1` falls
silent for longer than a heartbeat, and what became of `relayd-probe:watch=<id>` is the answer to
`relayd-probe:ask=<id>`.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from relayd import __version__
from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.redact import Redactor
from relayd.relay.stream import StreamLimits

PROBE_MODEL = "relayd-probe"

_DEFAULTS = {"lines": 0, "interval_ms": 0, "silence": 0}
_MAXIMA = {"lines": 1000, "interval_ms": 1000, "silence": 1}
_ID = re.compile(r"[0-9a-f]{8,32}")
_MAX_WATCHED = 256
_MAX_SHOWN_CHARS = 40
_SILENCE_IN_HEARTBEATS = 1.5
_SILENCE_IN_IDLE_TIMEOUTS = 0.9
_MAX_SILENCE_S = 60.0
_encode = msgspec.json.encode


class ProbeFacts(msgspec.Struct):
    """The first line of a probe's answer."""

    version: str
    heartbeat_s: float
    silence_s: float
    """Length of the silence that `silence=1` asks for."""
    address: str
    """The address that this request came from, as the relay sees it."""


class WatchedProbe(msgspec.Struct):
    """What became of a probe that was watched."""

    state: str
    """`open`, `left` (its client went away), `done` or `unknown`."""
    ago_s: float = 0.0
    """Seconds since it came to that state."""


@dataclass(frozen=True, slots=True)
class _Script:
    numbers: Mapping[str, int]
    watch: str | None
    ask: str | None


class Probe:
    """Answers probes, and remembers the latest that were watched.

    Args:
        limits: of every stream; a probe tells some of them to its client.
    """

    def __init__(self, limits: StreamLimits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._watched: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def answer(self, model: str, address: str) -> ProbeUpstream:
        """Return what answers a request for this model.

        Args:
            model: the script.
            address: of the client.

        Raises:
            RelayError: `bad_request`, the script cannot be read.
        """
        script = _parse(model)
        if script.ask is not None:
            return ProbeUpstream(self._tell(script.ask))
        limits = self._limits
        silence_s = min(
            limits.heartbeat_s * _SILENCE_IN_HEARTBEATS,
            limits.idle_timeout_s * _SILENCE_IN_IDLE_TIMEOUTS,
            _MAX_SILENCE_S,
        )
        return ProbeUpstream(
            self._play(script, ProbeFacts(__version__, limits.heartbeat_s, silence_s, address))
        )

    async def _tell(self, watched: str) -> AsyncGenerator[bytes, None]:
        state, changed_at = self._watched.get(watched, ("unknown", self._loop.time()))
        yield _event(_encode(WatchedProbe(state, self._loop.time() - changed_at)).decode()) + _END

    async def _play(self, script: _Script, facts: ProbeFacts) -> AsyncGenerator[bytes, None]:
        self._note(script.watch, "open")
        state = "left"
        try:
            yield _event(_encode(facts).decode() + "\n")
            for number in range(script.numbers["lines"]):
                await asyncio.sleep(script.numbers["interval_ms"] / 1000)
                yield _event(f"{number} ")
            if script.numbers["silence"]:
                await asyncio.sleep(facts.silence_s)
                yield _event("awake ")
            state = "done"
            yield _END
        finally:
            self._note(script.watch, state)

    def _note(self, watched: str | None, state: str) -> None:
        if watched is None:
            return
        self._watched[watched] = (state, self._loop.time())
        self._watched.move_to_end(watched)
        if len(self._watched) > _MAX_WATCHED:
            self._watched.popitem(last=False)


class ProbeUpstream:
    """Takes the provider's place for one request: implements `relayd.relay.stream.Upstream` and its body.

    Args:
        events: the answer in the provider's form.
    """

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self.redact = Redactor("")
        self._events = events
        self._may_push = asyncio.Event()
        self._may_push.set()
        self._task: asyncio.Task[None] | None = None

    async def open(
        self, body: bytes, on_connected: Callable[[str | None], None], model: str
    ) -> tuple[None, ProbeUpstream]:
        """Begin at once; what was asked was read from the model's name."""
        del body, model
        on_connected(None)
        return None, self

    def start(self, on_chunk: Callable[[bytes], None], on_end: Callable[[Exception | None], None]) -> None:
        """Push the answer in a task that `close` ends."""

        async def push() -> None:
            error: Exception | None = None
            try:
                async with aclosing(self._events):
                    async for event in self._events:
                        await self._may_push.wait()
                        on_chunk(event)
            except Exception as met:  # noqa: BLE001 - its place is the reader's task, which `on_end` tells
                error = met
            on_end(error)

        self._task = asyncio.create_task(push(), name="probe")

    def pause_reading(self) -> None:
        """Push nothing until `resume_reading`."""
        self._may_push.clear()

    def resume_reading(self) -> None:
        """Push again."""
        self._may_push.set()

    def close(self, *, linger_s: float = 0.0) -> None:
        """End the answer."""
        del linger_s
        if self._task is not None:
            self._task.cancel()


def is_probe(model: str) -> bool:
    """Return whether a request for this model is answered by the relay itself."""
    return model == PROBE_MODEL or model.startswith(PROBE_MODEL + ":")


def _parse(model: str) -> _Script:
    numbers, ids = dict(_DEFAULTS), {"watch": "", "ask": ""}
    for part in filter(None, model.removeprefix(PROBE_MODEL).lstrip(":").split(",")):
        name, _, value = part.partition("=")
        if name in numbers and value.isascii() and value.isdecimal() and int(value) <= _MAXIMA[name]:
            numbers[name] = int(value)
        elif name in ids and _ID.fullmatch(value):
            ids[name] = value
        else:
            raise RelayError(
                ErrorCode.BAD_REQUEST, f"{PROBE_MODEL} does not know {part[:_MAX_SHOWN_CHARS]!r}."
            )
    return _Script(numbers, ids["watch"] or None, ids["ask"] or None)


def _event(content: str) -> bytes:
    return b"data: " + _encode({"choices": [{"delta": {"content": content}}]}) + b"\n\n"


_END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
