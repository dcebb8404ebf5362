r"""The filter language of requests: one parser for the command line, the admin socket and the app.

    status>=500 model~gpt-4                both must hold
    status>=500 or first_token_ms>2000     either; `or` binds weaker than a space
    client="night batch" 10.0.0.4          quoted value; a bare word matches anywhere

Operators: = != > >= < <= and ~ !~ (contains or not; ASCII case does not matter). In quotes, `\"` is
a quote and `\\` a backslash. A field that is null matches only `!=` and `!~`.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass, field

from relayd.state.filterterms import NUMBER_FIELDS, TEXT_FIELDS, Comparison, Op, Term, Test, Word
from relayd.state.records import Outcome, Phase, RequestRecord
from relayd.state.stored import INT_MAX, storable_text

MAX_CHARS = 2000
MAX_TERMS = 50

_FIELDS = TEXT_FIELDS + NUMBER_FIELDS
_CHOICES = {"phase": tuple(Phase), "outcome": tuple(Outcome)}
_JOINER = re.compile(r"(or|and)(?=\s|$)", re.IGNORECASE)
_SPACE = re.compile(r"\s*")
_OP = re.compile(r"!=|!~|>=|<=|=|>|<|~")
_WORD = re.compile(r"(?:(?!!=|!~)[^\s=<>~])+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_PLAIN = re.compile(r"\S+")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_POINTER_CHARS = 72
_NAME_CHARS = 40


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
        """The filter, and a line below it with carets at the place; long filters are cut to it."""
        start = max(0, self.position - _POINTER_CHARS // 2)
        shown = self.text[start : start + _POINTER_CHARS]
        line = "".join(char if char.isprintable() else " " for char in shown)
        at = self.position - start
        carets = max(1, _columns(line[at : at + self.length]))
        return f"{line}\n{' ' * _columns(line[:at])}{'^' * carets}"


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed filter: alternatives, each a list of terms that all must hold. No alternative: all match."""

    text: str
    alternatives: tuple[tuple[Term, ...], ...]
    _tests: tuple[tuple[Test, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tests = tuple(tuple(term.test() for term in terms) for terms in self.alternatives)
        object.__setattr__(self, "_tests", tests)

    def matches(self, record: RequestRecord) -> bool:
        """Whether the record passes; the same answer as `sql()` gives on disk."""
        if not self._tests:
            return True
        return any(all(test(record) for test in tests) for tests in self._tests)

    def sql(self) -> tuple[str, list[object]]:
        """A WHERE expression over the `requests` table, with its bound parameters in order."""
        if not self.alternatives:
            return "1", []
        parameters: list[object] = []
        alternatives = []
        for terms in self.alternatives:
            clauses = []
            for term in terms:
                clause, values = term.where()
                clauses.append(clause)
                parameters += values
            alternatives.append(f"({' AND '.join(clauses)})")
        return f"({' OR '.join(alternatives)})", parameters


def parse_filter(text: str) -> Filter:
    """Read a filter of at most 2,000 characters and 50 terms; nothing but spaces matches all.

    Raises:
        FilterError: with the place.
    """
    return _Parser(text).parse()


class _Parser:
    """One pass over the text; `at` is the next character that is not understood yet."""

    def __init__(self, text: str) -> None:
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
        return Filter(self.given, tuple(alternatives))

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
        op_at = self.operator_after(word.end()) if name in _FIELDS else word.end()
        op = None if op_at is None else _OP.match(self.text, op_at)
        if op is None:
            return self.bare(word)
        if name not in _FIELDS:
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

    def comparison(self, name: str, op: Op) -> Comparison:
        op_at = self.at - len(op)
        self.take(_SPACE)
        start = self.at
        if start == len(self.text):
            raise self.error(f"A value is missing after '{op}'.", op_at, len(op))
        value = self.quoted() if self.text[start] == '"' else self.take(_PLAIN)
        if op in (Op.HAS, Op.HAS_NOT):
            return Comparison(name, op, value)
        if name in NUMBER_FIELDS:
            number = int(value) if _INTEGER.fullmatch(value) else None
            if number is None or abs(number) > INT_MAX:
                raise self.error(f"'{name}' is compared with a whole number.", start, self.at - start)
            return Comparison(name, op, number)
        choices = _CHOICES.get(name, ())
        if choices and value not in choices and op in (Op.EQ, Op.NE):
            allowed = ", ".join(choices)
            raise self.error(f"'{name}' is one of {allowed}.", start, self.at - start)
        return Comparison(name, op, value)

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
        """Where an operator stands after `at` and optional spaces."""
        found = _SPACE.match(self.text, at)
        after = at if found is None else found.end()
        return after if _OP.match(self.text, after) else None

    def take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        taken = "" if found is None else found[0]
        self.at += len(taken)
        return taken

    def unknown_field(self, word: re.Match[str]) -> FilterError:
        near = difflib.get_close_matches(word[0].lower(), _FIELDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "put the text in quotes to search for it."
        shown = word[0] if len(word[0]) <= _NAME_CHARS else f"{word[0][:_NAME_CHARS]}…"
        return self.error(f"There is no field '{shown}'; {hint}", word.start(), len(word[0]))

    def error(self, message: str, position: int, length: int) -> FilterError:
        return FilterError(message, position, length, self.given)


def _columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
