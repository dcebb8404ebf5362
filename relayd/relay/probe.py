"""A request that the relay answers by itself, so that `relayd doctor` sees what lies between it and a client.

No provider is asked and nothing is paid; in all else it is a request like any: key, limits, log. The model's
name is the script: `relayd-probe:lines=20,interval_ms=50` streams, `relayd-probe:silence=1` falls silent for
longer than a heartbeat, `relayd-probe:watch=<id>` can be asked about afterwards by `relayd-probe:ask=<id>`.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from relayd import __version__
from relayd.relay.failure import Code, Failure
from relayd.relay.stream import StreamLimits

PROBE_MODEL = "relayd-probe"

_MOST = {"lines": 1000, "interval_ms": 1000, "silence": 1}
_DEFAULTS = {"lines": 0, "interval_ms": 0, "silence": 0}
_ID = re.compile(r"[0-9a-f]{8,32}")
_MAX_WATCHED = 256
_SILENCE_IN_HEARTBEATS = 1.5
_LONGEST_SILENCE_S = 60.0
_encode = msgspec.json.encode


class ProbeFacts(msgspec.Struct):
    """The first line of a probe's answer."""

    version: str
    heartbeat_s: float
    silence_s: float
    """How long the silence is that `silence=1` asks for."""
    address: str
    """Where this request came from, as the relay sees it."""


class Watched(msgspec.Struct):
    """What became of a probe that was watched."""

    state: str
    """`open`, `left` (its client went away), `done` or `unknown`."""
    ago_s: float = 0.0
    """Seconds since it ended."""


@dataclass(frozen=True, slots=True)
class _Script:
    numbers: Mapping[str, int]
    watch: str | None
    ask: str | None


class Probe:
    """Answers probes, and remembers the latest that were watched."""

    def __init__(self, limits: StreamLimits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._watched: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def answering(self, model: str, ip: str) -> ProbeSource:
        """What answers this request.

        Args:
            model: the script.
            ip: of the client, which is told it.

        Raises:
            Failure: `bad_request`, the script cannot be read.
        """
        script = _parse(model)
        if script.ask is not None:
            return ProbeSource(self._told(script.ask))
        limits = self._limits
        silence_s = min(
            limits.heartbeat_s * _SILENCE_IN_HEARTBEATS, limits.idle_timeout_s * 0.9, _LONGEST_SILENCE_S
        )
        facts = ProbeFacts(__version__, limits.heartbeat_s, silence_s, ip)
        return ProbeSource(self._played(script, facts))

    async def _told(self, watched: str) -> AsyncIterator[bytes]:
        state, changed_at = self._watched.get(watched, ("unknown", self._loop.time()))
        yield _text(_encode(Watched(state, self._loop.time() - changed_at)).decode()) + _END

    async def _played(self, script: _Script, facts: ProbeFacts) -> AsyncIterator[bytes]:
        self._note(script.watch, "open")
        state = "left"
        try:
            yield _text(_encode(facts).decode() + "\n")
            for number in range(script.numbers["lines"]):
                await asyncio.sleep(script.numbers["interval_ms"] / 1000)
                yield _text(f"{number} ")
            if script.numbers["silence"]:
                await asyncio.sleep(facts.silence_s)
                yield _text("awake ")
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


class ProbeSource:
    """Takes the provider's place for one request: implements `relayd.relay.ends.Source` and its body."""

    request_id: str | None = None

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces

    def scrub(self, text: str) -> str:
        """There is no secret in what a probe says."""
        return text

    @asynccontextmanager
    async def stream(
        self, body: bytes, *, connected: Callable[[], None]
    ) -> AsyncGenerator[ProbeSource, None]:
        """Begin at once; what was asked stands in the model's name."""
        del body
        connected()
        try:
            yield self
        finally:
            if isinstance(self._pieces, AsyncGenerator):
                await self._pieces.aclose()

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """Give the answer, in the provider's form, to a function until that returns False."""
        async for piece in self._pieces:
            if not take(piece):
                return True
        return False

    def tidy(self) -> None:
        """There is no connection to tidy up."""


def is_probe(model: str) -> bool:
    """Whether a request for this model is answered by the relay itself."""
    return model == PROBE_MODEL or model.startswith(PROBE_MODEL + ":")


def _parse(model: str) -> _Script:
    numbers, names = dict(_DEFAULTS), {"watch": "", "ask": ""}
    for part in filter(None, model.removeprefix(PROBE_MODEL).lstrip(":").split(",")):
        name, _, value = part.partition("=")
        if name in numbers and value.isascii() and value.isdecimal() and int(value) <= _MOST[name]:
            numbers[name] = int(value)
        elif name in names and _ID.fullmatch(value):
            names[name] = value
        else:
            raise Failure(Code.BAD_REQUEST, f"{PROBE_MODEL} does not know {part[:40]!r}.")
    return _Script(numbers, names["watch"] or None, names["ask"] or None)


def _text(content: str) -> bytes:
    return b"data: " + _encode({"choices": [{"delta": {"content": content}}]}) + b"\n\n"


_END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
