"""Makes a provider's words fit to be shown: one line, bounded, and never with a key in it."""

from __future__ import annotations

import re

_MAX_CHARS = 500
# Anything shaped like a provider's key, also when the provider itself masked its middle.
_KEY_SHAPE = re.compile(r"\bsk-[A-Za-z0-9_*.-]{4,}")
# C0, DEL, C1, line and paragraph separators, zero-width and bidirectional controls.
_CONTROLS = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]+"
)


class Scrubber:
    """Knows the one secret that may not leave; its repr does not show it."""

    def __init__(self, provider_key: str) -> None:
        self._provider_key = provider_key

    def __repr__(self) -> str:
        return "Scrubber()"

    def __call__(self, text: str) -> str:
        """The text as one line of at most 500 characters, with every key replaced by `[key]`."""
        if self._provider_key:
            text = text.replace(self._provider_key, "[key]")
        text = _CONTROLS.sub(" ", _KEY_SHAPE.sub("[key]", text)).strip()
        return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 1] + "…"
