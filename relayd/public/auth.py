"""Whose request this is, from its Authorization header."""

from __future__ import annotations

from typing import Protocol

from tornado.httputil import HTTPHeaders

from relayd.relay.errors import ErrorCode, RelayError

_SCHEME = "bearer "
# Python's own idea of white space has bytes in it that belong to a key.
_WHITESPACE = " \t"


class KeyHolder(Protocol):
    """Whose key it was."""

    @property
    def key_id(self) -> str:
        """The key's public id."""

    @property
    def client(self) -> str:
        """Name of the client that it belongs to."""


class KeyRing(Protocol):
    """What authentication asks of the key ring."""

    @property
    def is_stale(self) -> bool:
        """Whether `verify` refuses to say anything."""

    def verify(self, presented: bytes) -> KeyHolder | None:
        """Return the holder of a valid key, or None. Raises StateError if it can't be known."""

    def former_owner(self, presented: bytes) -> KeyHolder | None:
        """Return whose key a refused one was, or None."""

    def record_use(self, key_id: str, ip: str) -> None:
        """Note that a key was used."""


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
