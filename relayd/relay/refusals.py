"""The provider's refusals and failures in our words, and what they mean for its route."""

from __future__ import annotations

import asyncio
import email.utils
import math
import re
import time
from enum import Enum, auto

import httpx2
from msgspec.structs import replace

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.provider_errors import ProviderError, json_value, parse_error_body
from relayd.relay.redact import Redactor
from relayd.relay.transport import ConnectionBroken, IncomingResponse

_REJECTED_STATUSES = frozenset({400, 402, 404, 405, 406, 410, 411, 412, 413, 414, 415, 422, 431, 451})
_REDIRECTS = range(300, 400)
_UNAUTHORIZED = 401
_FORBIDDEN = 403
_LIMITED = 429
_FIRST_FAILURE = 500
MAX_ERROR_BODY_BYTES = 64 << 10
_ERROR_BODY_TIMEOUT_S = 5.0
_MAX_RETRY_AFTER_S = 24 * 3600
_MAX_KIND_CHARS = 200
_PAYMENT_REQUIRED = 402
_UNKNOWN_MODEL = "model_not_found"
"""OpenAI says so too of a model that the key may not use."""
_USED_UP = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
# OpenAI: code `unsupported_country_region_territory`. Google: "User location is not supported".
_REGION = re.compile(
    r"unsupported_country|(?:country|region|territory|location)\b.{0,40}\bnot\s+(?:supported|available)"
    r"|not\s+(?:supported|available)\s+in\s+your\s+(?:country|region|territory|location)",
    re.IGNORECASE | re.DOTALL,
)


class Cools(Enum):
    """What a failure makes cool down: it is not asked for a while."""

    NOTHING = auto()
    MODEL = auto()
    """This model of the route: the key may not use it, or has reached its limit."""
    QUOTA = auto()
    """The same, for longer: the limit is not one that passes by itself."""
    ROUTE = auto()
    """The whole route: its key is refused, or its provider is down."""


class UpstreamError(RelayError):
    """The provider refused a request, or failed.

    Args:
        code: as for RelayError, like `message`, `retry_after_s` and `recorded`.
        cools: what it makes cool down.
        wait_s: how long the provider asks to wait, if it does.
        may_be_served: whether the provider may have read the request: sent again, it could cost twice.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retry_after_s: int | None = None,
        recorded: str | None = None,
        cools: Cools = Cools.NOTHING,
        wait_s: float | None = None,
        may_be_served: bool = False,
    ) -> None:
        super().__init__(code, message, retry_after_s=retry_after_s, recorded=recorded)
        self.cools = cools
        self.wait_s = wait_s
        self.concerns_relay = False
        """Whether it is about the relay's own key, address or region, not about the request."""
        self.may_be_served = may_be_served

    @property
    def is_of_the_request(self) -> bool:
        """Whether any other route would refuse the request too."""
        return self.cools is Cools.NOTHING and self.code is not ErrorCode.UPSTREAM_FAILED


