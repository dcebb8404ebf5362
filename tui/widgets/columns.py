"""The columns of the request list: what each shows, how wide, and which give way first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.style import Style

from relayd.admin.schema import Outcome, RequestRecord, epoch_s
from tui.model.descriptions import path_kind, state_word
from tui.model.sorting import Value
from tui.model.stats import is_error
from tui.model.units import clock, count, duration, money
from tui.theme import Role
from tui.widgets.cells import Piece, fit, width_of
from tui.widgets.time_bar import time_bar

Look = Callable[[Role], Style]
# From here on people notice that they wait.
_SLOW_FIRST_MS = 5000


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `rank`: the higher, the sooner it gives way on a narrow screen."""

    name: str
    title: str
    width: int
    rank: int
    right: bool = False
    grows: int = 0
    """Its share of what is left over."""
    most: int = 60


@dataclass(frozen=True, slots=True)
class SortKey:
    """What a column is sorted by: in words, and the value of a record."""

    words: str
    value: Value[RequestRecord]


COLUMNS = (
    Column("time", "time", 8, 0),
    Column("status", "st", 4, 0),
    Column("kind", "kind", 9, 1),
    Column("model", "model", 11, 0, grows=1, most=24),
    Column("first", "first", 5, 1, right=True),
    Column("duration", "dur", 5, 0, right=True),
    Column("tokens", "tok", 5, 1, right=True),
    Column("cost", "US$", 6, 2, right=True),
    Column("bar", "·░▓▒ time", 9, 1, grows=1, most=24),
    Column("client", "client", 11, 0, grows=2, most=24),
    Column("ip", "address", 15, 3, grows=1, most=24),
    Column("cause", "cause", 17, 4, grows=1, most=22),
    Column("key", "key", 8, 5),
    Column("finish", "finish", 7, 6),
    Column("agent", "user agent", 18, 7, grows=3, most=60),
)
# By the title, in the order in which `s` goes through them: first what one looks for.
SORT_KEYS: Mapping[str, SortKey] = {
    "dur": SortKey("duration", lambda record: record.duration_ms),
    "first": SortKey("first token", lambda record: record.first_token_ms),
    "tok": SortKey("tokens", lambda record: _tokens(record) or None),
    "US$": SortKey("cost", lambda record: record.cost_usd),
    "·░▓▒ time": SortKey("waiting for the client", lambda record: record.stalled_ms),
    "st": SortKey("state", state_word),
    "kind": SortKey("kind", lambda record: path_kind(record.path)),
    "model": SortKey("model", lambda record: record.model),
    "client": SortKey("client", lambda record: record.client),
    "address": SortKey("address", lambda record: record.ip),
    "cause": SortKey("cause", lambda record: record.error.code if record.error else record.outcome),
    "key": SortKey("key", lambda record: record.key_id),
    "finish": SortKey("finish", lambda record: record.finish_reason),
    "user agent": SortKey("user agent", lambda record: record.user_agent),
    "time": SortKey("time", lambda record: record.seq),
}
COLUMN_NAMES = tuple(column.name for column in COLUMNS)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A column with the width it got."""

    column: Column
    width: int


def fitted(width: int, hidden: frozenset[str] = frozenset()) -> list[Fitted]:
    """Return the columns that fit into `width` cells with one space between, and how wide each is."""
    chosen = [column for column in COLUMNS if column.name not in hidden]
    while chosen and sum(c.width for c in chosen) + len(chosen) - 1 > width:
        worst = max(chosen, key=lambda c: (c.rank, COLUMNS.index(c)))
        if worst.rank == 0:
            break
        chosen.remove(worst)
    widths = {column.name: column.width for column in chosen}
    spare = width - sum(widths.values()) - len(chosen) + 1
    while spare > 0:
        growing = [c for c in chosen if c.grows and widths[c.name] < c.most]
        if not growing:
            break
        for column in growing:
            more = min(column.grows, spare, column.most - widths[column.name])
            widths[column.name] += more
            spare -= more
    return [Fitted(column, widths[column.name]) for column in chosen]


def row(record: RequestRecord, age_ms: float | None, columns: list[Fitted], look: Look) -> list[Piece]:
    """Return one request."""
    pieces: list[Piece] = []
    for fitted_column in columns:
        name, width = fitted_column.column.name, fitted_column.width
        if name == "bar":
            bar = time_bar(record, age_ms, width, look)
            pieces += [*bar, (" " * (width - width_of(bar)), look(Role.TEXT))]
        else:
            text, role = _cell(name, record, age_ms)
            pieces.append((fit(text, width, right=fitted_column.column.right), look(role)))
        pieces.append((" ", look(Role.TEXT)))
    return pieces


def state_role(record: RequestRecord) -> Role:
    """Return the colour that repeats the state."""
    if record.outcome is None:
        return Role.RUN
    if record.outcome is Outcome.CLIENT_CLOSED:
        return Role.WARN
    return Role.BAD if is_error(record) else Role.GOOD


def _cell(name: str, record: RequestRecord, age_ms: float | None) -> tuple[str, Role]:
    if name == "status":
        return state_word(record), state_role(record)
    if name == "cause":
        return (record.error.code if record.error else record.outcome or ""), state_role(record)
    if name in {"first", "duration", "tokens", "cost"}:
        return _number(name, record, age_ms)
    text = {
        "time": clock(epoch_s(record.started_at)),
        "kind": path_kind(record.path),
        "model": record.model,
        "client": record.client,
        "ip": record.ip,
        "key": record.key_id,
        "finish": record.finish_reason,
        "agent": record.user_agent,
    }[name]
    role = {"model": Role.TEXT, "client": Role.STRONG}.get(name, Role.DIM)
    return (text, role) if text else ("—", Role.DIM)


def _number(name: str, record: RequestRecord, age_ms: float | None) -> tuple[str, Role]:
    if name == "first":
        slow = record.first_token_ms is not None and record.first_token_ms > _SLOW_FIRST_MS
        return duration(record.first_token_ms), Role.WARN if slow else Role.TEXT
    if name == "duration":
        running = record.duration_ms is None
        return duration(age_ms if running else record.duration_ms), Role.RUN if running else Role.TEXT
    if name == "cost":
        return money(record.cost_usd), Role.DIM if record.cost_usd is None else Role.TEXT
    tokens = _tokens(record)
    return (count(tokens), Role.TEXT) if tokens else ("—", Role.DIM)


def _tokens(record: RequestRecord) -> int | None:
    # An embedding has tokens in its prompt alone.
    return record.completion_tokens or record.deltas or record.prompt_tokens
