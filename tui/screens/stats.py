"""The Stats screen: rate, errors and waiting over four windows of time, and to whom they belong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal

from relayd.admin.client import AdminClientError
from relayd.admin.schema import RouteState, RouteStatus
from relayd.printable import plural
from tui.context import Context
from tui.model.app_state import Connection
from tui.model.routes import in_words
from tui.model.sorting import Value
from tui.model.stats import NO_NAME, OTHERS, WINDOWS, Summary, Tally, Window, cause_filter, name_filter
from tui.model.units import clock_short, count, duration, rate
from tui.screens.pane import BACK_HINT, CLIENTS_HINT, HELP_HINTS, SORT_HINT, Pane
from tui.theme import Role, style
from tui.widgets.bars import Bar, ClickBar, Hint
from tui.widgets.cause_list import CauseList
from tui.widgets.cells import Piece, fit, width_of
from tui.widgets.line_list import Field, ItemList, LineList
from tui.widgets.plot import Line, Plot

_DAY_S = 86_400
_MAX_ROUTES = 4
_HIGH = 48
_LEAST_ROWS = 3
_MOST_ROWS = 12
_WIDE_TABLE = 68
SIDE_BY_SIDE = 100
_ALL_TABLES = 150
_TABLES = ("models", "clients", "causes")


class WindowLine(ClickBar):
    """The windows, and the chosen one in numbers; a click on a window chooses it."""

    DEFAULT_CSS = "WindowLine { background: transparent; }"

    def __init__(self) -> None:
        super().__init__(id="window")
        self._window = WINDOWS[0]
        self._summary: Summary | None = None
        self._missing = ""
        self.problem = ""

    def show(self, summary: Summary, missing: str) -> None:
        """Show this window's numbers, and why some are `missing`, if they are."""
        self._window, self._summary, self._missing = summary.window, summary, missing
        self.redraw()

    def parts(self, width: int) -> Iterable[tuple[list[Piece], str]]:
        """Return the windows, and the numbers that fit behind them."""
        left = width
        for window in WINDOWS:
            name = self.choice(window.name, chosen=window is self._window)
            left -= width_of([name])
            yield [name], f"show_window('{window.name}')"
        numbers = self._numbers(self._summary.all) if self._summary is not None else []
        # A number that does not fit is left out: half of it would be another number.
        while numbers and width_of(numbers) > left:
            numbers.pop()
        yield numbers, ""

    def _numbers(self, whole: Tally) -> list[Piece]:
        text, bad = style(self.app, Role.TEXT), style(self.app, Role.BAD)
        share = f" ({100 * whole.errors / whole.requests:.1f}%)" if whole.requests else ""
        numbers: list[Piece] = [
            (f"  {plural(whole.requests, 'request')}", style(self.app, Role.STRONG)),
            (f", {whole.errors:,} failed{share}", bad if whole.errors else text),
        ]
        if self.problem or self._missing:
            numbers.append((f"  {self.problem or self._missing}", style(self.app, Role.WARN)))
        numbers.append((f"  {count(whole.deltas)} tokens", text))
        numbers.append((f"  first p95 {duration(whole.first.percentile(0.95))}", text))
        return numbers


class RouteLines(Bar):
    """A line for each of the provider's keys and addresses: state, and where it leads or why it is not asked.

    Hidden if there is but one and all is well.
    """

    DEFAULT_CSS = "RouteLines { background: transparent; display: none; }"

    def __init__(self, now_s: Callable[[], float]) -> None:
        super().__init__(id="routes")
        self._now_s = now_s
        self._routes: Sequence[RouteStatus] = []

    def show(self, routes: Sequence[RouteStatus]) -> None:
        """Show these, those that cool down first."""
        self._routes = sorted(routes, key=_is_calm)
        self.display = len(routes) > 1 or not all(map(_is_calm, routes))
        self.styles.height = min(_MAX_ROUTES, len(routes))
        self.redraw()

    def pieces(self, y: int, width: int) -> Iterable[Piece]:
        """Return one route."""
        if y >= len(self._routes):
            return []
        route = self._routes[y]
        role = Role.GOOD if route.state is RouteState.OK else Role.WARN
        return [
            (" route ", style(self.app, Role.DIM)),
            (fit(route.name, 14), style(self.app, Role.STRONG)),
            (f" {route.state.value:<8}", style(self.app, role)),
            (fit(in_words(route, self._now_s()), max(0, width - 30)), style(self.app, Role.TEXT)),
        ]


def _is_calm(route: RouteStatus) -> bool:
    """Return whether the route is asked for every model."""
    return route.state is RouteState.OK and not route.models


