"""How records lie in SQL columns: derived from the fields of `RequestRecord`, without any I/O."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from functools import cache
from typing import cast

import msgspec

from relayd.state.engine import Dialect
from relayd.state.records import RequestRecord, RequestStart

INT_MAX = 2**63 - 1
"""Both engines keep signed 64-bit integers."""

Row = tuple["Storable", ...]

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def storable_text(text: str) -> str:
    """Replace each NUL and each lone surrogate by U+FFFD, one for one.

    SQLite's text functions stop at NUL, PostgreSQL refuses it, and UTF-8 has no lone surrogates.
    """
    if text.isascii() and "\0" not in text:
        return text
    return _UNSTORABLE.sub("\ufffd", text)


def storable_int(number: int) -> int:
    """Return the number, or the nearest that fits in 64 bits: a provider may claim any token count."""
    return max(-INT_MAX, min(number, INT_MAX))


Storable = str | int | float | None


def storable(value: Storable) -> Storable:
    """Return the value as the database can hold it."""
    if isinstance(value, str):
        return storable_text(value)
    return storable_int(value) if isinstance(value, int) else value


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a record, as a table and the filter see it."""

    name: str
    columns: tuple[str, ...]
    """Where it lies in the `requests` table; comparisons use the first."""
    declaration: str
    """The SQL type of these columns, with NOT NULL and default."""
    is_number: bool
    """Whether it holds whole numbers."""
    is_real: bool
    """Whether it holds numbers with a fraction."""
    choices: tuple[str, ...]
    """Every value that an enumeration has; empty for other types."""

    @property
    def is_text(self) -> bool:
        """Whether it holds texts, or the two texts of an error."""
        return not (self.is_number or self.is_real)


# The fields that are not simply a column of their own name.
_SPECIAL_COLUMNS = {"seq": ("start_seq",), "error": ("error_code", "error_message")}


def field_of(field: msgspec.inspect.Field) -> Field:
    """Return the field of a struct as a table and a filter see it."""
    kind = field.type
    is_nullable = isinstance(kind, msgspec.inspect.UnionType)
    if isinstance(kind, msgspec.inspect.UnionType):
        (kind,) = (member for member in kind.types if not isinstance(member, msgspec.inspect.NoneType))
    is_number = isinstance(kind, msgspec.inspect.IntType)
    is_real = isinstance(kind, msgspec.inspect.FloatType)
    declaration = "INTEGER" if is_number else "REAL" if is_real else "TEXT"
    if not is_nullable:
        declaration += " NOT NULL"
        if field.default is not msgspec.NODEFAULT:
            # What old rows get when a later release adds the column.
            declaration += f" DEFAULT {field.default}" if is_number else f" DEFAULT '{field.default}'"
    return Field(
        name=field.name,
        columns=_SPECIAL_COLUMNS.get(field.name, (field.name,)),
        declaration=declaration,
        is_number=is_number,
        is_real=is_real,
        choices=tuple(kind.cls) if isinstance(kind, msgspec.inspect.EnumType) else (),
    )


_record_type = cast("msgspec.inspect.StructType", msgspec.inspect.type_info(RequestRecord))
FIELDS = {field.name: field_of(field) for field in _record_type.fields}
"""The fields of a request record by name."""

_PLAIN = [name for name in FIELDS if name not in _SPECIAL_COLUMNS]
_read_plain = operator.attrgetter(*_PLAIN)

COLUMNS = {
    "start_seq": "INTEGER PRIMARY KEY",
    "end_seq": "INTEGER",
    "error_code": "TEXT",
    "error_message": "TEXT",
    **{name: FIELDS[name].declaration for name in _PLAIN},
}
"""The columns of the `requests` table and their declarations, in the order of a row."""


def to_row(record: RequestRecord, start_seq: int, end_seq: int | None) -> Row:
    """Return the values of `COLUMNS` for a record, each such that the database can hold it."""
    error = record.error
    code, message = (None, None) if error is None else (error.code, error.message)
    return (start_seq, end_seq, *map(storable, (code, message, *_read_plain(record))))


@cache
def record_json(dialect: Dialect) -> str:
    """Return the SQL expression that gives a row of `requests` as the JSON of a `RequestRecord`."""
    error = dialect.json_object(("code", "message"), code="error_code", message="error_message")
    return dialect.json_object(
        FIELDS, seq="start_seq", error=f"CASE WHEN error_code IS NULL THEN NULL ELSE {error} END"
    )


@cache
def start_json(dialect: Dialect) -> str:
    """Return the same for what was known at its start."""
    return dialect.json_object(RequestStart.__struct_fields__, seq="start_seq")


def upsert_sql(values: str) -> str:
    """Return the statement that inserts rows, or brings those that are there up to date.

    A row of another request at the same place stays as it is.

    Args:
        values: what follows the columns: `VALUES` or a query.
    """
    fixed = ("start_seq", "id", "boot_id", "started_at")
    updates = ", ".join(f"{column} = excluded.{column}" for column in COLUMNS if column not in fixed)
    return (
        f"INSERT INTO requests ({', '.join(COLUMNS)}) {values}"
        f" ON CONFLICT (start_seq) DO UPDATE SET {updates} WHERE requests.id = excluded.id"
    )


def values_sql(rows: int) -> str:
    """Return the placeholders of so many rows."""
    one_row = f"({', '.join('?' * len(COLUMNS))})"
    return f"VALUES {', '.join([one_row] * rows)}"
