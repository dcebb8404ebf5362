"""`GET /events`: nothing is missed, nothing comes twice, and a slow reader slows no other."""

from __future__ import annotations

import asyncio
import random
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from relayd import __version__
from relayd.admin.schema import Audited, Ended, Event, Gap, Hello, Progress, Started
from relayd.state.records import utc_text
from tests.admin.harness import NOON_S, AdminHarness, admin_api, open_chat, whole_daemon
from tests.wire import PATIENCE_S

_DAY_S = 86_400.0


class _Coverage:
    """What a reader has been told of, which must be everything, once, in order."""

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self.events = 0
        self.gaps = 0

    def take(self, event: Event) -> None:
        """Count an event that must be the next one."""
        if isinstance(event, Hello | Progress):
            return
        first = event.first if isinstance(event, Gap) else event.seq
        assert first == self.last + 1, f"after {self.last} came {event}"
        if isinstance(event, Gap):
            self.gaps += 1
            self.last = event.last
        else:
            self.events += 1
            self.last = event.seq


async def _dropped_reader(api: AdminHarness) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await api.metric("relayd_event_readers_dropped_total") < 1:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)


async def _take(api: AdminHarness, after: int | None, count: int) -> list[Event]:
    async with asyncio.timeout(PATIENCE_S), aclosing(api.client.events(after)) as events:
        return [await anext(events) for _ in range(count)]


async def test_every_connection_begins_with_hello(tmp_path: Path) -> None:
    """It has the boot, the version and the newest seq; without `after` only what is new follows."""
    async with admin_api(tmp_path) as api, aclosing(api.client.events()) as events:
        assert await anext(events) == Hello("boot", __version__, 1)
        api.log(1)
        started, ended = await anext(events), await anext(events)
        assert isinstance(started, Started)
        assert isinstance(ended, Ended)
        assert (started.seq, ended.seq, ended.record.id) == (2, 3, "r000000")


async def test_after_replays_from_disk_and_goes_on_live(tmp_path: Path) -> None:
    """What was logged before and during the connection comes once each, in order."""
    async with admin_api(tmp_path) as api:
        api.log(700)
        await api.logged(1401)
        seen = _Coverage()
        async with asyncio.timeout(PATIENCE_S), aclosing(api.client.events(after=0)) as events:
            async for event in events:
                seen.take(event)
                if seen.last == api.event_bus.newest_seq:
                    api.log(5, prefix=f"live{seen.last}-")
                if seen.last > 1500:
                    break
        assert seen.gaps == 0


async def test_a_place_beyond_the_logs_end_begins_at_its_end(tmp_path: Path) -> None:
    """A reader of a log that began anew learns it from the smaller seq of hello."""
    async with admin_api(tmp_path) as api, aclosing(api.client.events(after=1000)) as events:
        assert await anext(events) == Hello("boot", __version__, 1)
        api.log(1)
        assert isinstance(await anext(events), Started)


async def test_key_changes_are_events_too(tmp_path: Path) -> None:
    """An audit entry has its place in the same order."""
    async with admin_api(tmp_path) as api:
        key = (await api.client.keys()).keys[0]
        await api.client.rotate_key(key.id, grace_s=60, generation=1, idempotency_key="one")
        events = await _take(api, 0, 3)
    assert [type(event) for event in events] == [Hello, Audited, Audited]
    assert isinstance(events[2], Audited)
    assert events[2].entry.action == "rotate"


async def test_a_thousand_reconnects_across_retention_and_restarts_miss_and_repeat_nothing(
    tmp_path: Path,
) -> None:
    """Every seq is told exactly once, as an event or in a gap that says so."""
    dice, seen, now_s, reconnects = random.Random(7), _Coverage(), [NOON_S], 0  # noqa: S311 - a fixed play
    for boot in range(10):
        # Retention removes what is older than a day at each start and end.
        now_s[0] += 2 * _DAY_S * (boot % 3 == 2)
        async with admin_api(tmp_path, boot_id=f"boot{boot}", keep_days=1, clock=lambda: now_s[0]) as api:
            for turn in range(100):
                reconnects += 1
                if turn % 10 == 0:
                    api.log(20, prefix=f"b{boot}t{turn}-", started_at=utc_text(now_s[0]))
                async with asyncio.timeout(PATIENCE_S), aclosing(api.client.events(seen.last)) as events:
                    assert isinstance(await anext(events), Hello)
                    for _ in range(dice.randrange(8)):
                        if api.event_bus.newest_seq <= seen.last:
                            break
                        seen.take(await anext(events))
    async with admin_api(tmp_path, boot_id="last", keep_days=1, clock=lambda: now_s[0]) as api:
        newest = api.event_bus.newest_seq
        async with asyncio.timeout(PATIENCE_S), aclosing(api.client.events(seen.last)) as events:
            while seen.last < newest:
                seen.take(await anext(events))
    assert reconnects == 1000
    assert seen.gaps >= 2
    assert seen.events > 1000


