"""The routes of the log: records, what operators did, and events as they happen."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from datetime import date, datetime
from functools import partial
from http import HTTPStatus

import msgspec
from msgspec.structs import replace
from tornado.iostream import StreamClosedError

from relayd import __version__
from relayd.admin.errors import AdminError
from relayd.admin.handlers import AdminHandler
from relayd.admin.schema import Event, Gap, Hello
from relayd.state.calendar import Window, local_date, resets_at_s
from relayd.state.errors import StateError
from relayd.state.filter import parse_filter
from relayd.state.keys import holds_key
from relayd.state.reader import USAGE_COLUMNS
from relayd.state.records import Note, utc_text

_log = logging.getLogger(__name__)

_DEFAULT_LIMIT = 100
_MAX_LIMIT = 1000
_EVENTS_PER_READ = 200
_MAX_NOTE_CHARS = 500
_MAX_NOTE_KEYS = 10
_MAX_NAME_CHARS = 64
_PUNCTUATION = ".,;:!?'\"`)]}>"
"""What may follow a key in a text."""
_SIGN = re.compile(r"[=:,;'\"`(){}<>\[\]]")
"""What may stand before a key without a space between."""
MAX_FOLLOWERS = 96
"""Readers of events at once: the other connections of the admin server are for commands."""

_encoder = msgspec.json.Encoder()


class _PageHandler(AdminHandler):
    def limit(self) -> int:
        """Return how many rows the page may have."""
        limit = self.number("limit")
        if limit is None:
            return _DEFAULT_LIMIT
        if not 1 <= limit <= _MAX_LIMIT:
            raise AdminError.bad_request(f"limit must be between 1 and {_MAX_LIMIT}.")
        return limit


class RequestsHandler(_PageHandler):
    """`GET /requests`."""

    query_names = frozenset({"after", "before", "limit", "where"})

    async def get(self) -> None:
        """Send a page of the records that pass the filter; `next_before` leads to the next page."""
        where = parse_filter(self.get_query_argument("where", "", strip=False))
        query = partial(
            self.context.state.reader.page,
            where,
            after=self.number("after"),
            before=self.number("before"),
            limit=self.limit(),
        )
        page = await self.context.read_log(query)
        self.send_json(replace(page, records=[self.context.as_of_now(record) for record in page.records]))


class RequestRecordHandler(AdminHandler):
    """`GET /requests/{id}`."""

    async def get(self, request_id: str) -> None:
        """Send the record with this id."""
        record = await self.context.read_log(partial(self.context.state.reader.get, request_id))
        if record is None:
            raise AdminError.not_found(
                f"The log has no request {request_id[:40]!r}: it never existed, or is no longer kept."
            )
        self.send_json(await self.all_instances.as_of_now(record))


class UsageHandler(AdminHandler):
    """`GET /usage`."""

    query_names = frozenset({"by", "since", "until", "client", "key", "model"})

    async def get(self) -> None:
        """Send what was used, by client, model, day or key; without `since`, from the first of this month."""
        now_s = self.context.state.clock()
        by = self.get_query_argument("by", "client")
        if by not in USAGE_COLUMNS:
            raise AdminError.bad_request(f"by is one of {', '.join(USAGE_COLUMNS)}, not {by[:40]!r}.")
        today = local_date(now_s)
        since, until = self._day("since", today.replace(day=1)), self._day("until", today)
        chosen = {name: self.get_query_argument(name, None) for name in ("client", "key", "model")}
        rows, total = await self.context.read_log(
            partial(self.context.state.reader.usage, by, since=since, until=until, **chosen)
        )
        self.send_json(
            {
                "by": by,
                "since": since,
                "until": until,
                "rows": msgspec.Raw(rows),
                "total": msgspec.Raw(total),
                "day_ends_at": utc_text(resets_at_s(Window.DAY, now_s)),
                "month_ends_at": utc_text(resets_at_s(Window.MONTH, now_s)),
            }
        )

    def _day(self, name: str, default: date) -> date:
        text = self.get_query_argument(name, None)
        if text is None:
            return default
        try:
            return datetime.strptime(text, "%Y-%m-%d").date()  # noqa: DTZ007 - a day
        except ValueError:
            raise AdminError.bad_request(f"{name} is a day such as 2026-01-31, not {text[:40]!r}.") from None


class AuditHandler(_PageHandler):
    """`GET /audit` and `POST /audit`."""

    query_names = frozenset({"before", "limit"})

    async def get(self) -> None:
        """Send a page of what operators did; `next_before` leads to the next page."""
        query = partial(self.context.state.reader.audit, before=self.number("before"), limit=self.limit())
        page = await self.context.read_log(query)
        self.send_json(page)

    async def post(self) -> None:
        """Add a note of the operator, and send its entry."""
        note = self.body(Note)
        text = note.text.strip()
        texts = (text, note.client or "", *note.key_ids)
        if not 1 <= len(text) <= _MAX_NOTE_CHARS:
            raise AdminError.bad_request(f"A note has 1 to {_MAX_NOTE_CHARS} characters.")
        if len(note.key_ids) > _MAX_NOTE_KEYS or any(len(name) > _MAX_NAME_CHARS for name in texts[1:]):
            raise AdminError.bad_request(f"A note is about one client and at most {_MAX_NOTE_KEYS} keys.")
        if any(map(holds_key, texts)) or any(map(self._has_key_of_ring, texts)):
            raise AdminError.bad_request("The note has what looks like a key in it. Name keys by their id.")
        entry = await self.context.state.audit.note(
            replace(note, text=text), peer=await self.peer(), idempotency_key=self.idempotency_key()
        )
        self.send_json(entry)

    def _has_key_of_ring(self, text: str) -> bool:
        """Return whether a key of any form stands in the text, alone or after a sign as in `key=...`."""
        owner = self.context.state.ring.former_owner
        for word in text.split():
            for start in (0, *(sign.end() for sign in _SIGN.finditer(word))):
                rest = word[start:]
                for part in (rest, rest.rstrip(_PUNCTUATION), _SIGN.split(rest, 1)[0]):
                    if owner(part.encode(errors="replace")) is not None:
                        return True
        return False


class EventsHandler(AdminHandler):
    """`GET /events`: NDJSON without end: hello, replay from disk, live."""

    query_names = frozenset({"after"})
    _news: asyncio.Event | None = None

    async def get(self) -> None:
        """Send until the reader leaves, stands still for too long, or the daemon ends."""
        context = self.context
        after, newest = await self._place(self.number("after"))
        if len(context.event_bus) >= MAX_FOLLOWERS:
            raise AdminError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too_many_followers",
                f"{MAX_FOLLOWERS} programs already follow the events; close one, such as `relayd log -f`.",
            )
        self.set_header("Content-Type", "application/x-ndjson; charset=utf-8")
        self.set_header("X-Accel-Buffering", "no")
        with context.metrics.event_readers.track_inprogress(), context.event_bus.subscribe() as self._news:
            try:
                await self._send([Hello(context.facts.boot_id, __version__, newest)])
                await self._follow(after, self._news)
            except StreamClosedError:
                return
            except TimeoutError:
                # It can resume from disk with `after`; what is buffered for it here is let go.
                context.metrics.event_readers_dropped.inc()
                self.connection.close()
            except StateError as error:
                _log.warning("A reader of events was dropped because the log can't be read: %s", error)
                self.connection.close()

    async def _place(self, after: int | None) -> tuple[int, int]:
        """Return where to begin, and the newest event; a place beyond the log's end begins there."""
        bus = self.context.event_bus
        if after is None:
            return bus.newest_seq, bus.newest_seq
        if after > bus.newest_seq:
            # The reader may have seen on disk what the bus has not been told of yet.
            bus.advance(await self.context.read_log(self.context.state.reader.newest_seq))
        return min(after, bus.newest_seq), bus.newest_seq

    async def _follow(self, last_seq: int, news: asyncio.Event) -> None:
        bus, reader = self.context.event_bus, self.context.state.reader
        progress = bus.progress
        while bus.is_open and not self.connection.stream.closed():
            news.clear()
            if bus.progress is not None and bus.progress is not progress:
                progress = bus.progress
                await self._send([progress])
            if last_seq < bus.newest_seq:
                events = await self.context.read_log(partial(reader.events, last_seq, _EVENTS_PER_READ))
                if events:
                    last = events[-1]
                    last_seq = last.last if isinstance(last, Gap) else last.seq
                    await self._send(events)
                    continue
            await news.wait()

    async def _send(self, events: Sequence[Event]) -> None:
        self.write(b"".join(_encoder.encode(event) + b"\n" for event in events))
        async with asyncio.timeout(self.context.event_write_timeout_s):
            await self.flush()

    def on_connection_close(self) -> None:
        """Wake this handler, which sees that its reader has left."""
        if self._news is not None:
            self._news.set()