class TallyList(ItemList[tuple[str, Tally]]):
    """Requests, errors and percentiles by model or by client, the busiest first; Enter filters by it."""

    def __init__(self, field: str, *, id: str) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(lambda row: row[0], id=id, cursor_always=False)
        self.field = field
        self._requests = 0
        self._missing = ""

    def fields(self, width: int) -> list[Field]:
        """Return the columns."""
        numbers = [("req", 5), ("err", 5), ("first p50/p95", 13), ("dur p50", 7)]
        if width >= _WIDE_TABLE:
            numbers += [("dur p95", 7), ("tokens", 6), ("share", 5)]
        taken = sum(size + 1 for _, size in numbers)
        name = Field(self.field, max(8, min(30, width - 2 - taken)))
        return [name, *(Field(title, size, right=True) for title, size in numbers)]

    def show_tallies(self, tallies: Sequence[tuple[str, Tally]], missing: str) -> None:
        """Show these, and of how many requests each is a share; if there are none, why they are missing."""
        self._requests = sum(tally.requests for _, tally in tallies)
        self._missing = missing
        self.show(tallies)

    def sort_values(self) -> Mapping[str, Value[tuple[str, Tally]]]:
        """Return what a name is sorted by."""
        return {
            "req": lambda row: row[1].requests,
            "err": lambda row: row[1].errors / row[1].requests if row[1].requests else None,
            "first p50/p95": lambda row: row[1].first.percentile(0.95),
            "dur p50": lambda row: row[1].duration.percentile(0.5),
            "dur p95": lambda row: row[1].duration.percentile(0.95),
            "tokens": lambda row: row[1].deltas,
            self.field: lambda row: row[0],
        }

    def cells(self, item: tuple[str, Tally]) -> dict[str, tuple[str, Role]]:
        """Return one name with its numbers."""
        name, tally = item
        share = f"{100 * tally.errors / tally.requests:.0f}%" if tally.requests else "—"
        first = f"{duration(tally.first.percentile(0.5))}/{duration(tally.first.percentile(0.95))}"
        return {
            self.field: (name, Role.STRONG),
            "req": (count(tally.requests), Role.TEXT),
            "err": (share, Role.BAD if tally.errors else Role.DIM),
            "first p50/p95": (first, Role.WAIT),
            "dur p50": (duration(tally.duration.percentile(0.5)), Role.TEXT),
            "dur p95": (duration(tally.duration.percentile(0.95)), Role.TEXT),
            "tokens": (count(tally.deltas), Role.STREAM),
            "share": (f"{tally.requests / self._requests:.0%}" if self._requests else "—", Role.DIM),
        }

    def empty_text(self) -> tuple[str, ...]:
        """Say that nothing ended in the window, or that it is not known."""
        return (self._missing or "No requests ended in this window.",)


def _tables_at(width: int, asked: str) -> set[str]:
    """Return which tables there is room for, the one that was asked for among them."""
    if width < SIDE_BY_SIDE:
        return {asked}
    models, clients, causes = _TABLES
    return set(_TABLES) if width >= _ALL_TABLES else {models, causes if asked == causes else clients}


