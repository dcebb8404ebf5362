"""Sends known keys and a known prompt through every outcome, and looks where they must not be."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from relayd.relay.errors import ErrorCode
from relayd.state.records import Outcome
from tests.e2e.daemon import PROVIDER_KEY, closed_port
from tests.support.siege import besieged, fresh_address, resumed, unread
from tests.wire import Wire, body, post

CODES = frozenset(ErrorCode) - {ErrorCode.INTERNAL}
"""All that a client can be told, but for a bug of relayd's own."""
OUTCOMES = frozenset(Outcome)

_PROMPT = "canary-prompt-4b8d"
_WRONG_KEY = "canary-wrong-key-55aa"
_HELD = "demo:text=echo,deltas=10000,interval_ms=2000,first_ms=0"
_STUCK = "demo:text=x200,deltas=1500,interval_ms=0,first_ms=0"
_MODELS = (
    "demo:text=echo,interval_ms=0",
    "demo:fault=status,code=400,interval_ms=0",
    "demo:fault=status,code=401,interval_ms=0",
    "demo:fault=status,code=429,retry_after=0,interval_ms=0",
    "demo:fault=status,code=500,interval_ms=0",
    "demo:fault=echo_key,interval_ms=0",
    "demo:text=echo,fault=error_event,interval_ms=0",
    "demo:text=echo,fault=cut_mid,interval_ms=0",
    "demo:fault=garbage,interval_ms=0",
    "demo:text=echo,fault=bad_json,interval_ms=0",
    "demo:fault=html,interval_ms=0",
    "demo:text=echo,fault=end_early,interval_ms=0",
    "demo:text=echo,fault=stall_headers",
)
_AT_ONCE = 20
_FIRST_TOKEN_TIMEOUT_S = 1.0
_PATIENCE_S = 300.0


@dataclass(slots=True)
class Flight:
    """What became of the canaries."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Of the records on disk."""
    codes: set[str] = field(default_factory=set)
    looked_at: list[str] = field(default_factory=list)
    bytes_looked_at: int = 0
    hits: list[str] = field(default_factory=list)
    """Which canary was where."""


