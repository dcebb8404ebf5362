"""Every action as a command of the palette, with the reason where one can't run now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from textual.app import SystemCommand
from textual.binding import Binding

from tui.key_names import key_name
from tui.theme import themes
from tui.widgets.bars import TABS

if TYPE_CHECKING:
    from tui.app import RelaydApp


def commands(app: RelaydApp) -> Iterator[SystemCommand]:
    """What can be done from here, the screen's own actions first."""
    pane = app.main.pane
    reasons = {hint.action: hint.reason for hint in pane.hints()}
    for binding in type(pane).BINDINGS:
        if isinstance(binding, Binding):
            action = f"app.here({binding.action!r})"
            reason = reasons.get(action, "")
            help_text = f"not now: {reason}" if reason else f"key {key_name(binding.key)}"
            yield SystemCommand(binding.description, help_text, _run(app, binding.action))
    for tab in TABS:
        yield SystemCommand(
            f"Show {tab.title}", f"key {tab.key}", _run_app(app, f"show_screen('{tab.name}')")
        )
    refusal = app.commands.refusal()
    may = f"not now: {refusal}" if refusal else ""
    yield SystemCommand("Pause or resume intake", may or "key P", _run_app(app, "pause"))
    yield SystemCommand("Drain, then stop the daemon", may or "key D", _run_app(app, "drain"))
    yield SystemCommand("Mouse on or off", "key M", _run_app(app, "mouse"))
    yield SystemCommand("Connect now", "key R", _run_app(app, "retry"))
    for theme in themes():
        yield SystemCommand(f"Colours: {theme.name}", "remembered", _run_app(app, f"colours('{theme.name}')"))
    yield SystemCommand("Save a picture of the screen (SVG)", "never of a key", _run_app(app, "screenshot"))
    yield SystemCommand("Help", "key ?", _run_app(app, "help"))
    yield SystemCommand("Quit", "key Q; the daemon goes on", _run_app(app, "quit"))


def _run(app: RelaydApp, action: str) -> Callable[[], None]:
    return lambda: _start(app, f"app.here({action!r})")


def _run_app(app: RelaydApp, action: str) -> Callable[[], None]:
    return lambda: _start(app, f"app.{action}")


def _start(app: RelaydApp, action: str) -> None:
    app.run_worker(app.run_action(action), group="palette")