class StatsPane(Pane):
    """Two plots, beside or above each other, and below them as many of three tables as fit."""

    DEFAULT_CSS = """
    StatsPane #plots { height: 1fr; }
    StatsPane #tables { height: 1fr; }
    StatsPane.-narrow #plots { layout: vertical; height: 2fr; }
    StatsPane.-narrow #tables { height: 1fr; min-height: 5; }
    """

    MOVES_EVERY_S = 5
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right_square_bracket,right", "window(1)", "Longer window", key_display="→ ]"),
        Binding("left_square_bracket,left", "window(-1)", "Shorter window", key_display="← ["),
        Binding("c", "table", "Models, clients or failures by cause"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context, id="stats")
        self.window = WINDOWS[0]
        self._most_rows = _MOST_ROWS
        self._table = _TABLES[0]
        """The table that was asked for last: where there is room for fewer, it is among them."""

    def compose(self) -> ComposeResult:
        """Show window, plots and tables."""
        yield WindowLine()
        yield RouteLines(self.context.now_s)
        with Horizontal(id="plots"):
            yield Plot(id="rates")
            yield Plot(id="waits")
        with Horizontal(id="tables"):
            yield TallyList("model", id="models")
            yield TallyList("client", id="clients")
            yield CauseList(self.context.now_s, id="causes")

    def on_mount(self) -> None:
        """Lay out for the size."""
        self._lay_out()

    def on_resize(self) -> None:
        """Lay out for another size."""
        self._lay_out()

    def _lay_out(self) -> None:
        width, height = self.size if self.size.width else self.app.size
        self.set_class(width < SIDE_BY_SIDE, "-narrow")
        shown = _tables_at(width, self._table)
        for name in _TABLES:
            self.query_one(f"#{name}").display = name in shown
        self._most_rows = _MOST_ROWS if height < _HIGH else 2 * _MOST_ROWS

    def focus_default(self) -> None:
        """Focus the table that was asked for."""
        self.focus_now(self.query_one(f"#{self._table}"))

    def refresh_data(self) -> None:
        """Show new numbers."""
        stats, now_s = self.state.stats, self.context.now_s()
        summary = stats.summary(self.window, now_s)
        complete = self.context.feed.history.reaches_back(now_s - self.window.span_s)
        missing = "" if complete else self._why_missing()
        self.query_one(WindowLine).show(summary, missing)
        if self.state.status is not None:
            self.query_one(RouteLines).show(self.state.status.routes)
        self._plot(summary, now_s, is_known=complete or stats.oldest_s is not None)
        causes = self.query_one(CauseList)
        causes.show_window(stats, self.window, self.context.feed.history)
        rows = max(_LEAST_ROWS, len(summary.models), len(summary.clients), len(causes.items))
        # What the tables do not need, the plots have.
        self.query_one("#tables").styles.max_height = min(rows, self._most_rows) + 2
        self.query_one("#models", TallyList).show_tallies(summary.models, missing)
        self.query_one("#clients", TallyList).show_tallies(summary.clients, missing)
        if not complete:
            self.start_once("count-history", self._count_history)

    def _why_missing(self) -> str:
        """Return why the numbers do not reach back over the whole window."""
        if self.state.connection is Connection.LIVE or self.state.reads_disk:
            return "Reading history …"
        return f"{self.state.state_word}: older requests are not known."

    def _plot(self, summary: Summary, now_s: float, *, is_known: bool) -> None:
        window, buckets = summary.window, summary.buckets
        start = f"{window.name} ago" if window.span_s >= _DAY_S else clock_short(now_s - window.span_s)
        times = (start, "now")
        per_min = 60 / window.bucket_s
        rates = [
            Line("requests", [b.all.requests * per_min for b in buckets], Role.STREAM),
            Line("errors", [b.all.errors * per_min for b in buckets], Role.BAD),
        ]
        unknown = "" if is_known else ": not known"
        self.query_one("#rates", Plot).show(f"Per minute{unknown}", rates if is_known else [], times, rate)
        waits = [
            Line("p95", [(b.all.first.percentile(0.95) or 0.0) for b in buckets], Role.WAIT),
            Line("p50", [(b.all.first.percentile(0.5) or 0.0) for b in buckets], Role.STREAM),
        ]
        self.query_one("#waits", Plot).show(f"First token{unknown}", waits if is_known else [], times, _wait)

    async def _count_history(self) -> None:
        """Count what is older than memory, as far back as the window goes."""
        try:
            await self.context.feed.history.count_history(self.context.now_s() - self.window.span_s)
        except AdminClientError as error:
            self.query_one(WindowLine).problem = str(error)

    def action_window(self, step: int) -> None:
        """Show the next longer or shorter window."""
        self._show_window(WINDOWS[(WINDOWS.index(self.window) + step) % len(WINDOWS)])

    def action_show_window(self, name: str) -> None:
        """Show the window of this name."""
        self._show_window(next(window for window in WINDOWS if window.name == name))

    def _show_window(self, window: Window) -> None:
        self.window = window
        self.refresh_data()

    def action_table(self) -> None:
        """Turn to the next table, and show it if there is not room for all."""
        self._table = _TABLES[(_TABLES.index(self._table) + 1) % len(_TABLES)]
        self._lay_out()
        self.focus_default()
        self.refresh_data()

    @on(LineList.Chosen)
    def _filter_by(self, event: LineList.Chosen) -> None:
        table = event.list
        if isinstance(table, CauseList):
            self.post_message(self.FilterRequests(cause_filter(str(event.key))))
        elif isinstance(table, TallyList) and event.key not in {NO_NAME, OTHERS}:
            self.post_message(self.FilterRequests(name_filter(table.field, str(event.key))))

    def hints(self) -> list[Hint]:
        """Return the keys of this screen."""
        return [
            Hint("←→", "window", "window(1)"),
            Hint("c", "models/clients/errors", "table"),
            Hint("Enter", "filter by it", "filter_by"),
            CLIENTS_HINT,
            *HELP_HINTS,
            SORT_HINT,
            BACK_HINT,
        ]

    def action_filter_by(self) -> None:
        """Filter by the row under the cursor, of the table that has the focus."""
        table = self.app.focused
        (table if isinstance(table, LineList) else self.query_one("#models", TallyList)).action_choose()


def _wait(ms: float) -> str:
    return duration(ms) if ms else "—"
