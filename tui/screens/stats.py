"""The Stats screen: rate, errors and waiting over four windows of time, and who they belong to."""

from __future__ import annotations

from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal

from relayd.admin.client import AdminClientError
from tui.model.stats import NO_NAME, OTHERS, WINDOWS, Summary, Window
from tui.model.units import clock_short, duration, rate
from tui.screens.pane import Pane
from tui.theme import Role
from tui.widgets.bars import Hint
from tui.widgets.line_list import LineList
from tui.widgets.plot import Line, Plot
from tui.widgets.tally_list import TallyList
from tui.widgets.window_line import WindowLine

_DAY_S = 86_400
SIDE_BY_SIDE = 100


class StatsPane(Pane):
    """Two plots above, two tables below; on a narrow screen the plots stand over each other."""

    DEFAULT_CSS = """
    StatsPane #plots { height: 1fr; }
    StatsPane #tables { height: 1fr; max-height: 14; }
    StatsPane.-narrow #plots { layout: vertical; height: 2fr; }
    StatsPane.-narrow #tables { height: 1fr; min-height: 5; }
    StatsPane.-narrow #clients { display: none; }
    StatsPane.-narrow.-clients #clients { display: block; }
    StatsPane.-narrow.-clients #models { display: none; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right_square_bracket,right", "window(1)", "Longer window"),
        Binding("left_square_bracket,left", "window(-1)", "Shorter window"),
        Binding("c", "table", "Models or clients"),
    ]

    def __init__(self) -> None:
        super().__init__(id="stats")
        self.window = WINDOWS[0]
        self._asked_from: int | None = None

    def compose(self) -> ComposeResult:
        """Window, plots, tables."""
        yield WindowLine(id="window")
        with Horizontal(id="plots"):
            yield Plot(id="rates")
            yield Plot(id="waits")
        with Horizontal(id="tables"):
            yield TallyList("model", id="models")
            yield TallyList("client", id="clients")

    def on_mount(self) -> None:
        """The right layout at once."""
        self.set_class(self.app.size.width < SIDE_BY_SIDE, "-narrow")

    def on_resize(self) -> None:
        """Another layout for another width."""
        self.set_class(self.size.width < SIDE_BY_SIDE, "-narrow")

    def focus_default(self) -> None:
        """The table in sight."""
        clients = self.has_class("-narrow") and self.has_class("-clients")
        self.take_focus(self.query_one("#clients" if clients else "#models", TallyList))

    def refresh_data(self) -> None:
        """New numbers."""
        app = self.relayd_app
        now_s = app.now_s()
        summary = app.state.stats.summary(self.window, now_s)
        oldest_s = app.state.stats.oldest_s
        complete = self._asked_all() or (oldest_s is not None and oldest_s <= now_s - self.window.span_s)
        self.query_one(WindowLine).show(self.window, summary, complete=complete)
        self._plot(summary, now_s)
        self.query_one("#models", TallyList).show(summary.models)
        self.query_one("#clients", TallyList).show(summary.clients)
        if not complete:
            self.load_history()

    def _asked_all(self) -> bool:
        return self.relayd_app.history_complete

    def _plot(self, summary: Summary, now_s: float) -> None:
        window, buckets = summary.window, summary.buckets
        times = (_moment(now_s - window.span_s, window), "now")
        per_min = 60 / window.bucket_s
        rates = [
            Line("requests", [b.all.requests * per_min for b in buckets], Role.STREAM),
            Line("errors", [b.all.errors * per_min for b in buckets], Role.BAD),
        ]
        self.query_one("#rates", Plot).show("A minute", rates, times, rate)
        waits = [
            Line("p95", [(b.all.first.percentile(0.95) or 0.0) for b in buckets], Role.WAIT),
            Line("p50", [(b.all.first.percentile(0.5) or 0.0) for b in buckets], Role.STREAM),
        ]
        self.query_one("#waits", Plot).show("First token", waits, times, _wait)

    @work(exclusive=True, group="history")
    async def load_history(self) -> None:
        """Ask the daemon for what is older than memory, page by page, and only count it."""
        try:
            await self.relayd_app.load_history(self.window)
        except AdminClientError as error:
            self.query_one(WindowLine).trouble = str(error)

    def action_window(self, step: int) -> None:
        """The next longer or shorter window."""
        self.set_window(WINDOWS[(WINDOWS.index(self.window) + step) % len(WINDOWS)])

    def set_window(self, window: Window) -> None:
        """Show this window."""
        self.window = window
        self.refresh_data()

    @on(WindowLine.Picked)
    def _picked(self, event: WindowLine.Picked) -> None:
        self.set_window(event.window)

    def action_table(self) -> None:
        """On a narrow screen: the other table."""
        self.toggle_class("-clients")
        self.focus_default()

    @on(LineList.Chosen)
    async def _filter_by(self, event: LineList.Chosen) -> None:
        table = event.list
        if not isinstance(table, TallyList) or event.key in {NO_NAME, OTHERS}:
            return
        await self.relayd_app.filter_requests(f'{table.what}="{event.key}"')

    def hints(self) -> list[Hint]:
        """Keys of this screen."""
        narrow = self.has_class("-narrow")
        return [
            Hint("←→", "window", "app.here('window(1)')"),
            *([Hint("c", "models/clients", "app.here('table')")] if narrow else []),
            Hint("Enter", "filter by it", "app.here('filter_by')"),
            Hint("K", "keys", "app.show_screen('keys')"),
            Hint(":", "cmd", "app.command_palette"),
            Hint("?", "help", "app.help"),
            Hint("Esc", "back", "app.back"),
        ]

    def action_filter_by(self) -> None:
        """Filter by the row under the cursor, of the table that has the focus."""
        table = self.app.focused
        (table if isinstance(table, TallyList) else self.query_one("#models", TallyList)).action_choose()


def _wait(ms: float) -> str:
    return duration(ms) if ms else "0"


def _moment(at_s: float, window: Window) -> str:
    return f"{window.name} ago" if window.span_s > _DAY_S else clock_short(at_s)
