"""Whose request this is, from its Authorization header."""

from __future__ import annotations

from tornado.httputil import HTTPHeaders

from relayd.relay.errors import ErrorCode, RelayError

_SCHEME = "bearer "
# Python's own idea of white space has bytes in it that belong to a key.
_WHITESPACE = " \t"


def presented_key(headers: HTTPHeaders) -> bytes:
    """Return the key as it was sent, without `Bearer`; empty, which no key equals, if there is not one."""
    values = headers.get_list("Authorization")
    if len(values) != 1:
        return b""
    value = values[0].strip(_WHITESPACE)
    if value[: len(_SCHEME)].lower() == _SCHEME:
        value = value[len(_SCHEME) :].strip(_WHITESPACE)
    # Tornado decodes headers as Latin-1, so this gives back the bytes that were sent.
    return value.encode("latin-1", "replace")


def unauthorized() -> RelayError:
    """Return the one error for every key that is not valid, whatever is wrong with it."""
    return RelayError(ErrorCode.UNAUTHORIZED, "The Authorization header has no valid key.")


def unverifiable(reason: str) -> RelayError:
    """Return the error of every key while nothing says whether it is valid; `reason` is for the record."""
    return RelayError(
        ErrorCode.STATE_UNAVAILABLE,
        "This relay cannot ask its database whether the key is valid; try again shortly.",
        recorded=reason,
    )