class Aviary:
    """A daemon in front of a provider, none of whose keys was ever in an environment or an argument.

    Args:
        home: an empty directory.
        base_url: of a demo provider.
        each: how many requests of each kind.
    """

    def __init__(self, home: Path, base_url: str, each: int) -> None:
        self._each = each
        self._held = max(each, _AT_ONCE)
        self._flight = Flight()
        self._base_url = base_url
        self._canaries = {"prompt": _PROMPT, "wrong key": _WRONG_KEY, "provider's key": PROVIDER_KEY}
        key_file = home / "provider-key"
        key_file.write_text(PROVIDER_KEY)
        key_file.chmod(0o600)
        settings = {
            "openai_api_key_file": str(key_file),
            "log.level": "debug",
            "upstream.max_retries": 0,
            "upstream.first_token_timeout_s": _FIRST_TOKEN_TIMEOUT_S,
            "server.max_body_bytes": 2000,
            "server.write_timeout_s": 1,
            "server.drain_timeout_s": 1,
            "server.max_streams_per_address": _AT_ONCE,
            "chat.allowed_models": [*_MODELS, _HELD, _STUCK],
        }
        self._key_file = key_file
        self.daemon = besieged(home, base_url, settings, {"AUTHORIZATION_KEY": "", "OPENAI_API_KEY": ""})

    async def fly(self) -> Flight:
        """Through every outcome and code, over a crash and an orderly end; the daemon is stopped after it."""
        key = await self._new_key("canary")
        await self._answered(key)
        await self._left(key)
        await self._stalled(key)
        await self._cancelled(key)
        await self._revoked(await self._new_key("canary-revoked"))
        await self._refused_while_paused(key)
        async with AsyncExitStack() as stack:
            await self._hold(stack, key)
            await self._look("before the crash")
            self.daemon.kill()
        self._look_into_files("after the crash")
        self.daemon.configure({"upstream.base_url": f"http://127.0.0.1:{closed_port()}/v1"})
        self.daemon.start()
        await self._many([post(key, self._body(_MODELS[0]))])
        self.daemon.stop()
        self.daemon.configure({"upstream.base_url": self._base_url})
        self.daemon.start()
        async with AsyncExitStack() as stack:
            await self._hold(stack, key)
            await self._look("at the end")
            assert await asyncio.to_thread(self.daemon.stop) == 0
        self._look_into_files("after the end")
        self._count()
        return self._flight

    async def _new_key(self, client: str) -> str:
        admin = self.daemon.admin
        generation = (await admin.keys()).generation
        made = await admin.add_key(client, generation=generation, idempotency_key=client)
        assert made.secret is not None
        # The id in it is public; what follows is not.
        self._canaries[f"key of {client}"] = made.secret.rpartition("_")[2]
        return made.secret

    async def _answered(self, key: str) -> None:
        """Whatever the client or the provider can do wrong, and what is right."""
        whole = self._body(_MODELS[0])
        requests = [post(key, self._body(model)) for model in _MODELS]
        requests += [
            post(_WRONG_KEY, whole),
            post(key[:-1], whole),
            post(key, self._body("not-on-the-list")),
            post(key, self._body(_MODELS[0], nonsense=_PROMPT)),
            post(key, self._body(_MODELS[0], user="x" * 3000)),
            post(key, self._body(_MODELS[0], stop=5)),
            post(key, whole[:-1]),
            post(key, _PROMPT.encode()),
            post(key, whole).replace(b"HTTP/1.1", b"HTTP/1.3"),
            post(key, whole, {"Content_Length": key}),
        ]
        await self._many(requests)

    async def _left(self, key: str) -> None:
        for _ in range(self._each):
            async with await Wire.open(self.daemon.port) as wire:
                wire.send(post(key, self._body(_HELD), {"X-Forwarded-For": fresh_address()}))
                await wire.head()
        await self._recorded(Outcome.CLIENT_CLOSED, self._each)

    async def _stalled(self, key: str) -> None:
        async with AsyncExitStack() as stack:
            request = self._body(_STUCK)
            asks = (self._ask(key, request, fresh_address()) for _ in range(self._each))
            wires = await unread(stack, self.daemon.port, asks)
            await self._recorded(Outcome.CLIENT_STALLED, self._each)
            assert {await resumed(wire) for wire in wires} == {"cut"}

    async def _cancelled(self, key: str) -> None:
        async with AsyncExitStack() as stack:
            for request_id in await self._hold(stack, key):
                await self.daemon.admin.cancel(request_id)
        await self._recorded(Outcome.CANCELLED, self._held)

    async def _revoked(self, key: str) -> None:
        """Its open streams are cut; those that come after it find a dead key."""
        admin = self.daemon.admin
        async with AsyncExitStack() as stack:
            held = await self._hold(stack, key)
            ring = await admin.keys()
            key_id = next(known.id for known in ring.keys if known.client == "canary-revoked")
            cut = await admin.revoke_key(
                key_id, cut=True, generation=ring.generation, idempotency_key="revoke"
            )
            assert cut.cut == len(held)
        await self._recorded(Outcome.CANCELLED, 2 * self._held)
        await self._many([post(key, self._body(_MODELS[0]))])

    async def _refused_while_paused(self, key: str) -> None:
        await self.daemon.admin.pause()
        await self._many([post(key, self._body(_MODELS[0]))])
        await self.daemon.admin.resume()

    async def _hold(self, stack: AsyncExitStack, key: str) -> list[str]:
        """Streams that go on, by id; one address has all it may, and is refused more."""
        held: list[str] = []
        for number in range(self._held):
            wire = await stack.enter_async_context(await Wire.open(self.daemon.port))
            ip = "198.51.100.1" if number < _AT_ONCE else fresh_address()
            wire.send(self._ask(key, self._body(_HELD), ip))
            request_id = (await wire.head()).header("X-Request-Id")
            assert request_id is not None
            held.append(request_id)
        await self._many([self._ask(key, self._body(_HELD), "198.51.100.1")])
        return held

    def _ask(self, key: str, payload: bytes, ip: str) -> bytes:
        return post(key, payload, {"X-Forwarded-For": ip})

    def _body(self, model: str, **fields: object) -> bytes:
        return body(model, messages=[{"role": "user", "content": _PROMPT}], **fields)

    async def _many(self, requests: Iterable[bytes]) -> None:
        """Each of these as often as asked for, a few at a time."""
        waiting = iter([request for request in requests for _ in range(self._each)])

        async def client() -> None:
            for request in waiting:
                async with await Wire.open(self.daemon.port) as wire:
                    wire.send(request)
                    await wire.reply()

        await asyncio.gather(*(client() for _ in range(_AT_ONCE)))

    async def _recorded(self, outcome: Outcome, number: int) -> None:
        """Wait until so many requests of this outcome are on disk."""
        async with asyncio.timeout(_PATIENCE_S):
            while self._on_disk("outcome")[outcome] < number:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.05)

    def _on_disk(self, column: str) -> Counter[str]:
        with closing(sqlite3.connect(f"file:{self.daemon.database}?mode=ro", uri=True)) as connection:
            query = f"SELECT {column}, count(*) FROM requests GROUP BY 1"  # noqa: S608 - a column of ours
            return Counter({str(value): number for value, number in connection.execute(query)})

    async def _look(self, when: str) -> None:
        """While the daemon runs: its files, what /proc shows of it, and what it tells an operator."""
        self._look_into_files(when)
        for name in ("environ", "cmdline", "comm"):
            self._search_file(Path(f"/proc/{self.daemon.pid}/{name}"), f"of the process {when}")
        self._search(f"metrics {when}", (await self.daemon.admin.metrics()).encode())
        self._search(f"status {when}", repr(await self.daemon.admin.status()).encode())

    def _look_into_files(self, when: str) -> None:
        for path in sorted(self.daemon.home.rglob("*")):
            if path.is_file() and path != self._key_file:
                self._search_file(path, when)

    def _search_file(self, path: Path, when: str) -> None:
        self._search(f"{path.name} {when}", path.read_bytes())

    def _search(self, name: str, data: bytes) -> None:
        self._flight.looked_at.append(name)
        self._flight.bytes_looked_at += len(data)
        folded = data.lower()
        self._flight.hits += [
            f"{canary} in {name}"
            for canary, text in self._canaries.items()
            if text.lower().encode() in folded
        ]

    def _count(self) -> None:
        self._flight.outcomes = self._on_disk("outcome")
        self._flight.codes = set(self._on_disk("error_code")) - {"None"}
