"""Keys as they are printed on a keyboard."""

from __future__ import annotations

_NAMES = {
    "slash": "/",
    "plus": "+",
    "exclamation_mark": "!",
    "colon": ":",
    "question_mark": "?",
    "escape": "Esc",
    "right_square_bracket,right": "→ ]",
    "left_square_bracket,left": "← [",
}


def key_name(key: str) -> str:
    """Textual's name of a key, or of several, for people."""
    return _NAMES.get(key, key)
