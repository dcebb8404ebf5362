"""Keys and prompts leave no trace: not in the database, not in its WAL, not in the log, at any level."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest

from relayd.relay.errors import ErrorCode
from relayd.state.records import Outcome
from tests.e2e.daemon import PROVIDER_KEY, Daemon, closed_port
from tests.load.harness import fresh_address, loaded_daemon, report, resumed, unread
from tests.wire import Wire, body, post

_PROMPT = "canary-prompt-4b8d"
_WRONG_KEY = "canary-wrong-key-55aa"
_HELD = "demo:text=echo,deltas=10000,interval_ms=2000"
_STUCK = "demo:text=x200,deltas=1500,interval_ms=0"
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
_TIMEOUT_S = 300.0


class _LeakScan:
    """Sends known secrets through a daemon, and searches them wherever it writes.

    Args:
        daemon: runs, has read the provider's key from `key_file`, and neither key from its environment.
        key_file: the one file that holds the provider's key.
        each: how many requests of each kind.
    """

    def __init__(self, daemon: Daemon, key_file: Path, each: int) -> None:
        self.daemon = daemon
        self.held = max(each, _AT_ONCE)
        self.searched: list[str] = []
        self.hits: list[str] = []
        self._key_file = key_file
        self._each = each
        self._secrets = {"prompt": _PROMPT, "wrong key": _WRONG_KEY, "provider's key": PROVIDER_KEY}

    async def new_key(self, client: str) -> str:
        """Make a key whose secret part must never be found; its id is public."""
        generation = (await self.daemon.admin.keys()).generation
        made = await self.daemon.admin.add_key(client, generation=generation, idempotency_key=client)
        return self._remember(client, made.secret)

    async def new_client(self, name: str, **bounds: float) -> str:
        """Make a client with bounds; return its key, which must never be found."""
        generation = (await self.daemon.admin.keys()).generation
        made = await self.daemon.admin.add_client(name, bounds, generation=generation, idempotency_key=name)
        return self._remember(name, made.secret)

    def _remember(self, client: str, key: str | None) -> str:
        """Search for this key's secret part from now on; return the key."""
        assert key is not None
        self._secrets[f"key of {client}"] = key.rpartition("_")[2]
        return key

    async def ask(self, *requests: bytes) -> None:
        """Send each of these as often as asked for, a few at a time, and read the replies."""
        waiting = iter([request for request in requests for _ in range(self._each)])

        async def client() -> None:
            for request in waiting:
                async with await Wire.open(self.daemon.port) as wire:
                    wire.send(request)
                    await wire.reply()

        await asyncio.gather(*(client() for _ in range(_AT_ONCE)))

    async def leave(self, key: str) -> None:
        """Leave open streams."""
        for _ in range(self._each):
            async with await Wire.open(self.daemon.port) as wire:
                wire.send(_from(fresh_address(), key, _HELD))
                await wire.head()
        await self._recorded(Outcome.CLIENT_CLOSED, self._each)

    async def stall(self, key: str) -> None:
        """Do not read until the relay gives up, some at a time: each has five seconds for its first token."""
        for done in range(0, self._each, _AT_ONCE):
            asked = min(_AT_ONCE, self._each - done)
            async with AsyncExitStack() as stack:
                asks = [_from(fresh_address(), key, _STUCK) for _ in range(asked)]
                wires = await unread(stack, self.daemon.port, asks)
                await self._recorded(Outcome.CLIENT_STALLED, done + asked)
                assert {await resumed(wire, "") for wire in wires} == {"cut"}

    async def cancel(self, key: str) -> None:
        """Cancel open streams as the operator."""
        async with self.open_streams(key) as ids:
            for request_id in ids:
                await self.daemon.admin.cancel(request_id)
        await self._recorded(Outcome.CANCELLED, self.held)

    async def revoke(self, key: str) -> None:
        """Cut a key's open streams, and ask with the dead key."""
        admin = self.daemon.admin
        async with self.open_streams(key) as ids:
            ring = await admin.keys()
            key_id = next(known.id for known in ring.keys if known.id in key)
            change = await admin.revoke_key(
                key_id, cut=True, generation=ring.generation, idempotency_key="revoke"
            )
            assert change.cut == len(ids)
        await self._recorded(Outcome.CANCELLED, 2 * self.held)
        await self.ask(post(key, _chat(_MODELS[0])))

    async def pass_bounds(self) -> None:
        """Ask for more than a client may use, for an unpriced model, and while nothing can be stored."""
        whole = _chat(_MODELS[0])
        await self.ask(post(await self.new_client("canary-used-up", tokens_per_day=1), whole))
        await self.ask(post(await self.new_client("canary-unpriced", usd_per_day=1), whole))
        key = await self.new_client("canary-waiting", tokens_per_day=1_000_000)
        with closing(sqlite3.connect(self.daemon.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with await Wire.open(self.daemon.port) as wire:
                wire.send(post(key, whole))
                await wire.reply()

    @asynccontextmanager
    async def open_streams(self, key: str) -> AsyncIterator[list[str]]:
        """Hold streams, by id; one address has all that it may, and is refused more."""
        async with AsyncExitStack() as stack:
            ids: list[str] = []
            for number in range(self.held):
                wire = await stack.enter_async_context(await Wire.open(self.daemon.port))
                ip = "198.51.100.1" if number < _AT_ONCE else fresh_address()
                wire.send(_from(ip, key, _HELD))
                request_id = (await wire.head()).header("X-Request-Id")
                assert request_id is not None
                ids.append(request_id)
            await self.ask(_from("198.51.100.1", key, _HELD))
            await self._recorded(None, self.held)
            yield ids

    async def search_process(self, when: str) -> None:
        """Search the files, what /proc shows, and what an operator is shown, while the daemon runs."""
        self.search_files(when)
        for name in ("environ", "cmdline", "comm"):
            self._search_file(Path(f"/proc/{self.daemon.pid}/{name}"), f"of the process {when}")
        self._search(f"metrics {when}", (await self.daemon.admin.metrics()).encode())
        self._search(f"status {when}", repr(await self.daemon.admin.status()).encode())

    def search_files(self, when: str) -> None:
        """Search everything in the daemon's home."""
        for path in sorted(self.daemon.home.rglob("*")):
            if path.is_file() and path != self._key_file:
                self._search_file(path, when)

    def _search_file(self, path: Path, when: str) -> None:
        self._search(f"{path.name} {when}", path.read_bytes())

    def _search(self, name: str, data: bytes) -> None:
        self.searched.append(name)
        folded = data.lower()
        self.hits += [
            f"{secret} in {name}" for secret, text in self._secrets.items() if text.lower().encode() in folded
        ]

    def on_disk(self, column: str) -> Counter[str]:
        """Count the records by a column's values."""
        with closing(sqlite3.connect(f"file:{self.daemon.database}?mode=ro", uri=True)) as connection:
            query = f"SELECT {column}, count(*) FROM requests GROUP BY 1"  # noqa: S608 - a column of ours
            return Counter({str(value): number for value, number in connection.execute(query)})

    async def _recorded(self, outcome: Outcome | None, number: int) -> None:
        """Wait until so many records with this outcome, or without any yet, are in the file."""
        async with asyncio.timeout(_TIMEOUT_S):
            while self.on_disk("outcome")[str(outcome)] < number:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.05)


def _chat(model: str, **fields: object) -> bytes:
    return body(model, messages=[{"role": "user", "content": _PROMPT}], **fields)


def _from(ip: str, key: str, model: str) -> bytes:
    return post(key, _chat(model), {"X-Forwarded-For": ip})


def _good_and_bad_requests(key: str) -> Iterable[bytes]:
    """Whatever the client or the provider can do wrong, and what is right."""
    whole = _chat(_MODELS[0])
    yield from (post(key, _chat(model)) for model in _MODELS)
    yield post(_WRONG_KEY, whole)
    yield post(key[:-1], whole)
    yield post(key, _chat("not-on-the-list"))
    yield post(key, _chat(_MODELS[0], nonsense=_PROMPT))
    yield post(key, _chat(_MODELS[0], user="x" * 3000))
    yield post(key, _chat(_MODELS[0], stop=5))
    yield post(key, whole[:-1])
    yield post(key, _PROMPT.encode())
    yield post(key, whole).replace(b"HTTP/1.1", b"HTTP/1.3")
    yield post(key, whole, {"Content_Length": key})


@pytest.mark.timeout(seconds=1200)
async def test_no_key_and_no_prompt_is_ever_written_down(tmp_path: Path, *, large: bool) -> None:
    """Through every outcome and code, a crash and an orderly end, at the log level that shows most."""
    key_file = tmp_path / "provider-key"
    key_file.write_text(PROVIDER_KEY)
    key_file.chmod(0o600)
    settings = {
        "openai_api_key_file": str(key_file),
        "log.level": "debug",
        "upstream.max_retries": 0,
        "upstream.first_token_timeout_s": 5.0,
        "server.max_body_bytes": 2000,
        "server.write_timeout_s": 1,
        "server.drain_timeout_s": 1,
        "server.max_streams_per_address": _AT_ONCE,
        "chat.allowed_models": [*_MODELS, _HELD, _STUCK],
    }
    with loaded_daemon(tmp_path, settings, {"AUTHORIZATION_KEY": "", "OPENAI_API_KEY": ""}) as daemon:
        scan = _LeakScan(daemon, key_file, each=300 if large else 3)
        key = await scan.new_key("canary")
        await scan.ask(*_good_and_bad_requests(key))
        await scan.pass_bounds()
        await scan.leave(key)
        await scan.stall(key)
        await scan.cancel(key)
        await scan.revoke(await scan.new_key("canary-revoked"))
        await daemon.admin.pause()
        await scan.ask(post(key, _chat(_MODELS[0])))
        await daemon.admin.resume()
        async with scan.open_streams(key):
            await scan.search_process("before the crash")
            daemon.kill()
        scan.search_files("after the crash")
        base_url = daemon.settings["upstream.base_url"]
        daemon.configure({"upstream.base_url": f"http://127.0.0.1:{closed_port()}/v1"})
        daemon.start()
        await scan.ask(post(key, _chat(_MODELS[0])))
        daemon.stop()
        daemon.configure({"upstream.base_url": base_url})
        daemon.start()
        async with scan.open_streams(key):
            await scan.search_process("at the end")
            assert await asyncio.to_thread(daemon.stop) == 0
        scan.search_files("after the end")
    report(f"{scan.on_disk('outcome').total()} records, {len(scan.searched)} places searched")
    assert scan.hits == []
    assert set(scan.on_disk("outcome")) == set(Outcome)
    assert set(scan.on_disk("error_code")) - {"None"} == set(ErrorCode) - {ErrorCode.INTERNAL}
    assert "request id=" in daemon.stderr
    assert {
        "relayd.db before the crash",
        "relayd.db-wal after the crash",
        "environ of the process at the end",
    } <= set(scan.searched)
