"""The one window: header, tabs, the screen that is on, and the keys."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import ContentSwitcher
from textual.widgets._toast import ToastRack

from relayd.admin.client import AdminClientError
from relayd.admin.schema import AlertKind
from tui.context import Context
from tui.keymap import action_id, with_ids
from tui.model.store import record_key
from tui.screens.pane import BACK_HINT, Pane
from tui.type_ahead import ASKS, LEADS, Work
from tui.widgets.bars import TABS, ClickBar, Hint, KeyBar, TabBar
from tui.widgets.status_bar import WIDE, Notice, StatusBar

if TYPE_CHECKING:
    # Loaded when first shown.
    from tui.app import RelaydApp
    from tui.screens.clients import ClientsPane
    from tui.screens.requests import RequestsPane

_HIGH = 30
_MAX_JUMPS = 20
_ALL_EVERY_S = 10
"""How often everything is drawn while there is no news: what is left out until then changes by the hour."""
_HEALTH = "config"
"""The screen that tells of log, disk and database."""
_FAILED = "status>=400 outcome!=denied or outcome=upstream_error or outcome=crashed"
_BELOW_HEADS = 2
"""A filter line and the names of the columns."""


def pane_class(name: str) -> type[Pane]:
    """Return the class of a screen. Those that are not shown at the start do not delay the first paint."""
    return cast("type[Pane]", resolve_name(f"tui.screens.{name}:{name.capitalize()}Pane"))


def _pane(name: str, context: Context) -> Pane:
    make = cast("Callable[[Context], Pane]", pane_class(name))
    return make(context)


@dataclass(frozen=True, slots=True)
class _Jump:
    """A way from one place to another, which Escape takes back."""

    origin: str
    """The screen that it led away from."""
    restore: Callable[[], None]
    """Shows again what the target showed before."""
    depth: int
    """How much was open inside the target when it was reached."""


class MainScreen(Screen[None]):
    """Keys that work on every screen live here; dialogs cover them.

    Args:
        context: what the screens show and act on.
        first: the name of the screen to begin with.
    """

    CHANGES: ClassVar[frozenset[str]] = frozenset({"pause", "drain"})
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(tab.key, f"show_screen('{tab.name}')", f"Show {tab.title}") for tab in TABS),
        Binding("K", "show_screen('clients')", "Show Clients"),
        Binding("W", "whose_key", "Whose key is this?"),
        Binding("A", "alerts", "Alerts"),
        Binding("P", "pause", "Pause or resume intake"),
        Binding("D", "drain", "Drain, then stop the daemon"),
        Binding("H", "app.hosts", "Switch to another server"),
        Binding("M", "app.mouse", "Mouse on or off"),
        Binding("R", "retry", "Connect now"),
        Binding("colon", "app.command_palette", "Commands", key_display=":"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("escape", "back", "Back", key_display="Esc"),
        Binding("q,backspace", "back", "Back"),
        Binding("Q", "app.quit", "Quit"),
    ]
    BINDINGS = with_ids("main", BINDINGS)

    def __init__(self, context: Context, first: str) -> None:
        super().__init__()
        self.context = context
        self._first = first if first in {tab.name for tab in TABS} else TABS[0].name
        self._jumps: deque[_Jump] = deque(maxlen=_MAX_JUMPS)

    def compose(self) -> ComposeResult:
        """Show everything from top to bottom."""
        context = self.context
        yield StatusBar(context)
        yield TabBar(self._badge, self._first)
        yield Notice(context)
        with ContentSwitcher(id="panes", initial=self._first):
            yield _pane(self._first, context)
        yield KeyBar()

    def on_mount(self) -> None:
        """Begin on the remembered screen."""
        self.pane.focus_default()
        self.refresh_hints()

    def on_resize(self) -> None:
        """Show the second header line where there is room."""
        high = self.size.width >= WIDE and self.size.height >= _HIGH
        self.query_one(StatusBar).styles.height = 2 if high else 1

    def _badge(self, tab: str) -> str | None:
        state = self.context.state
        if tab == "instances":
            return "" if state.is_shared else None
        if tab == "inflight":
            return str(len(state.open_streams.streams) or "")
        return "!" if tab == "clients" and state.dead_keys_in_use(self.context.now_s()) else ""

    @property
    def pane(self) -> Pane:
        """The screen that is on."""
        switcher = self.query_one(ContentSwitcher)
        return switcher.get_child_by_id(switcher.current or self._first, Pane)

    async def action_show_screen(self, name: str) -> None:
        """Turn to a screen. Ways that led here are forgotten."""
        self._jumps.clear()
        await self._show(name)

    async def _show(self, name: str) -> None:
        """Show a screen; it is made when it is first shown."""
        switcher = self.query_one(ContentSwitcher)
        if all(pane.id != name for pane in switcher.children):
            pane = _pane(name, self.context)
            # The switcher shows one at a time; without this both would share the height for a moment.
            pane.display = False
            await switcher.mount(pane)
        switcher.current = name
        self.query_one(TabBar).current = name
        self.query_one(TabBar).redraw()
        self.pane.refresh_data()
        self.pane.focus_default()
        self.refresh_hints()
        self._place_toasts()
        self.context.settings_file.settings.screen = name

    # Ways from one screen to another, and back.

    @on(Pane.OpenRequest)
    def _open_request(self, event: Pane.OpenRequest) -> None:
        """Show one request in full."""
        opening: Work = partial(self._open, event.request_id, event.seq)
        self.run_worker(opening, group=LEADS, exclusive=True)

    async def _open(self, request_id: str, seq: int | None) -> None:
        """Show one request in full; load it if necessary."""
        if seq is None or not self.context.state.store.has(record_key(seq)):
            try:
                seq = await self.context.feed.history.load_one(request_id)
            except AdminClientError as error:
                self.app.notify(f"Not opened: {error}", severity="error")
                return
        found = seq
        await self._jump(TABS[0].name, lambda pane: cast("RequestsPane", pane).show_record(found))

    @on(Pane.FilterRequests)
    async def _filter_requests(self, event: Pane.FilterRequests) -> None:
        await self._jump(TABS[0].name, lambda pane: cast("RequestsPane", pane).set_filter(event.filter))

    @on(Pane.OpenOwner)
    async def _open_owner(self, event: Pane.OpenOwner) -> None:
        def show(pane: Pane) -> None:
            cast("ClientsPane", pane).show_owner(event.client, event.key_id, event.key)

        await self._jump("clients", show)

    async def _jump(self, name: str, show: Callable[[Pane], None]) -> None:
        """Show something on a screen; Escape leads back to this place."""
        origin = self.pane
        if name != origin.id:
            origin.stay()
        await self._show(name)
        target = self.pane
        restore = target.way_back()
        show(target)
        self._jumps.append(_Jump(str(origin.id), restore, target.depth))
        self.refresh_hints()

    async def _return(self) -> None:
        """Go back to where the last jump led away from."""
        jump = self._jumps.pop()
        jump.restore()
        await self._show(jump.origin)

    @property
    def _returns(self) -> bool:
        """Whether the next step back leads to the place of the last jump."""
        return bool(self._jumps) and self.pane.depth <= self._jumps[-1].depth

    @on(Pane.HintsChanged)
    def refresh_hints(self) -> None:
        """Show the keys of the screen that is on."""
        hints = self.pane.hints()
        if self._returns:
            title = next(tab.title for tab in TABS if tab.name == self._jumps[-1].origin)
            hints = [replace(BACK_HINT, label=f"back to {title}"), *(h for h in hints if h != BACK_HINT)]
        self.query_one(KeyBar).show([self._with_chosen_key(hint) for hint in hints])

    def _with_chosen_key(self, hint: Hint) -> Hint:
        """Return the hint with the key that the operator chose for its action."""
        part = "main" if "." in hint.action.partition("(")[0] else str(self.pane.id)
        for id_ in (action_id(part, hint.action), action_id("list", hint.action)):
            if key := cast("RelaydApp", self.app).chosen_key(id_):
                return replace(hint, key=key)
        return hint

    def refresh_data(self) -> None:
        """Show new data."""
        self._refresh_header()
        self.query_one(TabBar).redraw()
        self.pane.refresh_data()
        self.refresh_hints()
        self._place_toasts()

    def refresh_moving(self, second: int) -> None:
        """Show what the time has changed; `second` counts the calls."""
        if self.context.state.open_streams.streams or second % _ALL_EVERY_S == 0:
            self.refresh_data()
            return
        self._refresh_header()
        if second % self.pane.MOVES_EVERY_S == 0:
            self.pane.refresh_moving()

    def _refresh_header(self) -> None:
        self.query_one(StatusBar).redraw()
        self.query_one(Notice).refresh_data()

    def _place_toasts(self) -> None:
        """Keep toasts away from header, notice and the newest rows: they are at the other end of the list."""
        # Not by a query, which looks at every widget.
        for rack in self.children:
            if not isinstance(rack, ToastRack):
                continue
            rack.set_class(self.pane.NEWEST_FIRST, "-low")
            top = 0 if self.pane.NEWEST_FIRST else self.query_one(ContentSwitcher).region.y + _BELOW_HEADS
            rack.styles.margin = (top, 0, 1, 0)

    @on(ClickBar.Clicked)
    async def _clicked(self, event: ClickBar.Clicked) -> None:
        event.stop()
        await self.app.run_action(event.action, self.pane)

    async def action_back(self) -> None:
        """Take one step back: to where one came from, or to the first screen; there nothing."""
        if self._returns:
            await self._return()
        elif not self.pane.step_back() and self.pane.id != TABS[0].name:
            await self.action_show_screen(TABS[0].name)

    def action_help(self) -> None:
        """Show every key, and what the signs mean."""
        from tui.screens.help import HelpScreen  # noqa: PLC0415 - loaded when first used

        self.app.push_screen(HelpScreen(str(self.pane.id)))

    def action_whose_key(self) -> None:
        """Ask for a key, and say whose it is."""
        asking: Work = self._whose_key
        self.app.run_worker(asking, group=LEADS)

    async def _whose_key(self) -> None:
        from tui.ring_actions import RingActions  # noqa: PLC0415 - loaded when first used
        from tui.screens.whose_key import Wish  # noqa: PLC0415 - as above

        actions = RingActions(self.app, self.context)
        found = await actions.whose_key()
        if found is None:
            return
        key = found.key
        if found.wish is Wish.REVOKE:
            revoking: Work = partial(actions.revoke_found, key)
            self.app.run_worker(revoking, group=f"{ASKS}-key")
        elif found.wish is Wish.REQUESTS:
            await self._filter_requests(Pane.FilterRequests(f'key_id="{key.id}"'))
        else:
            await self._open_owner(Pane.OpenOwner(key.client, key.id, key))

    @work(group=LEADS)
    async def action_alerts(self) -> None:
        """Show the alerts, and go to the place of the chosen one."""
        from tui.screens.alerts import AlertsScreen  # noqa: PLC0415 - loaded when first used
        from tui.screens.dialogs import ask  # noqa: PLC0415 - loaded when first used

        alert = await ask(self.app, AlertsScreen(self.context))
        if alert is None:
            return
        match alert.kind:
            case AlertKind.DEAD_KEY | AlertKind.KEY_ENDS | AlertKind.BOUND:
                await self._open_owner(Pane.OpenOwner(alert.client, alert.key_id))
            case AlertKind.ERRORS:
                await self._filter_requests(Pane.FilterRequests(_FAILED))
            case AlertKind.ROUTE:
                await self._jump("stats", lambda _: None)
            case _ if any(tab.name == _HEALTH for tab in TABS):
                await self._jump(_HEALTH, lambda _: None)

    def action_pause(self) -> None:
        """Take no new work, or take it again."""
        self.context.stream_actions.pause_or_resume()

    def action_drain(self) -> None:
        """Let the daemon finish and stop."""
        self.context.stream_actions.drain()

    def action_retry(self) -> None:
        """Connect now instead of at the next try."""
        self.context.feed.retry_now()

    def action_explain(self, reason: str) -> None:
        """Say why an action can't run now."""
        self.app.notify(f"Not now: {reason}.")