async def test_a_gap_at_the_end_of_the_log_is_told_once_and_the_story_goes_on(tmp_path: Path) -> None:
    """When retention has removed everything, the reader learns how much, and then what is new."""
    async with admin_api(tmp_path, clock=lambda: NOON_S) as api:
        api.log(5)
        await api.logged(11)
    async with (
        admin_api(tmp_path, boot_id="later", keep_days=1, clock=lambda: NOON_S + 3 * _DAY_S) as api,
        asyncio.timeout(PATIENCE_S),
        aclosing(api.client.events(1)) as events,
    ):
        assert isinstance(await anext(events), Hello)
        assert await anext(events) == Gap(2, 11)
        api.log(1, prefix="new")
        started = await anext(events)
        assert isinstance(started, Started)
        assert started.seq == 12


@asynccontextmanager
async def _frozen(api: AdminHarness, after: int) -> AsyncIterator[socket.socket]:
    """A reader that connects, asks, and never reads."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, str(api.socket))
        await loop.sock_sendall(sock, b"GET /events?after=%d HTTP/1.1\r\nHost: x\r\n\r\n" % after)
        yield sock


async def test_a_frozen_reader_is_let_go_and_can_resume_from_disk(tmp_path: Path) -> None:
    """It is dropped after the write timeout and counted; what it missed is told when it comes again."""
    async with admin_api(tmp_path, event_write_timeout_s=0.3) as api:
        async with _frozen(api, 0):
            api.log(2000, user_agent="u" * 200)
            await _dropped_reader(api)
            assert len(api.event_bus) == 0
        seen, newest = _Coverage(), api.event_bus.newest_seq
        async with asyncio.timeout(PATIENCE_S), aclosing(api.client.events(0)) as events:
            while seen.last < newest:
                seen.take(await anext(events))
        assert seen.gaps == 0


async def test_a_frozen_reader_costs_less_than_a_mebibyte_and_slows_no_other(tmp_path: Path) -> None:
    """While it stands still, others are told everything at once, and memory does not grow with the log."""
    async with admin_api(tmp_path, event_write_timeout_s=60) as api:
        tracemalloc.start()
        try:
            async with _frozen(api, 0), aclosing(api.client.events()) as events:
                await anext(events)
                api.log(200, prefix="warm")
                await api.logged(401)
                before, _ = tracemalloc.get_traced_memory()
                for turn in range(5):
                    api.log(300, prefix=f"t{turn}-", user_agent="u" * 200)
                    await api.logged(401 + 600 * (turn + 1))
                async with asyncio.timeout(PATIENCE_S):
                    while not isinstance(event := await anext(events), Ended) or event.seq < 3401:
                        pass
                after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < 1 << 20


async def test_the_daemons_end_ends_the_stream(tmp_path: Path) -> None:
    """A reader sees a whole line last, and then the end."""
    async with admin_api(tmp_path) as api:
        events = api.client.events(after=0)
        assert [type(await anext(events)) for _ in range(2)] == [Hello, Audited]
    async with aclosing(events), asyncio.timeout(PATIENCE_S):
        assert [event async for event in events] == []


async def test_progress_is_told_while_anything_is_in_flight_and_once_more() -> None:
    """Each second where every open stream is; the last one is empty, and then there is none."""
    async with whole_daemon() as (relay, client), aclosing(client.events()) as events:
        await anext(events)
        wire, reply = await open_chat(relay, "demo:deltas=10000,interval_ms=50")
        seen: list[Progress] = []
        async with asyncio.timeout(PATIENCE_S):
            while not seen or seen[-1].streams:
                event = await anext(events)
                if isinstance(event, Progress):
                    seen.append(event)
                    wire.finish()
        (first,) = seen[0].streams
        assert (first.id, first.client, first.phase.value) == (
            reply.header("X-Request-Id"),
            "default",
            "streaming",
        )
        assert first.deltas > 0
        assert first.age_ms > 0
        assert first.waiting_for == "upstream"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_progress(events), 1.3)


async def _progress(events: AsyncIterator[Event]) -> None:
    while not isinstance(await anext(events), Progress):
        pass


async def test_an_event_stream_is_ndjson_that_no_proxy_buffers(tmp_path: Path) -> None:
    """Headers say so; a script may read it with curl."""
    async with admin_api(tmp_path) as api, _frozen(api, 0) as sock:
        loop = asyncio.get_running_loop()
        head = await asyncio.wait_for(loop.sock_recv(sock, 4096), PATIENCE_S)
    assert b"Content-Type: application/x-ndjson" in head
    assert b"Transfer-Encoding: chunked" in head
