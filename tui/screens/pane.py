"""What the five screens have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.containers import Vertical
from textual.widget import Widget

from tui.widgets.bars import Hint

if TYPE_CHECKING:
    from tui.app import RelaydApp


class Pane(Vertical):
    """One screen. It is made when first shown, and told to look at the state again while it is on."""

    DEFAULT_CSS = "Pane { height: 1fr; width: 1fr; }"

    @property
    def relayd_app(self) -> RelaydApp:
        """The app, with what it knows and can do."""
        return cast("RelaydApp", self.app)

    def refresh_data(self) -> None:
        """The state changed."""

    def hints(self) -> list[Hint]:
        """The keys of this screen for the footer, the most useful first."""
        return []

    def focus_default(self) -> None:
        """Take the focus where the operator expects it."""

    def take_focus(self, widget: Widget) -> None:
        """Give the focus at once; `Widget.focus` would do it after the next key was handed out."""
        self.screen.set_focus(widget, scroll_visible=False)

    def step_back(self) -> bool:
        """Escape: close what is open inside; False when there was nothing."""
        return False
