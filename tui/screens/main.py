"""The one window: header, tabs, the screen that is on, and the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import ContentSwitcher

from tui.screens.pane import Pane
from tui.widgets.bars import TABS, ClickBar, KeyBar, TabBar
from tui.widgets.notice import Notice
from tui.widgets.status_bar import WIDE, StatusBar

if TYPE_CHECKING:
    from tui.app import RelaydApp

_HIGH = 30


def _make_pane(name: str) -> Pane:
    """Imported when first shown: the first paint does not wait for screens nobody looks at."""
    if name == "inflight":
        from tui.screens.inflight import InFlightPane  # noqa: PLC0415 - see above

        return InFlightPane()
    if name == "stats":
        from tui.screens.stats import StatsPane  # noqa: PLC0415 - see above

        return StatsPane()
    if name == "keys":
        from tui.screens.keys import KeysPane  # noqa: PLC0415 - see above

        return KeysPane()
    if name == "audit":
        from tui.screens.audit import AuditPane  # noqa: PLC0415 - see above

        return AuditPane()
    from tui.screens.requests import RequestsPane  # noqa: PLC0415 - see above

    return RequestsPane()


class MainScreen(Screen[None]):
    """Keys that work on every screen live here; dialogs cover them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(tab.key, f"app.show_screen('{tab.name}')", tab.title) for tab in TABS),
        Binding("K", "app.show_screen('keys')", "Keys"),
        Binding("P", "app.pause", "Pause or resume intake"),
        Binding("D", "app.drain", "Drain"),
        Binding("M", "app.mouse", "Mouse on or off"),
        Binding("R", "app.retry", "Connect now"),
        Binding("colon", "app.command_palette", "Commands"),
        Binding("question_mark", "app.help", "Help"),
        Binding("escape", "app.back", "Back"),
        Binding("q", "app.back", "Back"),
        Binding("Q", "app.quit", "Quit"),
    ]

    def __init__(self, first: str) -> None:
        super().__init__()
        self._first = first

    @property
    def _desk_app(self) -> RelaydApp:
        return cast("RelaydApp", self.app)

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        app = self._desk_app
        yield StatusBar(app.state, app.now_s, app.options.place)
        yield TabBar(app.badge, id="tabs")
        yield Notice(app.state)
        with ContentSwitcher(id="panes", initial=self._first):
            yield _make_pane(self._first)
        yield KeyBar(id="keybar")

    def on_mount(self) -> None:
        """Begin on the remembered screen."""
        self.query_one(TabBar).current = self._first
        self.pane.focus_default()
        self.refresh_hints()

    def on_resize(self) -> None:
        """The second header line needs room."""
        high = self.size.width >= WIDE and self.size.height >= _HIGH
        self.query_one(StatusBar).styles.height = 2 if high else 1

    @property
    def pane(self) -> Pane:
        """The screen that is on."""
        switcher = self.query_one("#panes", ContentSwitcher)
        return switcher.get_child_by_id(switcher.current or self._first, Pane)

    async def show(self, name: str) -> Pane:
        """Turn to a screen; it is made when it is not there yet."""
        switcher = self.query_one("#panes", ContentSwitcher)
        if not switcher.query(f"#{name}"):
            pane = _make_pane(name)
            # The switcher shows one at a time; without this both would share the height for a moment.
            pane.display = False
            await switcher.mount(pane)
        switcher.current = name
        self.query_one(TabBar).current = name
        self.query_one(TabBar).redraw()
        pane = self.pane
        pane.refresh_data()
        pane.focus_default()
        self.refresh_hints()
        return pane

    def refresh_hints(self) -> None:
        """The keys of what is on."""
        self.query_one(KeyBar).show(self.pane.hints())

    def refresh_data(self) -> None:
        """The state changed."""
        self.query_one(StatusBar).redraw()
        self.query_one(TabBar).redraw()
        self.query_one(Notice).refresh_data()
        self.pane.refresh_data()
        self.refresh_hints()

    @on(ClickBar.Clicked)
    async def _clicked(self, event: ClickBar.Clicked) -> None:
        event.stop()
        await self.run_action(event.action)
