"""An upload that passes through: its small fields are read, its files are not kept."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from relayd.relay.errors import ErrorCode, RelayError

FIELDS = frozenset({"model", "n", "stream"})
"""The fields whose values decide what a request may do."""
_MAX_FIELD_BYTES = 1024
# A parameter of a header (RFC 9110, 5.6.6).
_PARAMETER = re.compile(rb';\s*([^\s;="]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;"]*)')
# Of Content-Transfer-Encoding.
_UNENCODED = frozenset({b"7bit", b"8bit", b"binary"})


class FieldValue(NamedTuple):
    """A field, and where its value stands in the body."""

    text: str
    start: int
    end: int


class MultipartReader:
    """Follows a body of `multipart/form-data` (RFC 7578) as it comes.

    Args:
        content_type: of the request.

    Raises:
        RelayError: `bad_request`, from here and from `feed`: the body cannot be read, or has a checked field
            twice.
    """

    def __init__(self, content_type: str) -> None:
        kind = content_type.partition(";")[0].strip().lower()
        boundary = _parameter(content_type.encode("latin-1"), b"boundary")
        if kind != "multipart/form-data" or not boundary:
            raise RelayError(ErrorCode.BAD_REQUEST, "An upload must be multipart/form-data with a boundary.")
        self.fields: dict[str, FieldValue] = {}
        """The checked fields so far."""
        self.late: set[str] = set()
        """Those that were not whole before a file began, or before the upload was passed on."""
        self.has_file = False
        """Whether a file has begun."""
        self._is_passed_on = False
        self._fed_bytes = 0
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._is_encoded = False
        self._name: str | None = None
        """The checked field that is being read."""
        self._value = b""
        self._value_end = 0
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_part_data": self._take_data,
                    "on_part_end": self._end_part,
                    "on_header_field": self._take_header_name,
                    "on_header_value": self._take_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                },
            )
        except FormParserError as error:
            raise RelayError(ErrorCode.BAD_REQUEST, "The boundary of the upload is too long.") from error

    def pass_on(self) -> None:
        """Note that what has come was passed on: checked fields that are not whole are late."""
        self._is_passed_on = True
        if self._name is not None:
            self.late.add(self._name)

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise RelayError(ErrorCode.BAD_REQUEST, "The body is not valid multipart/form-data.") from error
        self._fed_bytes += len(data)

    def _begin_part(self) -> None:
        self._disposition, self._is_encoded = b"", False

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        name = self._header_name.lower()
        if name == b"content-disposition":
            # Two of them have two names.
            self._disposition += b";" + self._header_value
        elif name == b"content-transfer-encoding":
            self._is_encoded = self._header_value.strip().lower() not in _UNENCODED
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        name = _parameter(self._disposition, b"name").decode("utf-8", "replace")
        parameters = [parameter.lower() for parameter, _ in _PARAMETER.findall(self._disposition)]
        is_file = b"filename" in parameters or b"filename*" in parameters
        self._name, self._value, self._value_end = None, b"", 0
        self.has_file |= is_file
        if name.casefold() not in FIELDS:
            return
        if name in self.fields or name != name.casefold() or is_file or self._is_encoded:
            raise RelayError(
                ErrorCode.BAD_REQUEST, f"The field {name.casefold()} must be there once, as text."
            )
        self._name = name
        if self.has_file or self._is_passed_on:
            self.late.add(name)

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is None:
            return
        self._value += data[start:end]
        self._value_end = self._fed_bytes + end
        if len(self._value) > _MAX_FIELD_BYTES:
            raise RelayError(ErrorCode.BAD_REQUEST, f"The field {self._name} is too long.")

    def _end_part(self) -> None:
        if self._name is None:
            return
        try:
            text = self._value.decode()
        except UnicodeDecodeError as error:
            raise RelayError(ErrorCode.BAD_REQUEST, f"The field {self._name} is not UTF-8.") from error
        end = self._value_end
        self.fields[self._name] = FieldValue(text, end - len(self._value), end)
        self._name = None


def _parameter(header: bytes, wanted: bytes) -> bytes:
    """Return a parameter of a header; empty if it is not there.

    Raises:
        RelayError: `bad_request`, servers would read it differently: it is there twice, or as `name*`
            (RFC 8187), or with escapes.
    """
    found = [
        (name, value)
        for name, value in _PARAMETER.findall(header)
        if name.lower().partition(b"*")[0] == wanted
    ]
    if not found:
        return b""
    (name, value), *others = found
    if others or b"*" in name or b"\\" in value:
        raise RelayError(ErrorCode.BAD_REQUEST, f"The upload has a {wanted.decode()} that is ambiguous.")
    return bytes(value.strip(b'"'))


class BodyPipe:
    """Hands a request's body on piece by piece: one waits, and the next is not taken before it is gone.

    Iterate over it once; it raises what `fail` was given.
    """

    def __init__(self) -> None:
        self._piece = b""
        self._has_ended = False
        self._is_closed = False
        self._error: RelayError | None = None
        self._changed = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether a piece waits to be taken."""
        return bool(self._piece)

    async def put(self, piece: bytes) -> None:
        """Wait until there is room, and leave a piece; it is dropped if nothing will read it."""
        while self._piece and not self._is_closed:
            self._changed.clear()
            await self._changed.wait()
        if not self._is_closed:
            self._piece = piece
            self._changed.set()

    def end(self) -> None:
        """Note that the body is whole."""
        self._has_ended = True
        self._changed.set()

    def fail(self, error: RelayError) -> None:
        """Break the body off."""
        self._error = error
        self._changed.set()

    def close(self) -> None:
        """Drop what comes from now on."""
        self._is_closed = True
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the pieces."""
        while True:
            if self._error is not None:
                raise self._error
            if self._piece:
                piece, self._piece = self._piece, b""
                self._changed.set()
                yield piece
            elif self._has_ended:
                return
            else:
                self._changed.clear()
                await self._changed.wait()
