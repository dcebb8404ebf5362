"""What a client of /chat reads: one JSON object a line, keys in a fixed order."""

from __future__ import annotations

import msgspec

from relayd.relay.chunks import Usage
from relayd.relay.errors import RelayError

_encode = msgspec.json.Encoder().encode

_DELTA_START = b'{"done":false,"error":false,"content":'
_ERROR_START = b'{"done":false,"error":true,"content":'
_DONE_START = b'{"done":true,"error":false,"content":"[DONE]"'

DONE_LINE = _DONE_START + b"}\n"
HEARTBEAT_LINE = _DELTA_START + b'""}\n'

# Line ends for Python's splitlines, httpx and requests, but not for JSON.
_LINE_SEPARATORS = (("\x85", b"\\u0085"), ("\u2028", b"\\u2028"), ("\u2029", b"\\u2029"))


def delta_line(content: str) -> bytes:
    """Return the line of one piece of text."""
    return _DELTA_START + _json_string(content) + b"}\n"


def done_line(finish_reason: str | None, usage: Usage | None) -> bytes:
    """Return the last line for a client that asked for usage; unknown values are null."""
    return b'%b,"finish_reason":%b,"usage":%b}\n' % (
        _DONE_START,
        b"null" if finish_reason is None else _json_string(finish_reason),
        _encode(usage),
    )


def error_line(error: RelayError) -> bytes:
    """Return the line of an error; the done line follows it."""
    return _ERROR_START + _json_string(str(error)) + b"}\n"


def _json_string(text: str) -> bytes:
    """Encode text so that every line splitter finds the same lines."""
    encoded = _encode(text)
    if not text.isascii():
        for char, escape in _LINE_SEPARATORS:
            if char in text:
                encoded = encoded.replace(char.encode(), escape)
    return encoded
