"""Which pages may use the relay (Fetch standard, "CORS protocol")."""

from __future__ import annotations

from collections.abc import Collection

_ALWAYS = {"Vary": "Origin"}
_EXPOSED_HEADERS = "X-Request-Id, X-Relayd-Error, Retry-After"
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

    def _allowed(self, origin: str | None) -> bool:
        return origin is not None and ("*" in self.allow_origins or origin in self.allow_origins)
