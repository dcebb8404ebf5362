"""The head of a reply, for those that are written without Tornado's web layer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from relayd.relay.failure import Code, Failure

CONTENT_TYPE = "application/x-ndjson; charset=utf-8"

_ALWAYS = (
    f"Content-Type: {CONTENT_TYPE}\r\n"
    "Cache-Control: no-store\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "X-Accel-Buffering: no\r\n"
)


def reply_head(status: int, fields: Mapping[str, str]) -> bytes:
    """Status line, what every reply in lines carries, and these fields.

    Args:
        status: of HTTP.
        fields: their values must be free of line ends, as everything is that came through a checked head.
    """
    more = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    # RFC 9110, 6.6.1: a server with a clock says what time it is.
    return f"{_status_line(status)}{_ALWAYS}Date: {_date(int(time.time()))}\r\n{more}\r\n".encode("latin-1")


def failure_fields(failure: Failure) -> dict[str, str]:
    """What a failure adds to the head of its reply."""
    fields = {"X-Relayd-Error": str(failure.code)}
    if failure.retry_after_s is not None:
        fields["Retry-After"] = str(failure.retry_after_s)
    if failure.code is Code.DRAINING:
        fields["Connection"] = "close"
    if failure.code is Code.UNAUTHORIZED:
        # RFC 9110, 11.6.1: a 401 names its scheme.
        fields["WWW-Authenticate"] = "Bearer"
    return fields


@lru_cache
def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"


@lru_cache(1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
