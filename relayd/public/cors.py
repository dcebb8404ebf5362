"""Which pages may use the relay (Fetch standard, "CORS protocol")."""

from __future__ import annotations

import re
from collections.abc import Collection

_ALWAYS = {"Vary": "Origin"}
_EXPOSED_HEADERS = "X-Request-Id, X-Relayd-Error, Retry-After"
_V1_EXPOSED_HEADERS = ", ".join(
    (
        *("X-Request-Id", "X-Relayd-Error", "Retry-After", "retry-after-ms", "x-should-retry"),
        *(
            f"x-ratelimit-{what}-{unit}"
            for what in ("limit", "remaining", "reset")
            for unit in ("requests", "tokens")
        ),
        *("openai-processing-ms", "openai-version", "openai-model"),
    )
)
# RFC 9110, 5.6.2: names of headers.
_NAMES = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z, \t]{1,2000}")
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, Authorization, X-Requested-With",
    "Access-Control-Max-Age": "7200",
}


class Cors:
    """Decides for one list of origins; `*` in it admits any.

    The origin is echoed, never `*`: pages that fetch with `credentials: "include"` accept nothing else. No
    cookie is read or set, so such credentials carry nothing.
    """

    def __init__(self, allow_origins: Collection[str]) -> None:
        self.allow_origins = allow_origins

    def headers(self, origin: str | None) -> dict[str, str]:
        """Return the headers of every response to this origin."""
        if not self._allowed(origin):
            return _ALWAYS
        return {
            **_ALWAYS,
            "Access-Control-Allow-Origin": origin or "",
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Expose-Headers": _EXPOSED_HEADERS,
        }

    def preflight_headers(self, origin: str | None, *, private_network: bool) -> dict[str, str]:
        """Return the headers of the response to a preflight.

        Args:
            origin: of the page.
            private_network: whether it asks to reach a private network (Private Network Access, 3.1).
        """
        if not self._allowed(origin):
            return _ALWAYS
        headers = {**self.headers(origin), **_PREFLIGHT}
        if private_network:
            headers["Access-Control-Allow-Private-Network"] = "true"
        return headers

    def v1_headers(self, origin: str | None) -> dict[str, str]:
        """Return what every response of `/v1` has beside `headers`."""
        return {"Access-Control-Expose-Headers": _V1_EXPOSED_HEADERS} if self._allowed(origin) else {}

    def v1_preflight_headers(self, origin: str | None, requested: str | None) -> dict[str, str]:
        """Return what a preflight of `/v1` gets beside `preflight_headers`.

        Args:
            origin: of the page.
            requested: names of the headers that it wants to send; all are allowed.
        """
        if not self._allowed(origin):
            return {}
        headers = {"Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS"}
        if requested is not None and _NAMES.fullmatch(requested):
            headers["Access-Control-Allow-Headers"] = requested
        return headers

    def _allowed(self, origin: str | None) -> bool:
        return origin is not None and ("*" in self.allow_origins or origin in self.allow_origins)
