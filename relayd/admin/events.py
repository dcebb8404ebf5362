"""The event bus: tells the readers of `GET /events` that the log has grown.

The log on disk is the queue. A reader is only a place in it and reads on from there whenever the bus
wakes it. So a slow reader costs no memory and slows nothing else, and no reader misses or repeats an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from relayd.admin.schema import LogEvent, Progress


class EventBus:
    """Knows the newest event of the log and wakes the readers.

    `publish` may be called from any thread, all else from the event loop.
    """

    def __init__(self) -> None:
        self.newest_seq = 0
        """The newest event that the loop has been told of; the disk may be a moment ahead."""
        self.progress: Progress | None = None
        """The newest progress event: a reader that is late gets only this one."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_event: Callable[[LogEvent], None] | None = None
        self._readers: set[asyncio.Event] = set()

    @property
    def is_open(self) -> bool:
        """Whether events are received."""
        return self._loop is not None

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
        """Give this to every reader next."""
        self.progress = progress
        self._wake_readers()

    def close(self) -> None:
        """Receive no more events, and wake the readers a last time."""
        self._loop = None
        self._wake_readers()

    @contextmanager
    def subscribe(self) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever there is news, until the block ends."""
        news = asyncio.Event()
        self._readers.add(news)
        try:
            yield news
        finally:
            self._readers.discard(news)

    def __len__(self) -> int:
        """Return the number of readers."""
        return len(self._readers)

    def _receive(self, events: Sequence[LogEvent]) -> None:
        for event in events:
            if self._on_event is not None:
                self._on_event(event)
            self.advance(event.seq)

    def _wake_readers(self) -> None:
        for news in self._readers:
            news.set()
