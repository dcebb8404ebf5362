"""Which pages may use the relay (Fetch standard, "CORS protocol")."""

from __future__ import annotations

from collections.abc import Collection

_ALWAYS = {"Vary": "Origin"}
_EXPOSED = "X-Request-Id, X-Relayd-Error, Retry-After"
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, Authorization, X-Requested-With",
    "Access-Control-Max-Age": "7200",
}


class Cors:
    """Answers for one list of origins; `*` in it admits any.

    The origin is echoed, never `*`: pages that fetch with `credentials: "include"` accept nothing
    else. No cookie is read or set, so there is nothing that such credentials could carry.
    """

    def __init__(self, allow_origins: Collection[str]) -> None:
        self.allow_origins = allow_origins

    def headers(self, origin: str | None) -> dict[str, str]:
        """What every reply to this origin carries."""
        if not self._allowed(origin):
            return _ALWAYS
        return {
            **_ALWAYS,
            "Access-Control-Allow-Origin": origin or "",
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Expose-Headers": _EXPOSED,
        }

    def preflight_headers(self, origin: str | None) -> dict[str, str]:
        """What the reply to a preflight carries."""
        headers = self.headers(origin)
        return {**headers, **_PREFLIGHT} if self._allowed(origin) else headers

    def _allowed(self, origin: str | None) -> bool:
        return origin is not None and ("*" in self.allow_origins or origin in self.allow_origins)
