"""A new key's text, held in one place and let go of on purpose."""

from __future__ import annotations

_BULLETS = 12
_PREFIX_PARTS = 2


class Secret:
    """Never shown by `repr`; after `clear` it is gone from here."""

    __slots__ = ("__weakref__", "_text")

    def __init__(self, text: str) -> None:
        self._text: str | None = text

    def __repr__(self) -> str:
        return "Secret(…)"

    @property
    def text(self) -> str:
        """The key itself; empty when it was let go of."""
        return self._text or ""

    @property
    def masked(self) -> str:
        """The prefix and the id, which are no secret, and dots."""
        parts = self.text.split("_")
        shown = "_".join(parts[:_PREFIX_PARTS]) + "_" if len(parts) > _PREFIX_PARTS else ""
        return shown + "•" * _BULLETS

    def clear(self) -> None:
        """Let go of it."""
        self._text = None
