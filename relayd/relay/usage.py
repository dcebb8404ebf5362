"""What a request used, as the provider counted it, in the shapes of every OpenAI endpoint.

Shapes: OpenAI API reference, `CompletionUsage` (chat, completions, embeddings) and `ResponseUsage`
(Responses, images, transcriptions).
"""

from __future__ import annotations

from typing import Any

import msgspec

_MAX_TOKENS = 1 << 53


class TokenCounts(msgspec.Struct, frozen=True):
    """Tokens of one request. An explicit zero of the provider is a zero here, too."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Part of the prompt's tokens."""


def read_usage(usage: object) -> TokenCounts | None:
    """Return the counts of a provider's `usage` object; None if it has none that can be read."""
    if not isinstance(usage, dict):
        return None
    prompt = _first_count(usage, "prompt_tokens", "input_tokens")
    completion = _first_count(usage, "completion_tokens", "output_tokens")
    if prompt is None and completion is None:
        total = read_count(usage.get("total_tokens"))
        return None if total is None else TokenCounts(total)
    cached = None
    for name in ("prompt_tokens_details", "input_tokens_details"):
        details = usage.get(name)
        if cached is None and isinstance(details, dict):
            cached = read_count(details.get("cached_tokens"))
    return TokenCounts(prompt or 0, completion or 0, min(cached or 0, prompt or 0))


def read_count(value: object) -> int | None:
    """Return a token count, which may be written as `9.0`; None if it is not a count."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Neither "not a number" nor infinity is in the range.
    return int(value) if 0 <= value <= _MAX_TOKENS else None


def _first_count(usage: dict[str, Any], *names: str) -> int | None:
    return next((count for name in names if (count := read_count(usage.get(name))) is not None), None)
