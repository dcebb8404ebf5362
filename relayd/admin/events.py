"""The events of the log, from the writer thread to every reader of `/events`.

A reader is no queue but a place in the log: what it has not read yet is in the hub's short memory,
which all readers share, or on disk. So a reader that stands still costs next to nothing, and none
can miss or repeat an event: each takes the one after its last.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from types import TracebackType
from typing import Self

import msgspec

from relayd.admin.offload import Offload
from relayd.admin.schema import Hello, Progress
from relayd.state.events import Gap, LogEvent
from relayd.state.reader import LogReader

_MEMORY_EVENTS = 500
_MEMORY_BYTES = 256 << 10
_PIECE_BYTES = 64 << 10
_REPLAY_EVENTS = 200

_encode = msgspec.json.Encoder().encode


def encode_line(event: LogEvent | Gap | Hello | Progress) -> bytes:
    """One event as a line of NDJSON."""
    return _encode(event) + b"\n"


class EventBus:
    """Holds the newest events and wakes the readers.

    `committed` is for the writer thread, all else for the event loop.
    """

    def __init__(self) -> None:
        self._on_event: Callable[[LogEvent], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._recent: deque[tuple[int, bytes]] = deque()
        self._recent_bytes = 0
        self._readers: set[EventReader] = set()
        self.newest_seq = 0
        """The newest event that the loop has heard of; the disk may be a moment ahead."""
        self.progress = b""
        self.progress_count = 0

    def committed(self, events: Sequence[LogEvent]) -> None:
        """These events are on disk, in this order. Before `listen` and after `close` nobody listens."""
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._take, events)

    def listen(self, on_event: Callable[[LogEvent], None]) -> None:
        """Listen from now on, on the running loop; `on_event` is told of each new event, in order."""
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()

    def catch_up(self, newest_seq: int) -> None:
        """The disk has this many; what came since `listen` may be newer."""
        self.newest_seq = max(self.newest_seq, newest_seq)

    def close(self) -> None:
        """End every reader and stop listening."""
        self._loop = None
        for reader in tuple(self._readers):
            reader.end()

    def __len__(self) -> int:
        """How many readers there are."""
        return len(self._readers)

    def tell_progress(self, progress: Progress) -> None:
        """Let every reader have this next; one that is late skips to the newest."""
        self.progress = encode_line(progress)
        self.progress_count += 1
        self._wake()

    def reader(self, log: LogReader, offload: Offload, after: int) -> EventReader:
        """A reader of what follows `after`."""
        return EventReader(self, log, offload, after)

    def add(self, reader: EventReader) -> None:
        """Wake this reader from now on."""
        self._readers.add(reader)

    def discard(self, reader: EventReader) -> None:
        """Forget this reader."""
        self._readers.discard(reader)

    def remembered(self, after: int) -> tuple[bytes, int] | None:
        """Lines that follow `after`, at most 64 KiB or one event, and the last one's seq.

        None where the disk must be asked.
        """
        if not self._recent or not self._recent[0][0] <= after + 1 <= self._recent[-1][0]:
            return None
        lines: list[bytes] = []
        size, last = 0, after
        for seq, line in islice(self._recent, after + 1 - self._recent[0][0], None):
            if lines and size + len(line) > _PIECE_BYTES:
                break
            lines.append(line)
            size += len(line)
            last = seq
        return b"".join(lines), last

    def _take(self, events: Sequence[LogEvent]) -> None:
        for event in events:
            if self._on_event is not None:
                self._on_event(event)
            if event.seq != self.newest_seq + 1 or not self._readers:
                # What is remembered has no holes; readers find the rest on disk.
                self._recent.clear()
                self._recent_bytes = 0
            self.newest_seq = event.seq
            if self._readers:
                self._remember(event.seq, encode_line(event))
        self._wake()

    def _remember(self, seq: int, line: bytes) -> None:
        self._recent.append((seq, line))
        self._recent_bytes += len(line)
        while len(self._recent) > _MEMORY_EVENTS or self._recent_bytes > _MEMORY_BYTES:
            self._recent_bytes -= len(self._recent.popleft()[1])

    def _wake(self) -> None:
        for reader in self._readers:
            reader.news.set()


class EventReader:
    """One reader's place in the log. A context manager: inside it, the hub wakes it."""

    def __init__(self, hub: EventBus, log: LogReader, offload: Offload, after: int) -> None:
        self._hub = hub
        self._log = log
        self._offload = offload
        self._last = after
        self._progress_count = hub.progress_count
        self._ended = False
        self.news = asyncio.Event()

    def __enter__(self) -> Self:
        self._hub.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hub.discard(self)

    def end(self) -> None:
        """Let `next_piece` return None from now on."""
        self._ended = True
        self.news.set()

    async def next_piece(self) -> bytes | None:
        """Whole lines, as soon as there are any; None at the end.

        Raises:
            StateError, AdminError: the disk can't be read now.
        """
        hub = self._hub
        while not self._ended:
            self.news.clear()
            if self._progress_count != hub.progress_count:
                self._progress_count = hub.progress_count
                return hub.progress
            if self._last < hub.newest_seq:
                remembered = hub.remembered(self._last) or await self._from_disk()
                if remembered is not None:
                    piece, self._last = remembered
                    return piece
            await self.news.wait()
        return None

    async def _from_disk(self) -> tuple[bytes, int] | None:
        after = self._last

        def read() -> tuple[bytes, int] | None:
            events = self._log.events(after, _REPLAY_EVENTS)
            if not events:
                return None
            last = events[-1]
            return b"".join(map(encode_line, events)), last.last if isinstance(last, Gap) else last.seq

        return await self._offload.run(read)
