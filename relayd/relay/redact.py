"""Makes the provider's words fit to show and to store: one line, bounded, without any key."""

from __future__ import annotations

import base64
import re

_MAX_CHARS = 500
_MAX_KEYS = 256
_MIN_KEY_CHARS = 8
"""A shorter one is a placeholder, such as "EMPTY", for a server without keys: replaced, it garbles words."""
_TAIL_CHARS = 12
"""A provider that masks a key shows less of its end (OpenAI: four characters)."""
# Anything shaped like a provider's key, also if the provider masked its middle.
_KEY_SHAPE = re.compile(r"\bsk-[A-Za-z0-9_*.-]{4,}", re.IGNORECASE)
# C0, DEL, C1, line and paragraph separators, zero-width and bidirectional controls, lone surrogates.
_CONTROLS = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]+"
)


class Redactor:
    """Replaces the provider's key, in whatever form a provider may echo it; its repr does not show it.

    Args:
        provider_key: the secret; empty if there is none. One of fewer than 8 characters counts as none.
    """

    def __init__(self, provider_key: str) -> None:
        self._keys: list[str] = []
        self._secrets: re.Pattern[str] | None = None
        self.add(provider_key)

    def add(self, provider_key: str) -> None:
        """Replace this key too: a request under way may still bring back the one before."""
        if len(provider_key) >= _MIN_KEY_CHARS and provider_key not in self._keys:
            self._keys = [*self._keys, provider_key][-_MAX_KEYS:]
            forms = sorted((form for key in self._keys for form in _forms(key)), key=len, reverse=True)
            self._secrets = re.compile("|".join(map(re.escape, forms)), re.IGNORECASE)

    def __repr__(self) -> str:
        return "Redactor()"

    def __call__(self, text: str, max_chars: int = _MAX_CHARS) -> str:
        """Return the text as one line of at most `max_chars` characters, each key replaced by `[key]`."""
        # Keys go before the cut: it could leave half a key, which no pattern finds.
        if self._secrets is not None:
            text = self._secrets.sub("[key]", text)
        text = _CONTROLS.sub(" ", _KEY_SHAPE.sub("[key]", text)).strip()
        return text if len(text) <= max_chars else text[: max_chars - 1] + "…"

    def scrub(self, data: bytes) -> bytes:
        """Return a body as it is, but with each key replaced by `[key]`."""
        text = data.decode("latin-1")
        if self._secrets is not None:
            text = self._secrets.sub("[key]", text)
        return _KEY_SHAPE.sub("[key]", text).encode("latin-1")


def _forms(key: str) -> list[str]:
    """Return the forms of a key that are searched, longest first: base64, whole, and its last characters."""
    encoded = base64.b64encode(key.encode()).decode().rstrip("=")
    forms = [encoded, encoded.replace("+", "-").replace("/", "_"), key]
    if len(key) >= 2 * _TAIL_CHARS:
        forms.append(key[-_TAIL_CHARS:])
    return forms
