"""How records lie in SQL columns: derived from the fields of `RequestRecord`, without any I/O."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

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


Values = tuple[Storable, ...]


@dataclass(frozen=True, slots=True)
class FilterField:
    """A field of one kind of row, as a filter sees it; of a request, as its table does, too."""

    name: str
    read: Callable[[Any], Values]
    """Returns its values in a row as the database holds them: one, or as many as a list has."""
    is_number: bool = False
    """Whether it holds whole numbers."""
    is_real: bool = False
    """Whether it holds numbers with a fraction."""
    is_list: bool = False
    """Whether a row may have several values: `=` holds if one of them is equal, `!=` if none is."""
    choices: tuple[str, ...] = ()
    """Every value that an enumeration has; empty for other types."""
    declaration: str = ""
    """The SQL type of its columns, with NOT NULL and default."""
    columns: tuple[str, ...] = ()
    """Where it lies in the `requests` table; comparisons use the first."""

    @property
    def is_text(self) -> bool:
        """Whether it holds texts."""
        return not (self.is_number or self.is_real)


def fields_of(kind: type[msgspec.Struct], at: str = "") -> dict[str, FilterField]:
    """Return the fields of a struct that are texts, numbers, or lists of texts.

    Args:
        kind: the struct.
        at: where a row has it: `progress.`; empty if it is the row itself.
    """
    described = cast("msgspec.inspect.StructType", msgspec.inspect.type_info(kind))
    return {
        field.name: _field_of(field, operator.attrgetter(f"{at}{field.name}"))
        for field in described.fields
        if not isinstance(field.type, msgspec.inspect.StructType)
    }


def _field_of(field: msgspec.inspect.Field, read: Callable[[Any], Any]) -> FilterField:
    kind = field.type
    is_nullable = isinstance(kind, msgspec.inspect.UnionType)
    if isinstance(kind, msgspec.inspect.UnionType):
        (kind,) = (member for member in kind.types if not isinstance(member, msgspec.inspect.NoneType))
    is_number = isinstance(kind, msgspec.inspect.IntType)
    is_real = isinstance(kind, msgspec.inspect.FloatType)
    is_list = isinstance(kind, msgspec.inspect.VarTupleType)
    declaration = "INTEGER" if is_number else "REAL" if is_real else "TEXT"
    if not is_nullable:
        declaration += " NOT NULL"
        if field.default is not msgspec.NODEFAULT:
            # What old rows get when a later release adds the column.
            declaration += f" DEFAULT {field.default}" if is_number else f" DEFAULT '{field.default}'"
    return FilterField(
        field.name,
        (lambda row: tuple(map(storable, read(row)))) if is_list else lambda row: (storable(read(row)),),
        is_number,
        is_real,
        is_list,
        choices=tuple(kind.cls) if isinstance(kind, msgspec.inspect.EnumType) else (),
        declaration=declaration,
        columns=(field.name,),
    )


def _read_error(record: RequestRecord) -> Values:
    error = record.error
    return (None,) if error is None else (storable_text(error.code), storable_text(error.message))


REQUEST_FIELDS = fields_of(RequestRecord)
"""The fields of a `RequestRecord`. An error is compared by its code, and searched in both of its texts."""
# The fields that are not simply a column of their own name.
_SPECIAL = {
    "seq": replace(REQUEST_FIELDS["seq"], columns=("start_seq",)),
    "error": replace(REQUEST_FIELDS["error"], columns=("error_code", "error_message"), read=_read_error),
}
REQUEST_FIELDS |= _SPECIAL

_PLAIN = [name for name in REQUEST_FIELDS if name not in _SPECIAL]
_read_plain = operator.attrgetter(*_PLAIN)

COLUMNS = {
    "start_seq": "INTEGER PRIMARY KEY",
    "end_seq": "INTEGER",
    "error_code": "TEXT",
    "error_message": "TEXT",
    **{name: REQUEST_FIELDS[name].declaration for name in _PLAIN},
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
        REQUEST_FIELDS, seq="start_seq", error=f"CASE WHEN error_code IS NULL THEN NULL ELSE {error} END"
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
    """Return the placeholders of this many rows."""
    one_row = f"({', '.join('?' * len(COLUMNS))})"
    return f"VALUES {', '.join([one_row] * rows)}"
