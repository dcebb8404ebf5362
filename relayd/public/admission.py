"""Who may start a request: decided from the headers alone, before any of the body is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tornado.httputil import HTTPHeaders

from relayd.relay.failure import Code, Failure
from relayd.relay.intake import Intake
from relayd.relay.registry import Registry
from relayd.state.records import RequestRecord

_SCHEME = "bearer "
# Python's own idea of white space has bytes in it that belong to a key.
_WHITESPACE = " \t"


class Holder(Protocol):
    """Whose key it was."""

    @property
    def key_id(self) -> str:
        """The key's public id."""
        ...

    @property
    def client(self) -> str:
        """The name of the client that it belongs to."""
        ...


class Keys(Protocol):
    """What admission asks of the key ring."""

    def verify(self, presented: bytes) -> Holder | None:
        """The holder of a live key, or None."""
        ...

    def former(self, presented: bytes) -> Holder | None:
        """Whose key a refused one was, or None."""
        ...

    def used(self, key_id: str, ip: str) -> None:
        """Note a key's use."""
        ...


@dataclass(slots=True)
class Admission:
    """The checks in order: key, intake, size, places. `max_body_bytes` may change live."""

    keys: Keys
    intake: Intake
    registry: Registry
    max_body_bytes: int

    def identify(self, headers: HTTPHeaders, record: RequestRecord) -> None:
        """Put down whose request this is; also where the key is dead, so that its holder can be told.

        Raises:
            Failure: `unauthorized`, the same for every reason.
        """
        presented = _presented(headers)
        holder = self.keys.verify(presented)
        known = holder or self.keys.former(presented)
        if known is not None:
            record.key_id, record.client = known.key_id, known.client
        if holder is None:
            raise unauthorized()
        self.keys.used(holder.key_id, record.ip)

    def check_intake(self, headers: HTTPHeaders) -> None:
        """Whether one more request fits, before its body.

        Raises:
            Failure: `draining` or `too_large`.
        """
        refusal = self.intake.refusal()
        if refusal is not None:
            raise refusal
        length = headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > self.max_body_bytes:
            raise self.too_large()

    def too_large(self) -> Failure:
        """The failure of a body over the limit."""
        return Failure(Code.TOO_LARGE, f"The body may have at most {self.max_body_bytes} bytes.")


def unauthorized() -> Failure:
    """The one answer to every key that is not valid, whatever is wrong with it."""
    return Failure(Code.UNAUTHORIZED, "The Authorization header has no key that is valid here.")


def _presented(headers: HTTPHeaders) -> bytes:
    """The key as it was sent; what cannot be a key becomes empty, which no key equals."""
    values = headers.get_list("Authorization")
    if len(values) != 1:
        return b""
    value = values[0].strip(_WHITESPACE)
    if value[: len(_SCHEME)].lower() == _SCHEME:
        value = value[len(_SCHEME) :].strip(_WHITESPACE)
    # Tornado decodes headers as Latin-1, so this gives back the bytes that were sent.
    return value.encode("latin-1", "replace")
