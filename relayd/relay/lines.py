"""What a client reads: one JSON object a line, keys in a fixed order (contract, section 1)."""

from __future__ import annotations

import msgspec

from relayd.relay.failure import Failure

_encode = msgspec.json.Encoder().encode

_DELTA_HEAD = b'{"done":false,"error":false,"content":'
_ERROR_HEAD = b'{"done":false,"error":true,"content":'
_DONE_HEAD = b'{"done":true,"error":false,"content":"[DONE]"'

DONE = _DONE_HEAD + b"}\n"
HEARTBEAT = _DELTA_HEAD + b'""}\n'


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the provider counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


def delta_line(content: str) -> bytes:
    """The line of one piece of text."""
    return _DELTA_HEAD + _encode(content) + b"}\n"


def done_line(finish_reason: str | None, usage: Usage | None) -> bytes:
    """The last line of a client that asked for usage; unknown values are null."""
    return b'%b,"finish_reason":%b,"usage":%b}\n' % (_DONE_HEAD, _encode(finish_reason), _encode(usage))


def error_line(failure: Failure) -> bytes:
    """The line of a failure; the done line follows it."""
    return _ERROR_HEAD + _encode(str(failure)) + b"}\n"
