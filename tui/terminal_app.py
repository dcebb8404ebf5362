"""The app as a terminal program: colours, driver, mouse, clipboard, crash, sentences in the corner."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from rich.segment import Segments
from rich.traceback import Traceback
from textual import events
from textual.app import App
from textual.driver import Driver
from textual.notifications import SeverityLevel

from tui.driver import RelaydDriver
from tui.model.text import neutral
from tui.settings import Settings, SettingsFile
from tui.theme import DARK, best_theme, looks, themes
from tui.type_ahead import TypeAhead

# Updates are drawn at most four to five times a second, however many events come.
REDRAW_EVERY_S = 0.22
_HUNG_UP_STATUS = 129


@dataclass(frozen=True, slots=True)
class Options:
    """How this run was asked for."""

    place: str
    """What the header calls the daemon: the host's name, or `demo`."""
    readonly: bool = False
    env: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    redraw_every_s: float = REDRAW_EVERY_S


class TerminalApp(App[int]):
    """What would be the same in an app about something else."""

    def __init__(self, options: Options, settings_file: SettingsFile) -> None:
        # Textual looks at NO_COLOR here, before the theme is known: with ANSI colours it can leave them out.
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        self.options = options
        self.settings_file = settings_file
        self.hung = False
        self.looks = looks(DARK)
        self.keys = TypeAhead(self, super().on_event)
        for theme in themes():
            self.register_theme(theme)
        self.theme = self._wanted_theme()

    def watch_theme(self, name: str) -> None:
        """Textual: another theme is on."""
        self.looks = looks(name)

    @property
    def settings(self) -> Settings:
        """What is remembered between runs."""
        return self.settings_file.settings

    def _wanted_theme(self) -> str:
        if self.no_color:
            return best_theme({"NO_COLOR": "1"})
        remembered = self.settings.theme
        known = {theme.name for theme in themes()}
        return remembered if remembered in known else best_theme(self.options.env)

    async def on_event(self, event: events.Event) -> None:
        """Keys take turns; everything else goes Textual's way."""
        if isinstance(event, events.Key) and not event.is_forwarded:
            await self.keys.take(event)
        else:
            await super().on_event(event)

    def get_driver_class(self) -> type[Driver]:
        """The driver that survives real terminals."""
        return RelaydDriver

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our own variables, for the moments before the theme is on."""
        return dict(themes()[0].variables)

    def _fatal_error(self) -> None:
        """A crash shows where, never the values: a variable may hold a key."""
        self._exit_renderables.append(
            Segments(self.console.render(Traceback(show_locals=False), self.console.options))
        )
        self._close_messages_no_wait()

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = False,
    ) -> None:
        """Show a sentence in the corner for a few seconds; its text may come from a client."""
        timeout = timeout or (8 if severity == "error" else 5)
        super().notify(neutral(message, 600), title=title, severity=severity, timeout=timeout, markup=markup)

    def action_explain(self, reason: str) -> None:
        """Why an action can't run now."""
        self.notify(f"Not now: {reason}.")

    def save_settings(self) -> None:
        """Remember; failing to is worth a word, not an end."""
        try:
            self.settings_file.save()
        except OSError as error:
            self.notify(f"The settings were not saved: {error}", severity="error")

    def action_screenshot(self, filename: str | None = None, path: str | None = None) -> None:
        """A picture of the screen; never while a key is on it."""
        if self.secret_shown:
            self.notify("No screenshots while a key is on the screen.")
            return
        super().action_screenshot(filename, path)

    @property
    def secret_shown(self) -> bool:
        """Whether a dialog with a new key is open."""
        return any(type(screen).__name__ == "SecretDialog" for screen in self.screen_stack)

    def action_mouse(self) -> None:
        """Give the mouse to the terminal, for its own selection, or take it back."""
        driver = self._driver
        self.settings.mouse = not self.settings.mouse
        if isinstance(driver, RelaydDriver):
            driver.set_mouse(on=self.settings.mouse)
        self.notify(
            "The mouse works in the app again."
            if self.settings.mouse
            else "The mouse is your terminal's now: select and copy with it. M takes it back."
        )

    def action_colours(self, name: str) -> None:
        """Another theme, remembered."""
        self.theme = name
        self.settings.theme = name
        self.save_settings()

    def write_to_terminal(self, sequence: str) -> None:
        """Past Textual's drawing: for OSC 52 alone."""
        if self._driver is not None:
            self._driver.write(sequence)

    def hung_up(self) -> None:
        """The terminal is gone: leave at once."""
        if not self.hung:
            self.hung = True
            self.exit(_HUNG_UP_STATUS)