class Refusals:
    """Makes errors of what a provider answers.

    Args:
        redact: makes its texts fit to show.
    """

    def __init__(self, redact: Redactor) -> None:
        self._redact = redact

    def of_status(self, status: int, headers: httpx2.Headers, body: bytes) -> UpstreamError:
        """Return the error of a response that is not a success."""
        said = parse_error_body(body)
        wait_s = retry_after_s(headers)
        if status == _UNAUTHORIZED:
            message = "The provider refused this relay's own key (401); the relay's owner must replace it."
            # Its own sentence quotes the key.
            recorded = f"{message} {self._redact(said.message or '')}".strip()
            error = UpstreamError(
                ErrorCode.UPSTREAM_AUTH, message, recorded=recorded, cools=Cools.ROUTE, wait_s=wait_s
            )
            error.concerns_relay = True
            return error
        if status in _REDIRECTS:
            error = UpstreamError(
                ErrorCode.UPSTREAM_FAILED,
                f"The provider answered with a redirect ({status}), which is not followed; "
                "upstream.base_url must be its final address.",
                cools=Cools.ROUTE,
            )
            error.concerns_relay = True
            return error
        cools, retry_s = Cools.NOTHING, None
        is_region = status in {400, _FORBIDDEN} and bool(_REGION.search(f"{said.code} {said.message}"))
        if is_region:
            code, cools = ErrorCode.UPSTREAM_AUTH, Cools.MODEL
            start = f"The provider does not serve the region of this relay's server ({status})"
        elif status == _FORBIDDEN:
            code, cools = ErrorCode.UPSTREAM_AUTH, Cools.MODEL
            start = "The provider does not allow this relay's account to do this (403)"
        elif status == _LIMITED:
            code, start = ErrorCode.UPSTREAM_LIMITED, "The provider's rate or quota limit is reached"
            cools = Cools.QUOTA if said.code in _USED_UP else Cools.MODEL
            retry_s = math.ceil(wait_s or 1)
        elif status in _REJECTED_STATUSES:
            code, start = ErrorCode.UPSTREAM_REJECTED, f"The provider refused the request ({status})"
            if status == _PAYMENT_REQUIRED:
                cools = Cools.QUOTA
            elif said.code == _UNKNOWN_MODEL:
                cools = Cools.MODEL
        else:
            code, start = ErrorCode.UPSTREAM_FAILED, f"The provider failed ({status})"
            cools = Cools.ROUTE if status >= _FIRST_FAILURE else Cools.NOTHING
        quotes = code is ErrorCode.UPSTREAM_REJECTED
        if said.message is None and isinstance(value := json_value(body), dict | list) and value:
            # JSON in which no message was found tells the client more than nothing; it may quote the request.
            said, quotes = replace(said, message=" ".join(body.decode("utf-8", "replace").split())), True
        error = self.refusal(
            code, start, said, quotes=quotes, retry_after_s=retry_s, cools=cools, wait_s=wait_s
        )
        error.concerns_relay = is_region
        return error

    def refusal(
        self,
        code: ErrorCode,
        start: str,
        said: ProviderError,
        *,
        quotes: bool,
        retry_after_s: int | None = None,
        cools: Cools = Cools.NOTHING,
        wait_s: float | None = None,
    ) -> UpstreamError:
        """Return an error with the provider's words; if they may quote the request, they are not recorded."""
        no_reason = "it gave no reason"
        message = f"{start}: {self._redact(said.message or no_reason)}"
        recorded = None
        if quotes:
            recorded = f"{start}: {self._redact(said.kind or no_reason, _MAX_KIND_CHARS)}"
        return UpstreamError(
            code, message, retry_after_s=retry_after_s, recorded=recorded, cools=cools, wait_s=wait_s
        )

    def unreachable(self, reason: str) -> UpstreamError:
        """Return the error of a request that was not sent."""
        return UpstreamError(
            ErrorCode.UPSTREAM_UNREACHABLE,
            f"The provider cannot be reached: {self._redact(reason)}.",
            cools=Cools.ROUTE,
        )

    def no_answer(self) -> UpstreamError:
        """Return the error of a request that was sent, perhaps only in part, and never answered."""
        return UpstreamError(
            ErrorCode.UPSTREAM_FAILED,
            "The provider closed the connection without an answer.",
            cools=Cools.ROUTE,
            may_be_served=True,
        )


async def read_error_body(stream: IncomingResponse) -> bytes:
    """Return what came of a body, bounded; a refusal that breaks off still has its status."""
    try:
        async with asyncio.timeout(_ERROR_BODY_TIMEOUT_S):
            return await stream.read(MAX_ERROR_BODY_BYTES)
    except (ConnectionBroken, TimeoutError):
        return b""


async def take_refusal(stream: IncomingResponse) -> bytes:
    """Return the body of a refusal, bounded, and close it; empty if it is compressed."""
    try:
        return b"" if is_compressed(stream) else await read_error_body(stream)
    finally:
        stream.close()


def is_compressed(stream: IncomingResponse) -> bool:
    """Return whether a body is compressed. That was not asked for, and it is never unpacked."""
    codings = stream.header(b"content-encoding").lower().split(",")
    return any(coding.strip() not in {"", "identity"} for coding in codings)


def retry_after_s(headers: httpx2.Headers) -> float | None:
    """Return the wait that a response asks for, in seconds; None if it asks for none that can be read.

    `retry-after-ms` is OpenAI's own; Retry-After is seconds or a date (RFC 9110, 10.2.3).
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "")
        try:
            seconds = float(text) * scale
        except ValueError:
            continue
        # "inf" is not accepted as a number; digits that overflow to infinity are.
        if seconds >= 0 and (math.isfinite(seconds) or text[0].isdigit()):
            return min(seconds, _MAX_RETRY_AFTER_S)
    try:
        parsed = email.utils.parsedate_tz(headers.get("retry-after", ""))
        if parsed is None:
            return None
        at = email.utils.mktime_tz(parsed)
    except (ValueError, OverflowError):
        # No date of this calendar: the year 99999999999, an hour of 5,000 digits.
        return None
    return min(max(0.0, at - time.time()), _MAX_RETRY_AFTER_S)
