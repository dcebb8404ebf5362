"""What the demo upstream is asked to do: parsed from `demo:key=value,key=value`, strictly.

The text comes from the request's model name or from its `X-Demo` header. `demo` alone is the pleasant
default; a model name that does not begin with `demo:` gives the same. A value may be percent-encoded, so
that it can hold commas and spaces. Several faults are joined by `+`: `fault=crlf+one_byte+cut_mid`.

Keys (defaults in `Script`):
    deltas, interval_ms (0: burst), first_ms, headers_ms    how many, how fast, how late
    text       answer | words | cjk | emoji | stamp | echo | x<N>
    refusal=1  the text comes as `refusal`; role=0 leaves out the first chunk with the role
    finish     stop | length | content_filter | tool_calls | none
    prompt_tokens, completion_tokens                        what the usage chunk says
    fault      names of `FAULTS`, joined by `+`
    after      the deltas before a fault mid-stream
    code, retry_after, message, error_code                  of an error answer
    fail_times, id                                          only the first attempts with this id fail
    size, batch                                             bytes of huge things; events in one write
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

MAX_LENGTH: Final = 4096
"""The most characters that a script may have."""

MAX_SIZE: Final = 256 * 2**20
"""The most bytes that `size` and `text=x<N>` may ask for."""

ANSWER_FAULTS: Final = frozenset(
    {"cut_headers", "echo_key", "garbage", "html", "huge_error_body", "redirect", "stall_headers", "status"}
)
"""No stream is begun: an error, another kind of answer, or none."""

BREAKS: Final = frozenset(
    {
        "bad_json",
        "bad_utf8",
        "cut_fin",
        "cut_mid",
        "end_early",
        "error_event",
        "no_done",
        "stall_after_finish",
        "stall_first",
        "stall_mid",
    }
)
"""Where and how the stream goes wrong."""

SHAPES: Final = frozenset(
    {
        "bom",
        "coalesced",
        "comments",
        "cr_only",
        "crlf",
        "empty_choices",
        "gzip",
        "header_flood",
        "huge_event",
        "multiline_data",
        "one_byte",
        "slow_drip",
        "tool_calls",
        "unused_fields",
    }
)
"""A whole and valid stream in an unusual form; these may be joined with each other and with a break."""

FAULTS: Final = ANSWER_FAULTS | BREAKS | SHAPES

FINISHES: Final = frozenset({"stop", "length", "content_filter", "tool_calls", "none"})

_FILLER = re.compile(r"x([1-9][0-9]{0,8})")
_TEXTS = frozenset({"answer", "words", "cjk", "emoji", "stamp", "echo"})


class ScriptError(ValueError):
    """The text is no script; the message names the key or value that is wrong."""


@dataclass(frozen=True, slots=True)
class Script:
    """One reply, as asked for. Times in milliseconds, sizes in bytes."""

    deltas: int | None = None
    """How many deltas carry text; None: as many as the text has pieces."""
    interval_ms: float = 100.0
    first_ms: float = 0.0
    headers_ms: float = 0.0
    text: str = "answer"
    filler_bytes: int = 0
    """The size of each delta for `text=x<N>`, else 0."""
    refusal: bool = False
    role: bool = True
    finish: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    faults: frozenset[str] = frozenset()
    after: int = 3
    code: int | None = None
    retry_after: str | None = None
    message: str | None = None
    error_code: str | None = None
    fail_times: int = 0
    """How many attempts with the same `id` meet the faults; 0: all of them."""
    id: str = ""
    size: int = 4 * 2**20
    batch: int = 10

    @property
    def answer_fault(self) -> str | None:
        """The fault that replaces the stream, if one is asked for."""
        return next(iter(self.faults & ANSWER_FAULTS), None)

    @property
    def break_(self) -> str | None:
        """The fault at which the stream goes wrong, if one is asked for."""
        return next(iter(self.faults & BREAKS), None)

    @property
    def finish_reason(self) -> str | None:
        """What the last choice says; None when the stream says nothing."""
        if "tool_calls" in self.faults and self.finish == "stop":
            return "tool_calls"
        return None if self.finish == "none" else self.finish


def parse_script(text: str) -> Script:
    """Read a model name or an `X-Demo` header.

    Args:
        text: `demo:key=value,…`; anything that does not begin with `demo:` asks for the default.

    Raises:
        ScriptError: an unknown key, a value out of range, or faults that exclude each other.
    """
    if not text.startswith("demo:"):
        return Script()
    if len(text) > MAX_LENGTH:
        raise ScriptError(f"'{_shortened(text)}' is longer than {MAX_LENGTH} characters")
    return _parse(text)


@lru_cache(maxsize=128)
def _parse(text: str) -> Script:
    """Parse; benchmarks ask for the same few scripts thousands of times."""
    values: dict[str, object] = {}
    for pair in text.removeprefix("demo:").split(","):
        key, equals, raw = pair.strip().partition("=")
        if not equals:
            raise ScriptError(f"'{pair}' in '{_shortened(text)}' is not key=value")
        if key not in _READERS:
            raise ScriptError(f"unknown key '{key}' in '{_shortened(text)}'; known: {', '.join(_READERS)}")
        if key in values:
            raise ScriptError(f"key '{key}' comes twice in '{_shortened(text)}'")
        try:
            values[key] = _READERS[key](unquote(raw))
        except ValueError as wrong:
            raise ScriptError(f"key '{key}' in '{_shortened(text)}': {wrong}") from None
    return _checked(values)


def _checked(values: dict[str, object]) -> Script:
    """Build the script and refuse what contradicts itself."""
    faults = values.pop("fault", frozenset())
    text = str(values.get("text", ""))
    filler = _FILLER.fullmatch(text)
    script = Script(**values, faults=faults, filler_bytes=int(filler[1]) if filler else 0)  # type: ignore[arg-type]  # each reader gives its field's type
    for group in (ANSWER_FAULTS, BREAKS):
        if len(script.faults & group) > 1:
            raise ScriptError(f"faults exclude each other: {' + '.join(sorted(script.faults & group))}")
    if script.answer_fault and len(script.faults) > 1:
        raise ScriptError(f"fault '{script.answer_fault}' stands alone: it replaces the stream")
    if {"crlf", "cr_only"} <= script.faults:
        raise ScriptError("faults exclude each other: cr_only + crlf")
    if bool(script.fail_times) != bool(script.id):
        raise ScriptError("fail_times and id go together: attempts are counted for each id")
    return script


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else text[:100] + "…"  # noqa: PLR2004  # what fits an error line


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(raw: str) -> int:
        if not raw.isascii() or not raw.isdigit() or not low <= int(raw) <= high:
            raise ValueError(f"'{raw}' is not a whole number from {low} to {high}")
        return int(raw)

    return read


def _milliseconds(raw: str) -> float:
    if not re.fullmatch(r"[0-9]{1,8}(\.[0-9]{1,6})?", raw):
        raise ValueError(f"'{raw}' is not a number of milliseconds")
    return float(raw)


def _flag(raw: str) -> bool:
    if raw not in {"0", "1"}:
        raise ValueError(f"'{raw}' is neither 0 nor 1")
    return raw == "1"


def _text(raw: str) -> str:
    filler = _FILLER.fullmatch(raw)
    if raw not in _TEXTS and (filler is None or int(filler[1]) > MAX_SIZE):
        raise ValueError(f"'{raw}' is none of {', '.join(sorted(_TEXTS))}, x<bytes>")
    return raw


def _finish(raw: str) -> str:
    if raw not in FINISHES:
        raise ValueError(f"'{raw}' is none of {', '.join(sorted(FINISHES))}")
    return raw


def _faults(raw: str) -> frozenset[str]:
    names = raw.split("+")
    for name in names:
        if name not in FAULTS:
            raise ValueError(f"'{name}' is none of {', '.join(sorted(FAULTS))}")
    return frozenset(names)


def _word(raw: str) -> str:
    if not raw:
        raise ValueError("it is empty")
    return raw


def _header_value(raw: str) -> str:
    if not re.fullmatch(r"[\x20-\x7e]+", raw):
        raise ValueError("it can't stand in a header")
    return raw


_COUNT = _whole(0, 100_000_000)
_READERS: Mapping[str, Callable[[str], object]] = {
    "deltas": _COUNT,
    "interval_ms": _milliseconds,
    "first_ms": _milliseconds,
    "headers_ms": _milliseconds,
    "text": _text,
    "refusal": _flag,
    "role": _flag,
    "finish": _finish,
    "prompt_tokens": _COUNT,
    "completion_tokens": _COUNT,
    "fault": _faults,
    "after": _COUNT,
    "code": _whole(200, 599),
    "retry_after": _header_value,
    "message": _word,
    "error_code": _word,
    "fail_times": _whole(1, 1000),
    "id": _word,
    "size": _whole(1, MAX_SIZE),
    "batch": _whole(1, 10_000),
}
