"""What a request's headers put into its record."""

from __future__ import annotations

import time

from relayd.public.exchange import Exchange
from relayd.state.records import RequestRecord, utc_text

_MAX_HEADER_CHARS = 200


def opened_record(exchange: Exchange, boot_id: str) -> RequestRecord:
    """The record of a request that begins now."""
    return RequestRecord(
        id=exchange.request_id,
        boot_id=boot_id,
        started_at=utc_text(time.time()),
        ip=exchange.client_address,
        origin=cut(exchange.headers.get("Origin")),
        user_agent=cut(exchange.headers.get("User-Agent")),
        path=exchange.path,
    )


def cut(text: str | None) -> str | None:
    """A client's words at the length that a record has room for."""
    return None if text is None else text[:_MAX_HEADER_CHARS]
