"""The JSON body of a `/v1` request: a few fields are read, the bytes go on as the client wrote them.

What the provider reads must be what was checked here, whichever of two readings its parser takes. So a name
that stands twice is refused, and so is one that differs from a checked name in the case of its letters only:
Go's encoding/json takes it for the same.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from typing import NamedTuple, TypeVar

import msgspec

from relayd.public.chat_request import without_surrogates
from relayd.relay.errors import ErrorCode, RelayError

_SPACE = rb"[ \t\r\n]*+"
_NAME = re.compile(_SPACE + rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")' + _SPACE + b":" + _SPACE, re.DOTALL)
_AFTER_VALUE = re.compile(_SPACE + rb"([,}])")
_CHECKED = frozenset(
    {
        *("model", "stream", "stream_options", "n", "best_of", "prompt", "background", "store"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens"),
        *("previous_response_id", "conversation"),
    }
)
"""The names whose values decide what a request may do."""
_MAX_NAMES = 1000
_MAX_SHOWN_CHARS = 80
_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_name = msgspec.json.Decoder(str).decode
T = TypeVar("T")


class Span(NamedTuple):
    """Where a value stands."""

    start: int
    end: int


class RequestFields:
    """The top level of a JSON object, each value as its bytes.

    Args:
        body: the object.

    Raises:
        RelayError: `bad_request`, it is no JSON object, or a name is there twice.
    """

    def __init__(self, body: bytes) -> None:
        self.body = body
        start = len(BOM_UTF8) if body.startswith(BOM_UTF8) else 0
        try:
            text, values = body, _decode(body, start)
        except RelayError:
            if b"\\u" not in body:
                raise
            # Half a surrogate pair is forwarded as it is, but msgspec reads none: so it reads a copy without,
            # of the same length.
            text = without_surrogates(body)
            values = _decode(text, start)
        self._text = text
        self._spans = _spans(text, values, start)
        self._edits: list[tuple[int, int, bytes]] = []

    def __contains__(self, name: str) -> bool:
        """Return whether a field is there and not null."""
        return self.raw(name) not in {b"", b"null"}

    def get(self, name: str, kind: type[T], expected: str) -> T | None:
        """Return a field of one type; None if it is absent or null.

        Raises:
            RelayError: `bad_request`, it has another type; `expected` completes "must be".
        """
        if name not in self:
            return None
        try:
            return msgspec.json.decode(self.raw(name), type=kind)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise RelayError(ErrorCode.BAD_REQUEST, f"{name} must be {expected}.") from error

    def raw(self, name: str) -> bytes:
        """Return a value as its bytes; empty if it is absent."""
        span = self._spans.get(name)
        return b"" if span is None else self._text[span.start : span.end]

    def put(self, name: str, value: object) -> None:
        """Give a field a value: in its place, or in front of the others; nothing else of the body changes."""
        span = self._spans.get(name)
        if span is not None:
            self._edits.append((span.start, span.end, msgspec.json.encode(value)))
            return
        at = self.body.index(b"{") + 1
        comma = b"," if self._spans else b""
        self._edits.append((at, at, msgspec.json.encode({name: value})[1:-1] + comma))

    def edit(self, name: str, value: RequestFields) -> None:
        """Replace an object by itself as it was edited."""
        span = self._spans[name]
        self._edits.append((span.start, span.end, value.edited()))

    def nested(self, name: str) -> RequestFields:
        """Return the fields of a value that is an object. Raises as the class does."""
        span = self._spans[name]
        if not self.raw(name).startswith(b"{"):
            raise RelayError(ErrorCode.BAD_REQUEST, f"{name} must be an object.")
        # Not `raw`, in which half a surrogate pair is replaced.
        return RequestFields(self.body[span.start : span.end])

    def edited(self) -> bytes:
        """Return the body: the client's own if nothing was changed."""
        parts: list[bytes] = []
        at = 0
        for start, end, replacement in sorted(self._edits):
            parts += self.body[at:start], replacement
            at = end
        return b"".join([*parts, self.body[at:]])


def _decode(text: bytes, start: int) -> dict[str, msgspec.Raw]:
    try:
        if not text.isascii():
            text.decode()
        raw = _decode_raw(memoryview(text)[start:] if start else text)
    except UnicodeDecodeError as error:
        raise RelayError(ErrorCode.BAD_REQUEST, "The body is not UTF-8.") from error
    except msgspec.ValidationError as error:
        raise RelayError(ErrorCode.BAD_REQUEST, "The body is not a JSON object.") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        said = str(error).rstrip(".")[:_MAX_SHOWN_CHARS]
        raise RelayError(ErrorCode.BAD_REQUEST, f"The body is not JSON: {said}.") from error
    except RecursionError as error:
        raise RelayError(ErrorCode.BAD_REQUEST, "The body is nested too deeply.") from error
    if len(raw) > _MAX_NAMES:
        raise RelayError(ErrorCode.BAD_REQUEST, f"The body has more than {_MAX_NAMES} fields.")
    return raw


def _spans(text: bytes, values: dict[str, msgspec.Raw], start: int) -> dict[str, Span]:
    """Return where each value stands; `text` is known to be JSON, `values` has the last one of each name."""
    spans: dict[str, Span] = {}
    folded: set[str] = set()
    at = text.index(b"{", start) + 1
    while (met := _NAME.match(text, at)) is not None:
        name = _decode_name(met[1])
        value = values[name]
        at = met.end()
        end = at + len(value)
        after = _AFTER_VALUE.match(text, end)
        shown, same = name[:_MAX_SHOWN_CHARS], name.casefold()
        if same in folded or after is None or not text.startswith(value, at):
            raise RelayError(ErrorCode.BAD_REQUEST, f"The field {shown!r} is in the body more than once.")
        if same in _CHECKED and name != same:
            raise RelayError(ErrorCode.BAD_REQUEST, f"The field {shown!r} must be spelt {same!r}.")
        folded.add(same)
        spans[name] = Span(at, end)
        at = after.end()
    return spans
