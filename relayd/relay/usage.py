"""The tokens of a request: as the provider counted them, and as they are estimated where it has not.

Shapes of the counts: OpenAI API reference, `CompletionUsage` (chat, completions, embeddings) and
`ResponseUsage` (Responses, images, transcriptions).

An estimate (bytes of the prompt by four, deltas of the answer) is corrected by what the same client's
requests to the same model have really used. No tokeniser is needed, and none has to download its tables.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import Any

import msgspec

_MAX_TOKENS = 1 << 53
DEFAULT_OUTPUT_TOKENS = 4096
"""An answer of unlimited length, until the client has had some from this model."""
BYTES_PER_TOKEN = 4
"""Of text, also in JSON."""
MEDIA_BYTES_PER_TOKEN = 500
"""Of MP3 (16 kB and about 20 tokens a second), and of a PNG image of 1024 x 1024 in base64."""
_TOKENS_PER_IMAGE = 1000
"""About what OpenAI counts for an image of 1024 x 1024 in high detail; base64 is no text."""
_MIN_BASE64_BYTES = 256
_BASE64_MARKS = (b";base64,", b'"data":', b'"file_data":', b'"b64_json":')
_MAX_SPACES = 8
_MAX_ENTRIES = 2000
_ANY = ""
_REMEMBERED_OUTPUTS = 32
_HIGH_PERCENT = 95
_FADE = 0.9
"""What an earlier request weighs beside the next one."""
_MIN_RATIO, _MAX_RATIO = 0.02, 50.0


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


def guess_prompt_tokens(body: bytes) -> int:
    """Return a first guess for a JSON request: a quarter of its bytes, and a flat count for files and images.

    It takes a few searches in C, so that 32 MiB of pictures do not stop the event loop.
    """
    files = 0
    for mark in _BASE64_MARKS:
        body, found = _without_base64(body, mark)
        files += found
    # A part names its kind in `type` and again as a field.
    images = max(files, body.count(b'"image_url"') // 2, body.count(b'"input_image"'))
    return len(body) // BYTES_PER_TOKEN + images * _TOKENS_PER_IMAGE


def _without_base64(body: bytes, mark: bytes) -> tuple[bytes, int]:
    """Return the body without the long base64 strings behind a mark, and how many they were."""
    kept: list[bytes] = []
    done = 0
    at = body.find(mark)
    while at != -1:
        start = at + len(mark)
        if mark.endswith(b":"):
            # The value of a field begins behind its quote.
            start = body.find(b'"', start, start + _MAX_SPACES) + 1 or start
        end = body.find(b'"', start)
        end = len(body) if end == -1 else end
        # Text has spaces; base64 has none.
        if end - start >= _MIN_BASE64_BYTES and body.find(b" ", start, end) == -1:
            kept.append(body[done:start])
            done = end
        at = body.find(mark, max(end, start))
    if not kept:
        return body, 0
    return b"".join([*kept, body[done:]]), len(kept)


class _Known:
    """What one client's requests to one model have used."""

    __slots__ = ("completion", "deltas", "guessed", "outputs", "prompt")

    def __init__(self) -> None:
        self.guessed = self.prompt = self.deltas = self.completion = 0.0
        self.outputs = array("L")

    def add(self, guess: int, deltas: int, counts: TokenCounts) -> None:
        if guess and counts.prompt_tokens:
            self.guessed = self.guessed * _FADE + guess
            self.prompt = self.prompt * _FADE + counts.prompt_tokens
        if deltas and counts.completion_tokens:
            self.deltas = self.deltas * _FADE + deltas
            self.completion = self.completion * _FADE + counts.completion_tokens
        self.outputs.append(min(counts.completion_tokens, 2**32 - 1))
        del self.outputs[:-_REMEMBERED_OUTPUTS]


class Estimates:
    """Learns from usage that providers reported; of the 2,000 pairs of client and model used last.

    A model that a client has not used yet is estimated by its other models.
    """

    def __init__(self) -> None:
        # The model `_ANY` stands for all of a client.
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()

    def _find(self, client: str, model: str) -> _Known | None:
        return self._known.get((client, model)) or self._known.get((client, _ANY))

    def prompt_tokens(self, client: str, model: str, guess: int) -> int:
        """Return an estimate of a prompt's tokens, from what `guess_prompt_tokens` returned for it."""
        known = self._find(client, model)
        return guess if known is None else _scaled(guess, known.prompt, known.guessed)

    def completion_tokens(self, client: str, model: str, deltas: int) -> int:
        """Return an estimate of an answer's tokens, from the number of its pieces."""
        known = self._find(client, model)
        return deltas if known is None else _scaled(deltas, known.completion, known.deltas)

    def usual_output(self, client: str, model: str, *, default: int = 0) -> int:
        """Return a length that few answers exceed: a high percentile of the latest ones, else a default.

        Args:
            client: whose answers.
            model: that gave them.
            default: 0 stands for 4,096.
        """
        known = self._known.get((client, model))
        if known is None or not known.outputs:
            return default or DEFAULT_OUTPUT_TOKENS
        ordered = sorted(known.outputs)
        return ordered[-(-len(ordered) * _HIGH_PERCENT // 100) - 1]

    def learn(self, client: str, model: str, *, guess: int, deltas: int, counts: TokenCounts) -> None:
        """Take what a request really used beside what was guessed and relayed."""
        for name in (_ANY, model):
            self._entry(client, name).add(guess, deltas, counts)

    def _entry(self, client: str, model: str) -> _Known:
        at = (client, model)
        known = self._known.get(at)
        if known is None:
            known = self._known[at] = _Known()
            if len(self._known) > _MAX_ENTRIES:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(at)
        return known


def _scaled(count: int, real: float, guessed: float) -> int:
    ratio = real / guessed if guessed else 1.0
    return round(count * max(_MIN_RATIO, min(ratio, _MAX_RATIO)))
