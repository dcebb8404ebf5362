"""`/requests` and `/audit`: what was written down, newest first."""

from __future__ import annotations

from functools import partial

from relayd.admin.base import AdminHandler
from relayd.admin.errors import AdminError
from relayd.admin.schema import AuditPage, RequestPage
from relayd.state.filter import parse_filter

_DEFAULT_LIMIT = 100
_MAX_LIMIT = 1000


class _PageHandler(AdminHandler):
    def limit(self) -> int:
        limit = self.number("limit")
        if limit is None:
            return _DEFAULT_LIMIT
        if not 1 <= limit <= _MAX_LIMIT:
            raise AdminError.bad_request(f"limit must be between 1 and {_MAX_LIMIT}.")
        return limit


class RequestsHandler(_PageHandler):
    """Records that pass a filter, page by page."""

    arguments = frozenset({"after", "before", "limit", "where"})

    async def get(self) -> None:
        """One page; `next_before` leads to the next."""
        where = parse_filter(self.get_query_argument("where", "", strip=False))
        question = partial(
            self.parts.state.reader.page,
            where,
            after=self.number("after"),
            before=self.number("before"),
            limit=self.limit(),
        )
        page = await self.parts.offload.run(question)
        self.send_json(RequestPage(page.records, page.next_before))


class RequestHandler(AdminHandler):
    """One record."""

    async def get(self, request_id: str) -> None:
        """The record with this id, as it is on disk."""
        record = await self.parts.offload.run(partial(self.parts.state.reader.get, request_id))
        if record is None:
            raise AdminError.not_found(
                f"The log has no request {request_id[:40]!r}: it never was, or is no longer kept."
            )
        self.send_json(record)


class AuditHandler(_PageHandler):
    """What operators did."""

    arguments = frozenset({"before", "limit"})

    async def get(self) -> None:
        """One page; `next_before` leads to the next."""
        question = partial(self.parts.state.reader.audit, before=self.number("before"), limit=self.limit())
        rows = await self.parts.offload.run(question)
        self.send_json(AuditPage(rows.entries, rows.next_before))
