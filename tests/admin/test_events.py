"""Behaviour of `relayd.admin.events`: what it remembers has no holes."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

from relayd.admin.events import EventBus, encode_line
from relayd.admin.offload import Offload
from relayd.state.events import LogEvent, Started
from relayd.state.reader import LogReader
from tests.admin.harness import admin_room, new_record


def _event(seq: int, size: int = 10) -> Started:
    return Started(seq, "boot", new_record(f"r{seq}", user_agent="u" * size))


async def _settle() -> None:
    """Let what was called threadsafe happen."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def _hub(tmp_path: Path) -> tuple[EventBus, Offload, LogReader]:
    hub = EventBus()
    hub.listen(lambda _event: None)
    return hub, Offload("test", 1), LogReader(tmp_path / "none.db")


async def test_nothing_is_kept_while_nobody_reads(tmp_path: Path) -> None:
    """Without readers an event costs no memory; the newest seq is known all the same."""
    hub, offload, _ = await _hub(tmp_path)
    hub.committed([_event(1), _event(2)])
    await _settle()
    assert (hub.newest_seq, hub.remembered(0), hub.remembered(1)) == (2, None, None)
    await offload.close()


async def test_what_is_remembered_follows_without_a_hole(tmp_path: Path) -> None:
    """When an event of the disk never came to the hub, what was before it is forgotten."""
    hub, offload, log = await _hub(tmp_path)
    with hub.reader(log, offload, 0):
        hub.committed([_event(1), _event(2)])
        await _settle()
        assert hub.remembered(0) == (encode_line(_event(1)) + encode_line(_event(2)), 2)
        assert hub.remembered(1) == (encode_line(_event(2)), 2)
        hub.committed([_event(4)])
        await _settle()
        assert hub.remembered(1) is None
        assert hub.remembered(2) is None
        assert hub.remembered(3) == (encode_line(_event(4)), 4)
    await offload.close()


async def test_pieces_and_memory_are_bounded(tmp_path: Path) -> None:
    """A piece has at most 64 KiB, and the hub keeps at most 256 KiB however much is logged."""
    hub, offload, log = await _hub(tmp_path)
    with hub.reader(log, offload, 0):
        hub.committed([_event(seq, 10_000) for seq in range(1, 1001)])
        await _settle()
        kept = [seq for seq in range(1001) if hub.remembered(seq) is not None]
        piece = hub.remembered(kept[0])
        assert piece is not None
        assert len(piece[0]) <= 64 << 10
        assert len(kept) * len(encode_line(_event(1, 10_000))) <= 256 << 10
    await offload.close()


async def test_events_may_come_from_any_thread_in_order() -> None:
    """The writer's thread calls; listeners are told on the loop, in the order of the log."""
    heard: list[int] = []
    hub = EventBus()
    hub.committed([_event(1)])
    hub.listen(lambda event: heard.append(event.seq))
    batches: list[list[LogEvent]] = [[_event(seq), _event(seq + 1)] for seq in range(2, 200, 2)]

    def write() -> None:
        for batch in batches:
            hub.committed(batch)

    thread = threading.Thread(target=write)
    thread.start()
    await asyncio.to_thread(thread.join)
    await _settle()
    assert heard == list(range(2, 200))
    hub.close()
    hub.committed([_event(200)])
    await _settle()
    assert hub.newest_seq == 199


async def test_a_reader_finds_on_disk_what_the_hub_never_heard_of(tmp_path: Path) -> None:
    """A publication that failed is no gap: the next event shows that there is more to read."""
    async with admin_room(tmp_path) as room:
        offload = Offload("test", 1)
        with room.hub.reader(room.state.reader, offload, 1) as reader:
            loop, room.hub._loop = room.hub._loop, None
            room.log(1)
            await asyncio.to_thread(_wait_for_seq, room.state.reader, 3)
            room.hub._loop = loop
            room.log(1, prefix="x")
            pieces = b""
            async with asyncio.timeout(30):
                while pieces.count(b"\n") < 4:
                    pieces += await reader.next_piece() or b""
        await offload.close()
    assert [part.split(b",")[0] for part in pieces.split(b'"seq":')[1::2]] == [b"2", b"3", b"4", b"5"]


def _wait_for_seq(reader: LogReader, seq: int) -> None:
    while reader.newest_seq() < seq:
        time.sleep(0.005)
