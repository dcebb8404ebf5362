"""The Config screen: the settings in force with their sources, and how disk, log and process are."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widget import Widget
from textual.widgets import Input

from relayd.admin.client import AdminClientError, Refused
from relayd.admin.schema import Reloaded
from relayd.printable import plural
from tui.context import Context
from tui.model.app_state import AppState, Connection
from tui.model.configuration import Row, Shown, health, outcome, remarks, settings, what_a_reload_does
from tui.model.sorting import Value
from tui.model.text import printable_text
from tui.model.units import clock
from tui.screens.dialogs import Confirm, Dialog, ask, paragraph
from tui.screens.pane import BACK_HINT, CLIENTS_HINT, HELP_HINTS, SORT_HINT, Pane
from tui.theme import Role, style
from tui.type_ahead import ASKS, Work
from tui.widgets.bars import ClickBar, Hint
from tui.widgets.cells import Piece, fit, width_of
from tui.widgets.line_list import Field, ItemList, LineList, dimmed
from tui.widgets.words import Words

_SIDE_BY_SIDE = 110
_ASK_EVERY_S = 10.0
_NAME_CELLS = 31
_MIN_SOURCE_CELLS, _MAX_SOURCE_CELLS = 15, 40
_MAX_LINE_CHARS = 500


class ConfigLine(ClickBar):
    """Which rows are shown, the filter, and whose configuration it is."""

    DEFAULT_CSS = "ConfigLine { background: transparent; }"

    def __init__(self) -> None:
        super().__init__(id="config-line")
        self._shown = Shown.ALL
        self._counts: dict[Shown, int] = {}
        self._filter = ""
        self._whose = ""

    def show(self, shown: Shown, counts: dict[Shown, int], text: str, whose: str) -> None:
        """Show these."""
        self._shown, self._counts, self._filter, self._whose = shown, counts, text, whose
        self.redraw()

    def parts(self, width: int) -> Iterable[tuple[list[Piece], str]]:
        """Return the choices and the filter; whose it is, if there is room."""
        dim, text, key = (style(self.app, role) for role in (Role.DIM, Role.TEXT, Role.KEY))
        left = width
        for shown in Shown:
            count = "" if shown is Shown.ALL else f" {self._counts.get(shown, 0)}"
            part = [self.choice(f"{shown.value}{count}", chosen=shown is self._shown)]
            left -= width_of(part)
            yield part, f"show('{shown.value}')"
        whose = f" {self._whose} "
        right = len(whose) if left - len(whose) > 20 else 0  # noqa: PLR2004 - the filter needs some
        words = fit(self._filter or "filter", max(0, left - right - 3))
        yield [(" / ", key), (words, text if self._filter else dim)], "filter"
        if right:
            yield [(whose, dim)], ""


class SearchBox(Input):
    """Where the filter is typed. Enter and Escape return the focus at once: the next key goes to the list."""

    DEFAULT_CSS = "SearchBox { display: none; border: none; height: 1; padding: 0 1; background: $panel; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", show=False),
        Binding("tab,shift+tab", "submit", "Keep the filter", show=False),
    ]

    def __init__(self, close: Callable[[], None]) -> None:
        hint = "words that a setting, its value, source or description has; Enter keeps it, Esc clears it"
        super().__init__(placeholder=hint, id="config-search", compact=True)
        self._close = close

    async def action_submit(self) -> None:
        """Keep the filter, on Enter."""
        self._close()

    def action_leave(self) -> None:
        """Show everything again, on Escape."""
        self.value = ""
        self._close()


class ConfigList(ItemList[Row]):
    """What is wrong, health, and the settings."""

    def __init__(self, state: AppState) -> None:
        super().__init__(lambda row: row.key, id="config-list")
        self._state = state
        self.problem = ""

    def fields(self, width: int) -> list[Field]:
        """Return the columns."""
        left = max(0, width - _NAME_CELLS - 3)
        source = max(_MIN_SOURCE_CELLS, min(_MAX_SOURCE_CELLS, left * 2 // 5))
        return [
            Field("setting", _NAME_CELLS),
            Field("value", max(0, left - source - 1)),
            Field("from", source),
        ]

    def sort_values(self) -> Mapping[str, Value[Row]]:
        """Return what a setting is sorted by."""
        return {
            "setting": lambda row: row.name,
            "value": lambda row: row.value,
            "from": lambda row: row.source,
        }

    def is_pinned(self, item: Row) -> bool:
        """Return whether it is no setting."""
        return item.setting is None

    def cells(self, item: Row) -> dict[str, tuple[str, Role]]:
        """Return one row."""
        name, value, source = Role.STRONG, Role.TEXT, Role.DIM
        if item.setting is None:
            name = value = Role.BAD if item.is_trouble else Role.TEXT
        elif item.is_changed:
            value = source = Role.WARN
        elif item.setting.is_default:
            name = value = Role.DIM
        cells = {"setting": (item.name, name), "value": (item.value, value), "from": (item.source, source)}
        return cells if self._state.connection is Connection.LIVE else dimmed(cells)

    def item_pieces(self, item: Row, width: int) -> Iterable[Piece]:
        """Return one row; what is no setting has no source, and its value has the whole width."""
        if item.source:
            yield from super().item_pieces(item, width)
            return
        cells = self.cells(item)
        name, *rest = self.fields(width)
        yield name.fit(cells["setting"][0]) + " ", style(self.app, cells["setting"][1])
        space = sum(field.width + 1 for field in rest) - 1
        yield fit(item.value, space) + " ", style(self.app, cells["value"][1])

    def empty_text(self) -> tuple[str, ...]:
        """Say why there is nothing."""
        if self._state.configuration is not None:
            return ("Nothing matches.", "Esc shows everything.")
        if self._state.connection is not Connection.LIVE:
            return (f"{self._state.state_word}: the configuration is not known.",)
        return (self.problem or "Asking ...",)


class ReloadOutcome(Dialog[None]):
    """What a reload led to."""

    def __init__(self, title: str, lines: Iterable[str], *, danger: bool) -> None:
        super().__init__(title, no="Close", danger=danger)
        self._lines = lines

    def body(self) -> Iterable[Widget]:
        """Show a paragraph."""
        yield paragraph(_joined(self._lines))


class ConfigPane(Pane):
    """The list, and all that is known of the chosen row.

    On a wide screen that is beside the list, with the health of the instance below it; else it is below the
    list, which has the health, too.
    """

    DEFAULT_CSS = """
    ConfigPane > Horizontal { height: 1fr; }
    ConfigPane ConfigList { width: 7fr; }
    ConfigPane #config-right { width: 4fr; background: $surface; padding: 0 1; }
    ConfigPane #config-right Static { height: auto; }
    ConfigPane #config-health { margin: 1 0; }
    ConfigPane.-narrow #config-health { display: none; }
    ConfigPane.-narrow > Horizontal { layout: vertical; }
    ConfigPane.-narrow ConfigList { width: 1fr; }
    ConfigPane.-narrow #config-right { width: 1fr; height: 5; }
    ConfigPane.-searching ConfigLine { display: none; }
    ConfigPane.-searching SearchBox { display: block; }
    """
    MOVES_EVERY_S = 5
    CHANGES: ClassVar[frozenset[str]] = frozenset({"reload"})
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter the settings", key_display="/"),
        Binding("h", "next_shown", "Hide defaults, hide all but changes, or show all"),
        Binding("S", "reload", "Reload the configuration"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context, id="config")
        self._shown = Shown.ALL
        self._asked_s = -math.inf
        self._told_s = 0.0
        """When the daemon told it last."""

    def compose(self) -> ComposeResult:
        """Show the line, the list and the chosen row."""
        yield ConfigLine()
        yield SearchBox(self._close_search)
        with Horizontal():
            yield ConfigList(self.state)
            with VerticalScroll(id="config-right", can_focus=True):
                yield Words(id="config-words")
                yield Words(id="config-health")

    @property
    def rows(self) -> ConfigList:
        """The list."""
        return self.query_one(ConfigList)

    @property
    def _search(self) -> str:
        return self.query_one(SearchBox).value

    def on_mount(self) -> None:
        """Lay out."""
        self.set_class(self.app.size.width < _SIDE_BY_SIDE, "-narrow")

    def on_resize(self) -> None:
        """Lay out for another width."""
        self.set_class(self.size.width < _SIDE_BY_SIDE, "-narrow")
        self._show()

    def focus_default(self) -> None:
        """Focus the list."""
        self.focus_now(self.rows)

    # What is shown.

    def refresh_data(self) -> None:
        """Show what is known, and ask for it from time to time."""
        now_s = self.context.now_s()
        if self.state.connection is Connection.LIVE and abs(now_s - self._asked_s) >= _ASK_EVERY_S:
            self._asked_s = now_s
            self.start_once("configuration", self._ask)
        self._show()

    async def _ask(self) -> None:
        try:
            await self.context.feed.refresh_configuration()
            self._told_s = self.context.now_s()
            self.rows.problem = ""
        except AdminClientError as error:
            self.rows.problem = printable_text(str(error), _MAX_LINE_CHARS)
            self._show()

    @on(Input.Changed)
    def _show(self) -> None:
        state, words = self.state, self._search.lower().split()
        known = state.configuration
        found: list[Row] = []
        if known is not None:
            facts = list(health(known, state.status, self.context.now_s()))
            self.query_one("#config-health", Words).say(self._in_words(facts))
            beside = not self.has_class("-narrow")
            found = [*remarks(known), *([] if beside else facts), *settings(known)]
        counts = {shown: sum(row.is_among(shown) for row in found) for shown in Shown}
        whose = ""
        if known is not None and state.is_shared:
            whose = f"of {known.process.instance} alone; others may differ"
        if known is not None and state.connection is not Connection.LIVE:
            whose = f"as of {clock(self._told_s)}"
        self.query_one(ConfigLine).show(self._shown, counts, self._search, whose)
        self.rows.show(row for row in found if row.is_among(self._shown) and row.has_words(words))
        self._show_chosen()

    def _in_words(self, facts: Iterable[Row]) -> Text:
        roles = (
            (Role.DIM, Role.BAD, Role.TEXT) if self.state.connection is Connection.LIVE else (Role.DIM,) * 3
        )
        dim, bad, text = (style(self.app, role) for role in roles)
        shown = Text()
        for fact in facts:
            shown.append(f"{fact.name:<13}", dim)
            shown.append(f"{fact.value}\n", bad if fact.is_trouble else text)
        return shown

    @on(LineList.Moved)
    def _show_chosen(self) -> None:
        row = self.rows.chosen
        text = Text()
        if row is not None:
            first, *rest = (line for line in row.lines if line)
            text = Text(first, style(self.app, Role.BAD if row.is_trouble else Role.STRONG))
            text.append("".join(f"\n{line}" for line in rest), style(self.app, Role.TEXT))
        self.query_one("#config-words", Words).say(text)

    def step_back(self) -> bool:
        """Go back to the list, then show everything again; False if nothing is left."""
        if not self.rows.has_focus:
            self.focus_default()
            return True
        if not self._search and self._shown is Shown.ALL:
            return False
        self.query_one(SearchBox).value = ""
        self.action_show(Shown.ALL)
        return True

    def hints(self) -> list[Hint]:
        """Return the keys of this screen, with the reason for each that can't be used."""
        return [
            Hint("Enter", "details", "read", "" if self.rows.row_count() else "nothing is shown"),
            Hint("/", "filter", "filter"),
            Hint("h", "hide defaults", "next_shown"),
            Hint("S", "reload", "reload", self.context.commands.refusal()),
            CLIENTS_HINT,
            *HELP_HINTS,
            SORT_HINT,
            BACK_HINT,
        ]

    def action_show(self, shown: str) -> None:
        """Show these rows."""
        self._shown = Shown(shown)
        self._show()

    def action_next_shown(self) -> None:
        """Show the next kind of rows."""
        kinds = list(Shown)
        self.action_show(kinds[(kinds.index(self._shown) + 1) % len(kinds)])

    def action_filter(self) -> None:
        """Open the text box."""
        self.add_class("-searching")
        self.focus_now(self.query_one(SearchBox))

    def _close_search(self) -> None:
        self.remove_class("-searching")
        self.focus_default()
        self._show()

    @on(LineList.Chosen)
    def action_read(self) -> None:
        """Go to all that is known of the row, to scroll it; Escape goes back."""
        self.focus_now(self.query_one("#config-right"))

    # Reload.

    def action_reload(self) -> None:
        """Ask, then let the daemon read its configuration again."""
        if refusal := self.context.commands.refusal():
            self.app.notify(f"Not now: {refusal}.")
        else:
            reloading: Work = self._reload
            self.app.run_worker(reloading, group=f"{ASKS}-reload")

    async def _reload(self) -> None:
        status = self.state.status
        which = ""
        if self.state.is_shared and status is not None:
            which = f" of all {plural(status.instances.live, 'instance')}"
        title, report, news = f"Reload the configuration{which}?", None, ""
        # What the dialog says must be as the files are now.
        await self._ask()
        while report is None:
            effect = self._effect()
            question = Confirm(title, effect, "Reload")
            question.news = news
            if not await ask(self.app, question):
                return
            reload: Callable[[], Awaitable[Reloaded | None]] = partial(self._reload_if, effect)
            try:
                report = await self.context.commands.act("Reload the configuration", reload)
            except Refused as error:
                await self._show_outcome(ReloadOutcome("Not reloaded", str(error).splitlines(), danger=True))
                return
            except AdminClientError as error:
                self.app.notify(f"Reload the configuration: not done. {error}", severity="error")
                return
            news = "The files were changed meanwhile. Nothing was reloaded. Look again."
        await self._show_outcome(ReloadOutcome("Reloaded", list(outcome(report)), danger=bool(report.failed)))

    def _effect(self) -> str:
        """Return what a reload would do, in words."""
        known = self.state.configuration
        if known is None or self.rows.problem:
            return f"What it will change is not known: {self.rows.problem}"
        return _joined(what_a_reload_does(known))

    async def _reload_if(self, effect: str) -> Reloaded | None:
        """Reload if that still does what the operator has read; else return None."""
        await self._ask()
        return await self.context.commands.client.reload() if self._effect() == effect else None

    async def _show_outcome(self, dialog: ReloadOutcome) -> None:
        await self._ask()
        await ask(self.app, dialog)


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(printable_text(line, _MAX_LINE_CHARS) for line in lines)
