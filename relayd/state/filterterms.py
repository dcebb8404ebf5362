"""The terms of a filter: which fields there are, and what each term means in memory and in SQL.

Both meanings of a term stand side by side here, because they must give the same answer. A field
that is null fails every comparison except `!=` and `!~`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from relayd.state.records import RequestRecord
from relayd.state.stored import INT_MAX, fold_ascii, storable_int, storable_text

TEXT_FIELDS = (
    "id",
    "boot_id",
    "started_at",
    "client",
    "key_id",
    "ip",
    "origin",
    "user_agent",
    "path",
    "model",
    "phase",
    "outcome",
    "finish_reason",
    "upstream_request_id",
    "error",
)
NUMBER_FIELDS = (
    "seq",
    "status",
    "connect_ms",
    "first_token_ms",
    "duration_ms",
    "stalled_ms",
    "deltas",
    "bytes_out",
    "prompt_tokens",
    "completion_tokens",
)

# Where a field's column has another name, or more than one. Exact comparison uses the first.
_COLUMNS = {"seq": ("start_seq",), "error": ("error_code", "error_message")}

# LIKE folds ASCII case only, as `fold_ascii` does, and is three times as fast as instr() over lower().
_LIKE = r"LIKE ? ESCAPE '\'"
_WILDCARD = re.compile(r"[%_\\]")
_ESCAPED = r"\\\g<0>"
_NUMBER = re.compile(r"0|-?[1-9][0-9]*")
"""A number as it is written by `str`: `007` and `-0` are only texts."""

Test = Callable[[RequestRecord], bool]
Where = tuple[str, list[object]]


class Op(StrEnum):
    """How a field is held against a value; `~` finds a substring and ignores ASCII case."""

    EQ = "="
    NE = "!="
    GT = ">"
    GE = ">="
    LT = "<"
    LE = "<="
    HAS = "~"
    HAS_NOT = "!~"


_ORDER: dict[Op, Callable[[str | int, str | int], bool]] = {
    Op.EQ: operator.eq,
    Op.GT: operator.gt,
    Op.GE: operator.ge,
    Op.LT: operator.lt,
    Op.LE: operator.le,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """`field op value`; the value is an int where a number field is compared as a number."""

    field: str
    op: Op
    value: str | int

    def test(self) -> Test:
        """The term as a predicate."""
        if self.op in (Op.HAS, Op.HAS_NOT):
            return self._substring_test()
        read, value = _reader(self.field), self.value
        if self.op is Op.NE:
            return lambda record: read(record) != value
        holds = _ORDER[self.op]

        def ordered(record: RequestRecord) -> bool:
            found = read(record)
            return found is not None and holds(found, value)

        return ordered

    def where(self) -> Where:
        """The term as an SQL expression with bound parameters."""
        columns = _columns(self.field)
        if self.op in (Op.HAS, Op.HAS_NOT):
            found = " OR ".join(f"{column} {_LIKE}" for column in columns)
            wanted = "IS 1" if self.op is Op.HAS else "IS NOT 1"
            return f"({found}) {wanted}", [_pattern(str(self.value))] * len(columns)
        sign = "IS NOT" if self.op is Op.NE else self.op.value
        return f"{columns[0]} {sign} ?", [self.value]

    def _substring_test(self) -> Test:
        needle, wanted = fold_ascii(str(self.value)), self.op is Op.HAS
        if self.field == "error":
            return lambda record: _in_error(record, needle) is wanted
        read = _reader(self.field)

        def contains(record: RequestRecord) -> bool:
            found = read(record)
            return (found is not None and needle in fold_ascii(str(found))) is wanted

        return contains


@dataclass(frozen=True, slots=True)
class Word:
    """A bare word: a part of any text field, or the whole of any number."""

    text: str

    def test(self) -> Test:
        """The term as a predicate."""
        needle = fold_ascii(self.text)
        texts = [_reader(field) for field in TEXT_FIELDS if field != "error"]
        numbers = [_reader(field) for field in NUMBER_FIELDS]

        def anywhere(record: RequestRecord) -> bool:
            for read in texts:
                found = cast("str | None", read(record))
                if found is not None and needle in fold_ascii(found):
                    return True
            return _in_error(record, needle) or any(str(read(record)) == needle for read in numbers)

        return anywhere

    def where(self) -> Where:
        """The term as an SQL expression with bound parameters."""
        texts = [column for field in TEXT_FIELDS for column in _columns(field)]
        parts = [f"{column} {_LIKE}" for column in texts]
        values: list[object] = [_pattern(self.text)] * len(parts)
        if _NUMBER.fullmatch(self.text) and abs(int(self.text)) <= INT_MAX:
            numbers = [column for field in NUMBER_FIELDS for column in _columns(field)]
            parts += [f"{column} = ?" for column in numbers]
            values += [int(self.text)] * len(numbers)
        return f"({' OR '.join(parts)})", values


Term = Comparison | Word


def _columns(field: str) -> tuple[str, ...]:
    return _COLUMNS.get(field, (field,))


def _pattern(needle: str) -> str:
    """What LIKE has to be given to find the needle anywhere, its wildcards taken literally."""
    return f"%{_WILDCARD.sub(_ESCAPED, needle)}%"


def _reader(field: str) -> Callable[[RequestRecord], str | int | None]:
    """How to read a field as the database would hold it."""
    if field == "error":
        return lambda record: None if record.error is None else storable_text(record.error.code)
    read = operator.attrgetter(field)

    def number(record: RequestRecord) -> int | None:
        found: int | None = read(record)
        return None if found is None else storable_int(found)

    def text(record: RequestRecord) -> str | None:
        found: str | None = read(record)
        return None if found is None else storable_text(found)

    return number if field in NUMBER_FIELDS else text


def _in_error(record: RequestRecord, needle: str) -> bool:
    error = record.error
    if error is None:
        return False
    return any(needle in fold_ascii(storable_text(text)) for text in (error.code, error.message))
