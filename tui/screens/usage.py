"""The Usage screen: who used how much, today and this month, against which bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import date, timedelta
from functools import partial
from operator import attrgetter
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal, Vertical

from relayd.admin.client import AdminClientError
from relayd.admin.schema import ClientInfo, Ring, Usage, UsageRow, UsageSums, Window, epoch_s
from relayd.printable import plural
from tui.context import Context
from tui.model.app_state import AppState, Connection
from tui.model.clients import Meter, bar, meters
from tui.model.sorting import Value
from tui.model.text import printable_text
from tui.model.units import count, countdown, money
from tui.model.usage import (
    DAYS,
    FIGURES,
    PARTS,
    Breakdown,
    Grouping,
    Report,
    UsageItem,
    by_day,
    cost_in_words,
    days_of,
    last_day,
    name_in_words,
    other_month,
    requests_of,
    tokens_of,
)
from tui.screens.client_keys import role_of
from tui.screens.pane import BACK_HINT, CLIENTS_HINT, HELP_HINTS, SORT_HINT, Pane
from tui.theme import Role, style
from tui.type_ahead import Work
from tui.widgets.bars import Bar, ClickBar, Hint
from tui.widgets.cells import Piece, fit, width_of
from tui.widgets.line_list import Field, ItemList, LineList, dimmed
from tui.widgets.plot import Line, Plot

SIDE_BY_SIDE = 130
_WIDE_LIST = 118
_WIDE_BOUNDS = 64
_NARROW_BOUNDS = 2
_MAX_BOUNDS = 8
_LEAST_ROWS = 6
_NAME_AND_BOUND = 38
_ASKED_EVERY_S = 10.0
_MAX_PROBLEM_CHARS = 500
_SETTLED_S = 0.1
"""How long the cursor stands still before the row under it is asked for."""
_KEYS = {Grouping.CLIENT: "c", Grouping.KEY: "i", Grouping.MODEL: "m", Grouping.DAY: "d"}
_WIDTHS = {"req": 5, "tok": 5, "in": 5, "cache": 7, "out": 5, "US$": 7}


class UsageLine(ClickBar):
    """What usage is summed by, of which month, and what the columns mean."""

    DEFAULT_CSS = "UsageLine { background: transparent; }"

    def __init__(self) -> None:
        super().__init__(id="usage-line")
        self._by = Grouping.CLIENT
        self._month: date | None = None
        self._is_over = False
        self.problem = ""

    def show(self, by: Grouping, month: date | None, *, is_over: bool) -> None:
        """Show this grouping and this month; None until the daemon has said which day it is."""
        self._by, self._month, self._is_over = by, month, is_over
        self.redraw()

    def parts(self, width: int) -> Iterable[tuple[list[Piece], str]]:
        """Return the groupings, the month, and the legend or what went wrong."""
        left = width
        for part, action in self._choices():
            left -= width_of(part)
            yield part, action
        legend = "/m that month" if self._is_over else "/d today  /m this month"
        words, role = ("" if self._by is Grouping.DAY else legend), Role.DIM
        if self.problem:
            words, role = self.problem, Role.WARN
        yield [(fit(f"  {words}", left), style(self.app, role))], ""

    def _choices(self) -> Iterable[tuple[list[Piece], str]]:
        dim, key, strong = (style(self.app, role) for role in (Role.DIM, Role.KEY, Role.STRONG))
        yield [(" by", dim)], ""
        for by, letter in _KEYS.items():
            part = [(f" {letter}", key), (f" {by.value} ", dim)]
            if by is self._by:
                part = [self.choice(f"{letter} {by.value}", chosen=True)]
            yield part, f"group('{by.value}')"
        if self._month is not None:
            yield [("  ←", key)], "month(-1)"
            yield [(f" {self._month:%B %Y} ", strong)], ""
            if self._is_over:
                yield [("→", key)], "month(1)"


class UsageList(ItemList[UsageItem]):
    """The total, and a row for each client, key, model or day; Enter shows its requests."""

    def __init__(self, state: AppState) -> None:
        super().__init__(lambda item: "all" if item.name is None else f"={item.name}", id="usage-list")
        self._state = state
        self._report: Report | None = None
        self._ring: Ring | None = None
        """What the clients of the keys were taken from."""
        self._clients_by_key: Mapping[str, str] = {}

    def show_report(self, report: Report | None) -> None:
        """Show the rows of this report; None while it is asked for. What it does not need, the plots have."""
        ring = self._state.ring
        if report is self._report and ring is self._ring:
            self.redraw()
            return
        self._report, self._ring = report, ring
        self._clients_by_key = {key.id: key.client for key in ring.keys}
        self.styles.max_height = None if report is None else max(_LEAST_ROWS, len(report.month.rows) + 3)
        self.show([] if report is None else report.items())

    @property
    def by(self) -> Grouping:
        """What the rows are."""
        return Grouping.CLIENT if self._report is None else self._report.by

    def client_of(self, item: UsageItem) -> ClientInfo | None:
        """Return the client that a row is of, or whose key it is."""
        name = item.name
        if name is not None and self.by is Grouping.KEY:
            name = self._clients_by_key.get(name)
        elif self.by is not Grouping.CLIENT:
            return None
        return None if name is None else self._state.clients.get(name)

    def fields(self, width: int) -> list[Field]:
        """Return the columns; the name has what the others leave."""
        wide = width >= _WIDE_LIST
        fixed: list[Field] = []
        if self._shows_today:
            figures = ("req", "in", "cache", "out", "US$") if wide else ("req", "tok", "US$")
            fixed += [Field(f"{name}/d", _WIDTHS[name], right=True) for name in figures]
        suffix = "" if self.by is Grouping.DAY else "/m"
        fixed += [
            Field(f"{name}{suffix}", _WIDTHS[name], right=True)
            for name in ("req", "in", "cache", "out", "US$")
        ]
        if wide or not self._shows_today:
            fixed += [Field("share", 5, right=True), Field("est", 4, right=True)]
        if self._shows_today and self.by is Grouping.CLIENT:
            taken = sum(field.width + 1 for field in fixed)
            with_name = width - taken > _NAME_AND_BOUND
            fixed.append(Field(" nearest bound", 24) if with_name else Field(" bound", 11))
        left = max(8, width - 2 - sum(field.width + 1 for field in fixed))
        names = [Field(self.by.value, min(36, left))]
        if self.by is Grouping.KEY:
            names = [Field(self.by.value, 8), Field("of client", min(24, max(8, left - 9)))]
        return [*names, *fixed]

    def sort_values(self) -> Mapping[str, Value[UsageItem]]:
        """Return what a row is sorted by."""
        values: dict[str, Value[UsageItem]] = {
            f"{name}{suffix}": partial(_sort_value, name, attrgetter(part))
            for suffix, part in (("/d", "today"), ("/m", "month"), ("", "month"))
            for name in _WIDTHS
        }
        values[self.by.value] = lambda item: item.name
        values["of client"] = lambda item: self._clients_by_key.get(item.name or "")
        values["est"] = lambda item: item.month.estimated
        values["share"] = values["US$/m"]
        values[" bound"] = values[" nearest bound"] = self._used_of_bound
        return values

    def _used_of_bound(self, item: UsageItem) -> float | None:
        most = _nearest(self.client_of(item))
        return None if most is None else most.share

    def is_pinned(self, item: UsageItem) -> bool:
        """Return whether this is the total, which stays on top."""
        return item.is_total

    @property
    def _shows_today(self) -> bool:
        return self._report is not None and self._report.today is not None

    def cells(self, item: UsageItem) -> dict[str, tuple[str, Role]]:
        """Return one row."""
        client = self.client_of(item)
        total = self.items[0].month
        look = Role.STRONG if item.is_total else Role.TEXT
        cells = {
            self.by.value: (printable_text(name_in_words(self.by, item.name)), Role.STRONG),
            "of client": (self._clients_by_key.get(item.name or "", ""), Role.TEXT),
            "share": (_share(item.month, total), look),
            "est": (count(item.month.estimated) if item.month.estimated else "—", Role.DIM),
            " bound": _nearest_bound(client, with_name=False),
            " nearest bound": _nearest_bound(client, with_name=True),
        }
        for suffix, sums in (("/d", item.today), ("/m", item.month), ("", item.month)):
            for name in _WIDTHS:
                cells[f"{name}{suffix}"] = _figure(name, sums), look if sums.requests else Role.DIM
        return cells if self._state.connection is Connection.LIVE else dimmed(cells)

    def empty_text(self) -> tuple[str, ...]:
        """Say that nothing is known yet."""
        if self._state.connection is Connection.LIVE:
            return ("Asking …",)
        return (f"{self._state.state_word}: what was used is not known.",)


def _figure(name: str, sums: UsageSums) -> str:
    return cost_in_words(sums) if name == "US$" else count(FIGURES[name](sums))


def _sort_value(name: str, sums_of: Callable[[UsageItem], UsageSums], item: UsageItem) -> float:
    return FIGURES[name](sums_of(item))


def _share(sums: UsageSums, total: UsageSums) -> str:
    """Return the part of the whole cost; of the tokens, if nothing has a cost."""
    part, whole = (sums.cost_usd, total.cost_usd) if total.cost_usd else (tokens_of(sums), tokens_of(total))
    return f"{part / whole:.0%}" if whole else "—"


def _nearest(client: ClientInfo | None) -> Meter | None:
    """Return the bound of which the most is used."""
    return max(meters(client) if client is not None else [], key=lambda meter: meter.share, default=None)


def _nearest_bound(client: ClientInfo | None, *, with_name: bool) -> tuple[str, Role]:
    """Return that bound as a bar."""
    most = _nearest(client)
    if most is None:
        return "", Role.DIM
    name = f" {most.short}" if with_name else ""
    return f" {bar(most.share, 5)} {most.share:>4.0%}{name}", role_of(most)


class BoundLines(Bar):
    """The bounds of the chosen client, the nearest first: what is used, and when it begins again."""

    DEFAULT_CSS = "BoundLines { background: $surface; }"

    def __init__(self, now_s: Callable[[], float]) -> None:
        super().__init__(id="bounds")
        self._now_s = now_s
        self._client: ClientInfo | None = None
        self._meters: list[Meter] = []
        self._ends: Mapping[Window, str | None] = {}

    def show(self, client: ClientInfo | None, usage: Usage | None) -> None:
        """Show the bounds of this client; `usage` says when its day and its month end."""
        self._client = client
        given = [] if client is None else meters(client)
        self._meters = sorted(given, key=lambda meter: -meter.share)
        self._ends = (
            {} if usage is None else {Window.DAY: usage.day_ends_at, Window.MONTH: usage.month_ends_at}
        )
        self.redraw()

    def pieces(self, y: int, width: int) -> Iterable[Piece]:
        """Return one bound, or how many more there are."""
        dim = style(self.app, Role.DIM)
        more = len(self._meters) - self.size.height
        if self._client is None or (not self._meters and y == 0):
            none = None if self._client is None else f"{self._client.name} has no bounds."
            return [(f" {none or 'Choose a client to see its bounds.'}" if y == 0 else "", dim)]
        if more > 0 and y == self.size.height - 1:
            return [(f" and {plural(more + 1, 'more bound')}: 4 Clients shows all", dim)]
        if y >= len(self._meters):
            return []
        meter = self._meters[y]
        roomy, role = width >= _WIDE_BOUNDS, style(self.app, role_of(meter))
        end = self._ends.get(meter.window) if meter.window is not None else None
        left = "" if end is None else countdown(epoch_s(end) - self._now_s())
        return [
            (f" {fit(meter.label, 17)} ", dim),
            (bar(meter.share, 10 if roomy else 6), role),
            (f" {fit(meter.amounts, 10)} ", style(self.app, Role.TEXT)),
            (f"{meter.share:>4.0%}", role),
            ((f"  resets in {left}" if roomy else f"  {left} left") if left else "", dim),
        ]


class PartList(ItemList[UsageRow]):
    """What the chosen row is made of: the models of a client, or the clients of a model or a day."""

    def __init__(self, state: AppState, *, id: str) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(lambda row: f"={row.name}", id=id, cursor_always=False)
        self._state = state
        self._usage: Usage | None = None
        self.by = Grouping.MODEL

    def show_parts(self, by: Grouping, usage: Usage | None) -> None:
        """Show these parts; None while they are asked for."""
        self.by, self._usage = by, usage
        self.styles.max_height = max(_LEAST_ROWS, 0 if usage is None else len(usage.rows) + 2)
        rows = [] if usage is None else usage.rows
        self.show(reversed(rows) if by is Grouping.DAY else rows)

    def fields(self, width: int) -> list[Field]:
        """Return the columns; the name has what the others leave."""
        figures = ("req", "in", "cache", "out", "US$") if width >= 60 else ("req", "tok", "US$")  # noqa: PLR2004 - room for all
        fixed = [Field(name, _WIDTHS[name], right=True) for name in figures]
        fixed.append(Field("share", 5, right=True))
        left = max(8, width - 2 - sum(field.width + 1 for field in fixed))
        return [Field(f"by {self.by.value}", min(36, left)), *fixed]

    def sort_values(self) -> Mapping[str, Value[UsageRow]]:
        """Return what a part is sorted by."""
        return {name: FIGURES[name] for name in _WIDTHS}

    def cells(self, item: UsageRow) -> dict[str, tuple[str, Role]]:
        """Return one part."""
        total = item if self._usage is None else self._usage.total
        cells = {
            f"by {self.by.value}": (printable_text(name_in_words(self.by, item.name)), Role.STRONG),
            "share": (_share(item, total), Role.TEXT),
            **{name: (_figure(name, item), Role.TEXT) for name in _WIDTHS},
        }
        return cells if self._state.connection is Connection.LIVE else dimmed(cells)

    def empty_text(self) -> tuple[str, ...]:
        """Say that there are none, or that they are not known."""
        if self._usage is not None:
            return ("Nothing was used.",)
        if self._state.connection is Connection.LIVE or self._state.reads_disk:
            return ("Asking …",)
        return (f"{self._state.state_word}: not known.",)


class UsagePane(Pane):
    """The list; beside or below it the chosen row: bounds, plots by day, and what it is made of."""

    DEFAULT_CSS = """
    UsagePane #middle { height: 1fr; layout: horizontal; }
    UsagePane #left { width: 3fr; }
    UsagePane #plots { height: 2fr; }
    UsagePane UsageList { height: 3fr; }
    UsagePane #chosen { width: 2fr; }
    UsagePane.-narrow #middle { layout: vertical; }
    UsagePane.-narrow #left { width: 1fr; height: 1fr; }
    UsagePane.-narrow #chosen { width: 1fr; height: auto; }
    UsagePane.-narrow PartList { display: none; }
    UsagePane.-low #plots, UsagePane.-low #chosen { display: none; }
    """

    MOVES_EVERY_S = 5
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(letter, f"group('{by.value}')", f"Sum up by {by.value}") for by, letter in _KEYS.items()),
        Binding("left_square_bracket,left", "month(-1)", "The month before", key_display="← ["),
        Binding("right_square_bracket,right", "month(1)", "The month after", key_display="→ ]"),
        Binding("f", "requests", "Show the requests of this row"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context, id="usage")
        self._by = Grouping.CLIENT
        self._month: date | None = None
        """The first day of a month that is over; None for the running one."""
        self._today: date | None = None
        """The daemon's, once it was asked."""
        self._report: Report | None = None
        self._breakdown: Breakdown | None = None
        self._broken_down: tuple[Grouping, str | None, date | None] | None = None
        """What the breakdown is of."""
        self._asked: dict[str, tuple[object, float]] = {}

    def compose(self) -> ComposeResult:
        """Show grouping, list, and the chosen row."""
        yield UsageLine()
        with Container(id="middle"):
            with Vertical(id="left"):
                yield UsageList(self.state)
                with Horizontal(id="plots"):
                    yield Plot(id="tokens")
                    yield Plot(id="costs")
            with Vertical(id="chosen"):
                yield BoundLines(self.context.now_s)
                yield PartList(self.state, id="parts")
                yield PartList(self.state, id="other-parts")

    @property
    def rows(self) -> UsageList:
        """The list."""
        return self.query_one(UsageList)

    def on_mount(self) -> None:
        """Lay out for the width."""
        self._lay_out()

    def on_resize(self) -> None:
        """Lay out for another size."""
        self._lay_out()

    def _lay_out(self) -> None:
        width, height = self.size if self.size.width else self.app.size
        narrow = width < SIDE_BY_SIDE
        self.set_class(narrow, "-narrow")
        self.set_class(narrow and height < 17, "-low")  # noqa: PLR2004 - room for a list and a plot

    def focus_default(self) -> None:
        """Focus the list."""
        self.focus_now(self.rows)

    # What is known.

    def refresh_data(self) -> None:
        """Show new numbers, and ask for newer ones when it is time."""
        if self._is_due("report", (self._by, self._month)):
            report: Work = partial(self._ask_report, self._by, self._month)
            self.run_worker(report, group="usage-report", exclusive=True)
        # The month that the figures are of, which is not yet the one that was just asked for.
        past_month = None if self._report is None else self._report.past_month
        self.query_one(UsageLine).show(
            self._by, past_month or self._this_month, is_over=past_month is not None
        )
        self.rows.show_report(self._report)
        self._show_chosen()

    @property
    def _this_month(self) -> date | None:
        """The first day of the running month, by the daemon's clock."""
        return None if self._today is None else self._today.replace(day=1)

    def _is_due(self, what: str, question: object) -> bool:
        """Return whether this is to be asked now: it is another question, or the answer is old."""
        now_s = self.context.now_s()
        asked, at_s = self._asked.get(what, (None, 0.0))
        live = self.state.connection is Connection.LIVE
        if not live and not self.state.reads_disk:
            return False
        # The daemon is asked at once when it is back.
        question = (question, live)
        if asked == question and now_s - at_s < _ASKED_EVERY_S:
            return False
        self._asked[what] = (question, now_s)
        return True

    async def _ask_report(self, by: Grouping, month: date | None) -> None:
        ask = self.context.feed.usage
        try:
            if month is None:
                whole = await ask(by)
                today = None if by is Grouping.DAY else await ask(by, since=whole.until, until=whole.until)
                self._today = date.fromisoformat(whole.until)
            else:
                whole, today = await ask(by, since=f"{month}", until=f"{last_day(month)}"), None
        except AdminClientError as error:
            self.query_one(UsageLine).problem = printable_text(str(error), _MAX_PROBLEM_CHARS)
        else:
            self.query_one(UsageLine).problem = ""
            is_other = self._report is None or self._report.by is not by
            self._report = Report(by, whole, today, month)
            if is_other:
                self.rows.show_report(self._report)
                self.rows.go_to(0)
        self.refresh_data()

    async def _ask_breakdown(self, of: tuple[Grouping, str | None, date | None], today: date) -> None:
        await asyncio.sleep(_SETTLED_S)
        by, name, month = of
        ask = self.context.feed.usage
        first, last = (today.replace(day=1), today) if month is None else (month, last_day(month))
        chosen = {} if name is None or by is Grouping.DAY else {by.value: name}
        plotted = f"{today - timedelta(days=DAYS - 1)}" if month is None else f"{first}"
        summed = (f"{first}", f"{last}") if by is not Grouping.DAY or name is None else (name, name)
        try:
            days = await ask("day", since=plotted, until=f"{last}", **chosen)
            one, other = [await ask(part, since=summed[0], until=summed[1], **chosen) for part in PARTS[by]]
        except AdminClientError as error:
            self.query_one(UsageLine).problem = printable_text(str(error), _MAX_PROBLEM_CHARS)
        else:
            self._breakdown, self._broken_down = Breakdown(days, (one, other)), of
        self.refresh_data()

    @on(LineList.Moved, "#usage-list")
    def _moved(self) -> None:
        self._show_chosen()
        self.post_message(self.HintsChanged())

    def _show_chosen(self) -> None:
        item, report = self.rows.chosen, self._report
        if item is None or report is None or self._today is None:
            return
        of = (report.by, item.name, report.past_month)
        if not self.has_class("-low") and self._is_due("breakdown", of):
            breakdown: Work = partial(self._ask_breakdown, of, self._today)
            self.run_worker(breakdown, group="usage-breakdown", exclusive=True)
        self._show_bounds(item, report)
        known = self._breakdown if self._broken_down == of else None
        self._plot(printable_text(name_in_words(report.by, item.name)), known)
        for place, parts in enumerate(self.query(PartList)):
            parts.show_parts(PARTS[report.by][place], None if known is None else known.parts[place])

    def _show_bounds(self, item: UsageItem, report: Report) -> None:
        bounds, client = self.query_one(BoundLines), self.rows.client_of(item)
        bounds.display = report.today is not None and report.by in {Grouping.CLIENT, Grouping.KEY}
        wanted = 1 if client is None else max(1, len(meters(client)))
        bounds.styles.height = _NARROW_BOUNDS if self.has_class("-narrow") else min(_MAX_BOUNDS, wanted)
        bounds.show(client, report.month)

    def _plot(self, name: str, known: Breakdown | None) -> None:
        tokens, costs = self.query_one("#tokens", Plot), self.query_one("#costs", Plot)
        if known is None:
            tokens.show(f"{name}: asking …", [], ("", ""), count)
            costs.show("", [], ("", ""), count)
            return
        days = days_of(known.days)
        times = (days[0], "today" if days[-1] == f"{self._today}" else days[-1])
        figures = by_day(known.days, ("in", "out", "US$"))
        lines = [
            Line(title, figures[title], role, sum(figures[title]))
            for title, role in (("in", Role.STREAM), ("out", Role.WAIT))
        ]
        whose = "" if self.has_class("-narrow") else f"{name}: "
        span = plural(len(days), "day")
        tokens.show(f"{whose}tokens, {span}", lines, times, count)
        cost = [Line("in all", figures["US$"], Role.WAIT, sum(figures["US$"]))]
        costs.show(f"{whose}US$, {span}", cost, times, money)

    # What can be done.

    def hints(self) -> list[Hint]:
        """Return the keys of this screen, with the reason for each that can't be used."""
        return [
            Hint("Enter", "requests", "requests", self._no_requests()),
            Hint("c i m d", "sum by", "next_group"),
            Hint("←→", "month", "month(-1)"),
            CLIENTS_HINT,
            *HELP_HINTS,
            SORT_HINT,
            BACK_HINT,
        ]

    def _no_requests(self) -> str:
        item = self.rows.chosen
        if item is None:
            return "nothing is known yet"
        return "no filter finds these requests" if requests_of(self.rows.by, item.name) is None else ""

    @on(LineList.Chosen, "#usage-list")
    def action_requests(self) -> None:
        """Show the requests of the chosen row."""
        item = self.rows.chosen
        wanted = None if item is None else requests_of(self.rows.by, item.name)
        if wanted is None:
            self.app.notify(f"Not now: {self._no_requests()}.")
        else:
            self.post_message(self.FilterRequests(wanted))

    @on(LineList.Chosen)
    def _part_chosen(self, event: LineList.Chosen) -> None:
        """Show the requests of a part of the chosen row."""
        item, parts = self.rows.chosen, event.list
        if not isinstance(parts, PartList) or item is None or parts.chosen is None:
            return
        filters = (requests_of(self.rows.by, item.name), requests_of(parts.by, parts.chosen.name))
        if None in filters:
            self.app.notify("Not now: no filter finds these requests.")
        else:
            self.post_message(self.FilterRequests(" ".join(filter(None, filters))))

    def action_group(self, by: str) -> None:
        """Sum by this."""
        self._by = Grouping(by)
        self.refresh_data()

    def action_next_group(self) -> None:
        """Sum by the next grouping."""
        all_of_them = list(Grouping)
        self.action_group(all_of_them[(all_of_them.index(self._by) + 1) % len(all_of_them)])

    def action_month(self, months: int) -> None:
        """Show an earlier or a later month, up to the running one."""
        if self._this_month is None:
            self.app.notify(self.rows.empty_text()[0])
            return
        if months > 0 and self._month is None:
            self.app.notify("This is the running month; there is no later one.")
            return
        wanted = other_month(self._month or self._this_month, months)
        self._month = None if wanted >= self._this_month else wanted
        self.refresh_data()
