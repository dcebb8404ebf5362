"""Every action as a command of the palette, with the reason for each that can't run now."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.dom import DOMNode

from tui.screens.main import MainScreen
from tui.theme import themes

_NOT_OFFERED = {"Back", "Commands"}


def commands(app: App[int], main: MainScreen, refusal: str) -> Iterator[SystemCommand]:
    """Return what can be done from here, the screen's own actions first.

    Args:
        app: runs the actions.
        main: the window; its screen has actions of its own.
        refusal: why nothing can be changed now; empty if it can.
    """
    reasons = {hint.action: hint.reason for hint in main.pane.hints()}
    reasons |= {"pause": refusal, "drain": refusal}
    for node in (main.pane, main):
        for binding in type(node).BINDINGS:
            if isinstance(binding, Binding) and binding.description not in _NOT_OFFERED:
                reason = reasons.get(binding.action)
                help_text = f"not now: {reason}" if reason else f"key {binding.key_display or binding.key}"
                yield SystemCommand(binding.description, help_text, _runner(app, binding.action, node))
    for theme in themes():
        run = _runner(app, f"colours('{theme.name}')", app)
        yield SystemCommand(f"Colours: {theme.name}", "remembered", run)
    picture = "Save a picture of the screen (SVG)"
    yield SystemCommand(picture, "never of a key", _runner(app, "screenshot", app))


def _runner(app: App[int], action: str, node: DOMNode) -> Callable[[], object]:
    return lambda: app.run_worker(app.run_action(action, node), group="palette")
