"""The event bus: tells the readers of `GET /events` that the log has grown.

The log on disk is the queue. A reader is only a place in it and reads on from there whenever the bus
says that there is more, so a slow reader costs no memory, slows nobody, and none can miss or repeat an
event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

import msgspec

from relayd.admin.schema import Gap, LogEvent, Progress

_MAX_EVENTS_PER_READ = 200

ReadEvents = Callable[[int, int], Awaitable[Sequence[LogEvent | Gap]]]
"""Returns at most so many events that follow a place in the log; arguments: place, limit."""

_encoder = msgspec.json.Encoder()


class EventBus:
    """Knows the newest event of the log and wakes its readers.

    `publish` may be called from any thread, all else from the event loop.
    """

    def __init__(self) -> None:
        self.newest_seq = 0
        """The newest event that the loop has been told of; the disk may be a moment ahead."""
        self.progress: Progress | None = None
        """The newest progress event."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_event: Callable[[LogEvent], None] | None = None
        self._readers: set[EventReader] = set()

    def publish(self, events: Sequence[LogEvent]) -> None:
        """Tell of events that are on disk now, in their order; do nothing before `open` or after `close`."""
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._receive, events)

    def open(self, on_event: Callable[[LogEvent], None]) -> None:
        """Receive events from now on, on the running loop; `on_event` is called with each, in order."""
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()

    def advance(self, newest_seq: int) -> None:
        """Note that the log on disk reaches this far."""
        if newest_seq > self.newest_seq:
            self.newest_seq = newest_seq
            self._wake_readers()

    def publish_progress(self, progress: Progress) -> None:
        """Give this to every reader next; one that is late gets only the newest."""
        self.progress = progress
        self._wake_readers()

    def close(self) -> None:
        """Receive no more events and end every reader."""
        self._loop = None
        for reader in self._readers:
            reader.end()

    def reader(self, after: int, read: ReadEvents) -> EventReader:
        """Return a reader of what follows `after`, awake while it is entered as a context manager."""
        return EventReader(self, after, read)

    def add(self, reader: EventReader) -> None:
        """Wake this reader from now on."""
        self._readers.add(reader)

    def discard(self, reader: EventReader) -> None:
        """Wake this reader no more."""
        self._readers.discard(reader)

    def __len__(self) -> int:
        """Return the number of readers."""
        return len(self._readers)

    def _receive(self, events: Sequence[LogEvent]) -> None:
        for event in events:
            if self._on_event is not None:
                self._on_event(event)
            self.advance(event.seq)

    def _wake_readers(self) -> None:
        for reader in self._readers:
            reader.wake()


class EventReader:
    """One reader's place in the log."""

    def __init__(self, bus: EventBus, after: int, read: ReadEvents) -> None:
        self._bus = bus
        self._last_seq = after
        self._read = read
        self._last_progress = bus.progress
        self._news = asyncio.Event()
        self._is_ended = False

    def __enter__(self) -> Self:
        self._bus.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bus.discard(self)

    def wake(self) -> None:
        """Look again for news."""
        self._news.set()

    def end(self) -> None:
        """Let `next_lines` return None from now on."""
        self._is_ended = True
        self._news.set()

    async def next_lines(self) -> bytes | None:
        """Return the next events as whole lines of NDJSON, as soon as there are any; None at the end.

        Raises:
            StateError: the log can't be read now.
        """
        bus = self._bus
        while not self._is_ended:
            self._news.clear()
            if bus.progress is not self._last_progress and bus.progress is not None:
                self._last_progress = bus.progress
                return ndjson([bus.progress])
            if self._last_seq < bus.newest_seq:
                events = await self._read(self._last_seq, _MAX_EVENTS_PER_READ)
                if events:
                    last = events[-1]
                    self._last_seq = last.last if isinstance(last, Gap) else last.seq
                    return ndjson(events)
            await self._news.wait()
        return None


def ndjson(events: Iterable[msgspec.Struct]) -> bytes:
    """Return the events as lines of JSON."""
    return b"".join(_encoder.encode(event) + b"\n" for event in events)
