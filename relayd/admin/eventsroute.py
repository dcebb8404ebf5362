"""`/events`: what followed a place in the log, then what happens."""

from __future__ import annotations

import asyncio
import logging

from tornado.iostream import StreamClosedError

from relayd import __version__
from relayd.admin.base import AdminHandler
from relayd.admin.context import AdminContext
from relayd.admin.errors import AdminError
from relayd.admin.events import EventReader, encode_line
from relayd.admin.schema import Hello
from relayd.state.errors import StateError

_log = logging.getLogger(__name__)

WRITE_TIMEOUT_S = 10.0


class EventsHandler(AdminHandler):
    """NDJSON without end: hello, replay from disk, live."""

    arguments = frozenset({"after"})
    _reader: EventReader | None

    def initialize(self, parts: AdminContext, write_timeout_s: float = WRITE_TIMEOUT_S) -> None:
        """Take what the server passes on."""
        super().initialize(parts)
        self._write_timeout_s = write_timeout_s
        self._reader = None

    async def get(self) -> None:
        """Send until the reader leaves, stands still for too long, or the daemon ends."""
        parts = self.parts
        after, newest = await self._place(self.number("after"))
        self.set_header("Content-Type", "application/x-ndjson; charset=utf-8")
        self.set_header("X-Accel-Buffering", "no")
        with parts.hub.reader(parts.state.reader, parts.offload, after) as self._reader:
            try:
                await self._send(encode_line(Hello(parts.facts.boot_id, __version__, newest)))
                while (piece := await self._reader.next_piece()) is not None:
                    await self._send(piece)
            except StreamClosedError:
                return
            except TimeoutError:
                # It can resume from disk with `after`; what is buffered for it here is let go.
                parts.tally.dropped_readers += 1
                self.connection.close()
            except (StateError, AdminError) as error:
                _log.warning("a reader of events was let go, because the log can't be read: %s", error)
                self.connection.close()

    async def _place(self, after: int | None) -> tuple[int, int]:
        """Where to begin, and the newest event; a place beyond the log's end begins there."""
        hub = self.parts.hub
        if after is None:
            return hub.newest_seq, hub.newest_seq
        newest = hub.newest_seq
        if after > newest:
            # The reader may have seen on disk what the loop has not heard of yet.
            newest = max(newest, await self.parts.offload.run(self.parts.state.reader.newest_seq))
        return min(after, newest), newest

    async def _send(self, lines: bytes) -> None:
        self.write(lines)
        async with asyncio.timeout(self._write_timeout_s):
            await self.flush()

    def on_connection_close(self) -> None:
        """The reader left."""
        if self._reader is not None:
            self._reader.end()
