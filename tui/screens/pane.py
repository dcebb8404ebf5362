"""What the screens have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widget import Widget

from relayd.admin.schema import KeyInfo
from tui.context import Context
from tui.keymap import with_ids
from tui.type_ahead import Work
from tui.widgets.bars import Hint
from tui.widgets.line_list import LineList

CLIENTS_HINT = Hint("K", "clients", "screen.show_screen('clients')")
HELP_HINTS = (Hint(":", "cmd", "app.command_palette"), Hint("?", "help", "screen.help"))
SORT_HINT = Hint("s", "sort", "sort")
BACK_HINT = Hint("Esc", "back", "screen.back")


class Pane(Vertical):
    """One screen. It is made when first shown, and told of new data while it is on."""

    DEFAULT_CSS = "Pane { height: 1fr; width: 1fr; }"
    NEWEST_FIRST: ClassVar[bool] = False
    """Whether the newest rows are at the top."""
    MOVES_EVERY_S: ClassVar[int] = 1
    """After how many seconds the time alone may change what is shown while no stream is open."""
    BINDINGS: ClassVar[list[BindingType]] = with_ids(
        "list",
        [Binding("s", "sort", "Sort by the next column"), Binding("S", "reverse", "Sort the other way")],
    )
    CHANGES: ClassVar[frozenset[str]] = frozenset()
    """The actions that change the daemon or its keys: while that is refused they can't run."""

    def __init_subclass__(cls, **given: bool) -> None:
        """Give each action of a screen its id: `clients.rotate`."""
        if "BINDINGS" in cls.__dict__:
            cls.BINDINGS = with_ids(cls.__name__.removesuffix("Pane").lower(), cls.BINDINGS)
        super().__init_subclass__(**given)

    @dataclass
    class HintsChanged(Message):
        """Other keys can be used now."""

    @dataclass
    class OpenRequest(Message):
        """One request is wanted in full, on the Requests screen."""

        request_id: str
        seq: int | None
        """Its place in the log, if that is known."""

    @dataclass
    class FilterRequests(Message):
        """The Requests screen is wanted with this filter."""

        filter: str

    @dataclass
    class OpenOwner(Message):
        """A client is wanted, and the key in question, on the Clients screen."""

        client: str | None
        key_id: str | None
        key: KeyInfo | None = None
        """What is known of the key, should it be dead for so long that the ring does not have it."""

    def __init__(self, context: Context, *, id: str) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self.context = context
        self.state = context.state

    def refresh_data(self) -> None:
        """Show new data."""

    def refresh_moving(self) -> None:
        """Show what the time has changed."""
        self.refresh_data()

    def hints(self) -> list[Hint]:
        """Return the keys of this screen for the footer, the most useful first."""
        return []

    def focus_default(self) -> None:
        """Give the focus to what the operator expects it on."""

    def focus_now(self, widget: Widget) -> None:
        """Give the focus at once; `Widget.focus` would do it after the next key was handed out."""
        self.screen.set_focus(widget, scroll_visible=False)

    @property
    def depth(self) -> int:
        """How often `step_back` would close something."""
        return 0

    def way_back(self) -> Callable[[], None]:
        """Return a function that shows again what is shown now, and where in it."""
        return lambda: None

    def stay(self) -> None:
        """Hold still what is read, since another screen comes and leads back here."""

    def step_back(self) -> bool:
        """Close what is open inside, on Escape; False if there was nothing."""
        return False

    @property
    def sortable(self) -> LineList | None:
        """The list that `s` sorts: the one with the focus, else the first that can be sorted."""
        lists = [found for found in self.query(LineList) if found.display and found.sortable()]
        return next((found for found in lists if found.has_focus), next(iter(lists), None))

    def action_sort(self) -> None:
        """Sort by the next column."""
        if self.sortable is not None:
            self.sortable.action_sort()
        else:
            self.app.notify("Nothing here can be sorted.")

    def action_reverse(self) -> None:
        """Sort the other way."""
        if self.sortable is not None:
            self.sortable.action_reverse()

    def start_once(self, name: str, work: Work) -> None:
        """Do work in the background, unless the same still runs."""
        if all(worker.is_finished for worker in self.workers if worker.name == name):
            self.run_worker(work, name=name, group=name)
