r"""The filter language of the rows of relayd: one parser for the command line, the admin API and the app.

    status>=500 model~gpt-4                both must hold
    status>=500 or first_token_ms>2000     either; `or` binds weaker than a space
    client="night batch" 10.0.0.4          quoted value; a bare word matches anywhere
    ip=10.0.0.0/8                          any address of a network

Operators: = != > >= < <= and ~ !~ (contains or not; ASCII case does not matter). In quotes, `\"` is
a quote and `\\` a backslash. A field that is null matches only `!=` and `!~`.

Each kind of row has its own fields (`relayd.state.columns.fields_of`). Over requests each term has two
meanings, a predicate and an SQL expression, side by side here because they must give the same answer.
"""

from __future__ import annotations

import difflib
import ipaddress
import operator
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

from relayd.state.columns import INT_MAX, REQUEST_FIELDS, FilterField, Values, storable_text
from relayd.state.engine import Dialect

MAX_CHARS = 2000
MAX_TERMS = 50

_JOINER = re.compile(r"(or|and)(?=\s|$)", re.IGNORECASE)
_SPACE = re.compile(r"\s*")
_OP = re.compile(r"!=|!~|>=|<=|=|>|<|~")
_WORD = re.compile(r"(?:(?!!=|!~)[^\s=<>~])+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_PLAIN = re.compile(r"\S+")
_DECIMAL = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_POINTER_CHARS = 72
_NAME_CHARS = 40

_ESCAPED = r"? ESCAPE '\'"
_WILDCARD = re.compile(r"[%_\\]")
_NUMBER = re.compile(r"0|-?[1-9][0-9]*")
"""A number as `str` writes it: a bare `007` or `-0` is only a text."""
_CAPITALS = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}

Test = Callable[[Any], bool]
Where = tuple[str, list[object]]


Fields = Mapping[str, FilterField]
"""The fields of one kind of row by name."""


