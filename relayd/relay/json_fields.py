"""Finds a few fields of a JSON document that passes through, whatever its size and however it is split."""

from __future__ import annotations

import re
from collections.abc import Mapping

_MAX_NAME_BYTES = 64
_MAX_VALUE_BYTES = 8 << 10
# One search ends at the next byte that means something in the state of the scan.
_IN_STRING = re.compile(rb'["\\]')
_STRUCTURE = re.compile(rb'["{}\[\]]')
_IN_VALUE = re.compile(rb'["{}\[\],]')
_AFTER_STRING = re.compile(rb"[^ \t\r\n]")


class FieldScanner:
    """Keeps the raw values of wanted names; what is not JSON has none.

    Args:
        wanted: names, each with the depth at which it counts: 1 in the outermost object, 2 in an object or
            array in it, and so on.
    """

    def __init__(self, wanted: Mapping[bytes, int]) -> None:
        self._wanted = wanted
        self.found: dict[bytes, bytes] = {}
        """The raw values by name, the first of each."""
        self._depth = 0
        self._string: bytearray | None = None
        """The string that may be a wanted name."""
        self._in_string = False
        self._is_escaped = False
        self._after_string = False
        self._value: bytearray | None = None
        """What has come of a wanted value before the bytes at hand."""
        self._value_at = 0
        """Where it begins or continues in them."""
        self._name = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        at = 1 if self._is_escaped else 0
        self._is_escaped = False
        self._value_at = 0
        while at < len(data):
            met = self._pattern().search(data, at)
            if self._in_string:
                self._add_to_name(data[at : len(data) if met is None else met.start()])
            if met is None:
                break
            at = met.end()
            if self._in_string and met[0] == b"\\":
                # What follows is part of the string; a name with escapes is not wanted.
                self._string = None
                self._is_escaped = at == len(data)
                at += 1
            elif self._in_string:
                self._in_string = False
                self._after_string = self._string is not None
            elif self._after_string:
                self._after_string = False
                if met[0] == b":":
                    self._begin_value(at)
                else:
                    # The string was a value: look at this byte again.
                    at -= 1
            else:
                self._meet(data, met.start())
        if self._value is not None:
            self._value += data[self._value_at :]
            if len(self._value) > _MAX_VALUE_BYTES:
                self._value = None

    def _pattern(self) -> re.Pattern[bytes]:
        if self._in_string:
            return _IN_STRING
        if self._after_string:
            return _AFTER_STRING
        return _STRUCTURE if self._value is None else _IN_VALUE

    def _add_to_name(self, part: bytes) -> None:
        if self._string is not None:
            self._string += part
            if len(self._string) > _MAX_NAME_BYTES:
                self._string = None

    def _begin_value(self, at: int) -> None:
        name = bytes(self._string or b"")
        if self._value is None and self._wanted.get(name) == self._depth and name not in self.found:
            self._name, self._value, self._value_at = name, bytearray(), at

    def _meet(self, data: bytes, at: int) -> None:
        """Take a byte of the structure: a quote, a bracket, or a comma behind a wanted value."""
        byte = data[at : at + 1]
        if byte == b'"':
            self._in_string = True
            self._string = bytearray() if self._value is None else None
            return
        if byte in b"{[":
            self._depth += 1
            return
        if self._value is not None and self._depth == self._wanted[self._name]:
            self.found[self._name] = bytes(self._value + data[self._value_at : at]).strip()
            self._value = None
        if byte in b"}]":
            self._depth -= 1