class FilterError(ValueError):
    """The filter can't be understood; `str()` is a sentence.

    `position` and `length` say where, in characters of `text`.
    """

    def __init__(self, message: str, position: int, length: int, text: str = "") -> None:
        super().__init__(message)
        self.position = position
        self.length = length
        self.text = text

    def pointer(self) -> str:
        """Return the filter, and below it carets at the place; a long filter is cut around it."""
        start = max(0, self.position - _POINTER_CHARS // 2)
        shown = self.text[start : start + _POINTER_CHARS]
        line = "".join(char if char.isprintable() else " " for char in shown)
        at = self.position - start
        carets = max(1, _terminal_columns(line[at : at + self.length]))
        return f"{line}\n{' ' * _terminal_columns(line[:at])}{'^' * carets}"


def _terminal_columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


class Op(StrEnum):
    """How a field is compared with a value; `~` finds a substring and ignores ASCII case."""

    EQ = "="
    NE = "!="
    GT = ">"
    GE = ">="
    LT = "<"
    LE = "<="
    CONTAINS = "~"
    LACKS = "!~"


_ORDER: dict[Op, Callable[[Any, Any], bool]] = {
    Op.EQ: operator.eq,
    Op.GT: operator.gt,
    Op.GE: operator.ge,
    Op.LT: operator.lt,
    Op.LE: operator.le,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """`field op value`; the value is a number where a number field is compared as a number."""

    field: str
    op: Op
    value: str | float

    def test(self, fields: Fields) -> Test:
        """Return the term as a predicate."""
        known, value = fields[self.field], self.value
        read = known.read
        if self.op in (Op.CONTAINS, Op.LACKS):
            needle, wanted = _fold_ascii(str(value)), self.op is Op.CONTAINS
            return lambda row: _is_in(needle, read(row)) is wanted
        if self.op is Op.NE:
            return (
                (lambda row: value not in read(row)) if known.is_list else lambda row: read(row)[0] != value
            )
        holds = _ORDER[self.op]
        if known.is_list:
            return lambda row: any(holds(found, value) for found in read(row))

        def ordered(row: object) -> bool:
            found = read(row)[0]
            return found is not None and holds(found, value)

        return ordered

    def where(self, dialect: Dialect) -> Where:
        """Return the term as an SQL expression with bound parameters."""
        known = REQUEST_FIELDS[self.field]
        columns = known.columns
        if self.op in (Op.CONTAINS, Op.LACKS):
            texts = columns if known.is_text else [f"CAST({column} AS TEXT)" for column in columns]
            found = " OR ".join(f"{text} {dialect.like} {_ESCAPED}" for text in texts)
            wanted = "IS TRUE" if self.op is Op.CONTAINS else "IS NOT TRUE"
            return f"({found}) {wanted}", [_pattern(str(self.value))] * len(columns)
        sign = dialect.differs if self.op is Op.NE else self.op.value
        return f"{columns[0]} {sign} ?", [self.value]


@dataclass(frozen=True, slots=True)
class Word:
    """A bare word: a part of any text field, or the whole of any whole number."""

    text: str

    def test(self, fields: Fields) -> Test:
        """Return the term as a predicate."""
        needle = _fold_ascii(self.text)
        texts = [known.read for known in fields.values() if known.is_text]
        numbers = [known.read for known in fields.values() if known.is_number]

        def anywhere(row: object) -> bool:
            if any(_is_in(needle, read(row)) for read in texts):
                return True
            return any(str(read(row)[0]) == needle for read in numbers)

        return anywhere

    def where(self, dialect: Dialect) -> Where:
        """Return the term as an SQL expression with bound parameters."""
        texts = [column for known in REQUEST_FIELDS.values() if known.is_text for column in known.columns]
        parts = [f"{column} {dialect.like} {_ESCAPED}" for column in texts]
        values: list[object] = [_pattern(self.text)] * len(parts)
        if _NUMBER.fullmatch(self.text) and abs(int(self.text)) <= INT_MAX:
            numbers = [known.columns[0] for known in REQUEST_FIELDS.values() if known.is_number]
            parts += [f"{column} = ?" for column in numbers]
            values += [int(self.text)] * len(numbers)
        return f"({' OR '.join(parts)})", values


@dataclass(frozen=True, slots=True)
class InNetwork:
    """`ip=10.0.0.0/8`: an address of the network; `is_wanted` is False for `!=`."""

    network: str
    is_wanted: bool

    def test(self, fields: Fields) -> Test:
        """Return the term as a predicate."""
        read = fields["ip"].read
        return lambda row: is_address_in(str(read(row)[0]), self.network) is self.is_wanted

    def where(self, dialect: Dialect) -> Where:
        """Return the term as an SQL expression with bound parameters."""
        wanted = "IS TRUE" if self.is_wanted else "IS FALSE"
        return f"{dialect.is_in_network('ip', '?')} {wanted}", [self.network]


@lru_cache(4096)
def is_address_in(address: str, network: str) -> bool:
    """Return whether an address is of a network; SQL knows it too (`Dialect.is_in_network`)."""
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network)
    except ValueError:
        return False  # what a proxy forwarded is no address


Term = Comparison | Word | InNetwork


def _is_in(needle: str, values: Values) -> bool:
    return any(value is not None and needle in _fold_ascii(str(value)) for value in values)


def _pattern(needle: str) -> str:
    """Return the LIKE pattern that finds the needle anywhere, its wildcards taken literally."""
    literal = _WILDCARD.sub(r"\\\g<0>", needle)
    return f"%{literal}%"


def _fold_ascii(text: str) -> str:
    """Make ASCII capitals small and change nothing else, as the databases do (`Dialect.like`)."""
    return text.lower() if text.isascii() else text.translate(_CAPITALS)


def quoted(value: str) -> str:
    """Return a value as a filter has it: in quotes if it needs them."""
    if value and not re.search(r'[\s"]', value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed filter: alternatives, each a list of terms that all must hold. No alternative: all match."""

    text: str
    alternatives: tuple[tuple[Term, ...], ...]
    fields: Fields = field(default_factory=lambda: REQUEST_FIELDS, repr=False, compare=False)
    """Those of the rows that it is for."""
    _tests: tuple[tuple[Test, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tests = tuple(tuple(term.test(self.fields) for term in terms) for terms in self.alternatives)
        object.__setattr__(self, "_tests", tests)

    def matches(self, row: object) -> bool:
        """Return whether the row passes; `sql` gives the same answer for requests on disk."""
        if not self._tests:
            return True
        return any(all(test(row) for test in tests) for tests in self._tests)

    def sql(self, dialect: Dialect) -> Where:
        """Return a WHERE expression over the `requests` table, and its bound parameters in order."""
        if not self.alternatives:
            return "TRUE", []
        parameters: list[object] = []
        alternatives = []
        for terms in self.alternatives:
            clauses = []
            for term in terms:
                clause, values = term.where(dialect)
                clauses.append(clause)
                parameters += values
            alternatives.append(f"({' AND '.join(clauses)})")
        return f"({' OR '.join(alternatives)})", parameters


def parse_filter(text: str, fields: Fields = REQUEST_FIELDS) -> Filter:
    """Parse a filter of at most 2,000 characters and 50 terms; nothing but spaces matches all.

    Args:
        text: the filter.
        fields: those of the rows that it is for.

    Raises:
        FilterError: with the place.
    """
    return _Parser(text, fields).parse()


class _Parser:
    """One pass over the text; `at` is the next character that is not understood yet."""

    def __init__(self, text: str, fields: Fields) -> None:
        self.fields = fields
        self.given = text
        self.text = storable_text(text)
        self.at = 0
        self.count = 0

    def parse(self) -> Filter:
        if len(self.text) > MAX_CHARS:
            raise self.error(f"The filter is longer than {MAX_CHARS:,} characters.", MAX_CHARS, 1)
        alternatives: list[tuple[Term, ...]] = []
        terms: list[Term] = []
        joined_at: int | None = None
        self.take(_SPACE)
        while self.at < len(self.text):
            start = self.at
            joiner = self.joiner()
            if joiner is None:
                terms.append(self.term())
                joined_at = None
            elif not terms or joined_at is not None:
                raise self.error(f"'{joiner}' needs a term on both sides.", start, len(joiner))
            else:
                joined_at = start
                if joiner == "or":
                    alternatives.append(tuple(terms))
                    terms = []
            self.take(_SPACE)
        if joined_at is not None:
            raise self.error("The filter ends where another term is needed.", joined_at, self.at - joined_at)
        if terms:
            alternatives.append(tuple(terms))
        return Filter(self.given, tuple(alternatives), self.fields)

    def joiner(self) -> str | None:
        """Step over `or` or `and` where one stands alone."""
        found = _JOINER.match(self.text, self.at)
        if found is None or self.operator_after(found.end()):
            return None
        self.at = found.end()
        return found[1].lower()

    def term(self) -> Term:
        start = self.at
        self.count += 1
        if self.count > MAX_TERMS:
            raise self.error(f"The filter has more than {MAX_TERMS} terms.", start, len(self.text) - start)
        if self.text[start] == '"':
            return Word(self.quoted("An empty text matches nothing in particular; write a word."))
        word = _WORD.match(self.text, start)
        if word is None:
            raise self.error("An operator needs a field before it.", start, 1)
        name = word[0].lower()
        op_at = self.operator_after(word.end()) if name in self.fields else word.end()
        op = None if op_at is None else _OP.match(self.text, op_at)
        if op is None:
            return self.bare(word)
        if name not in self.fields:
            raise self.unknown_field(word)
        self.at = op.end()
        return self.comparison(name, Op(op[0]))

    def bare(self, word: re.Match[str]) -> Word:
        if word[0][0] in "()":
            raise self.error(
                "Parentheses can't group terms; to search for one, put the text in quotes.", word.start(), 1
            )
        self.at = word.end()
        return Word(word[0])

    def comparison(self, name: str, op: Op) -> Comparison | InNetwork:
        op_at = self.at - len(op)
        self.take(_SPACE)
        start = self.at
        if start == len(self.text):
            raise self.error(f"A value is missing after '{op}'.", op_at, len(op))
        value = self.quoted() if self.text[start] == '"' else self.take(_PLAIN)
        known = self.fields[name]
        if known.is_real:
            # SQLite and Python write the same fraction differently, so it is never searched as a text.
            if op in (Op.CONTAINS, Op.LACKS) or not _DECIMAL.fullmatch(value):
                message = f"'{name}' is compared with a number, as in {name}>0.05."
                raise self.error(message, start, self.at - start)
            return Comparison(name, op, float(value))
        if op in (Op.CONTAINS, Op.LACKS):
            return Comparison(name, op, value)
        if name == "ip" and "/" in value and op in (Op.EQ, Op.NE):
            return self.network(op, value, start)
        if known.is_number:
            number = int(value) if _INTEGER.fullmatch(value) else None
            if number is None or abs(number) > INT_MAX:
                raise self.error(f"'{name}' is compared with a whole number.", start, self.at - start)
            return Comparison(name, op, number)
        if known.choices and value not in known.choices and op in (Op.EQ, Op.NE):
            raise self.error(f"'{name}' is one of {', '.join(known.choices)}.", start, self.at - start)
        return Comparison(name, op, value)

    def network(self, op: Op, value: str, start: int) -> InNetwork:
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            message = "This is not a network; write it like 10.0.0.0/8 or 2001:db8::/32."
            raise self.error(message, start, len(value)) from None
        return InNetwork(str(network), op is Op.EQ)

    def quoted(self, if_empty: str | None = None) -> str:
        start = self.at
        found = _QUOTED.match(self.text, start)
        if found is None:
            raise self.error("The quote is not closed.", start, len(self.text) - start)
        self.at = found.end()
        if not found[1] and if_empty is not None:
            raise self.error(if_empty, start, 2)
        if self.at < len(self.text) and not self.text[self.at].isspace():
            raise self.error("A space is missing after the closing quote.", self.at, 1)
        return re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL)

    def operator_after(self, at: int) -> int | None:
        """Return where an operator stands after `at` and optional spaces."""
        found = _SPACE.match(self.text, at)
        after = at if found is None else found.end()
        return after if _OP.match(self.text, after) else None

    def take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        taken = "" if found is None else found[0]
        self.at += len(taken)
        return taken

    def unknown_field(self, word: re.Match[str]) -> FilterError:
        near = difflib.get_close_matches(word[0].lower(), self.fields, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "put the text in quotes to search for it."
        shown = word[0] if len(word[0]) <= _NAME_CHARS else f"{word[0][:_NAME_CHARS]}…"
        return self.error(f"There is no field '{shown}'; {hint}", word.start(), len(word[0]))

    def error(self, message: str, position: int, length: int) -> FilterError:
        return FilterError(message, position, length, self.given)
