"""The operator's app: builds its parts, follows the daemon, and draws what changed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.traceback import Trace
from textual import events
from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import CommandPalette, Provider
from textual.driver import Driver
from textual.notifications import SeverityLevel
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Input
from textual.worker import Worker, WorkerCancelled, WorkerFailed, WorkerState

from relayd.admin.client import AdminClient
from relayd.admin.schema import Status
from tui.clipboard import private_file
from tui.context import Context
from tui.daemon_commands import DaemonCommands
from tui.driver import TerminalDriver
from tui.export import Exporter
from tui.feed import SILENCE, STALE_AFTER_S, Feed
from tui.hosts import HERE, Host, known_hosts
from tui.keymap import usable, with_ids
from tui.model.app_state import AppState, Asking
from tui.model.text import printable_text
from tui.screens.dialogs import Confirm, Dialog, ask
from tui.screens.main import MainScreen
from tui.settings import SettingsFile
from tui.stream_actions import StreamActions
from tui.theme import DARK, best_theme, role_styles, theme_names, themes, variables
from tui.type_ahead import ASKS, TypeAhead, Work

if TYPE_CHECKING:
    # Loads SQLite, which the first paint does not wait for.
    from relayd.admin.archive import Archive

# Updates are drawn at most four to five times a second, however many events come.
REDRAW_EVERY_S = 0.22
_OTHER_DATABASE = "The daemon has another database than before; everything was read anew."
_SECOND_S = 1.0
_TROUBLE_SHOWN_S = 30
_WORD_KEYS = "bf\x7f"
"""With Alt: a word back, a word on, delete a word; what shells and Textual's fields understand."""


@dataclass(frozen=True, slots=True)
class Options:
    """How this run was asked for."""

    place: str
    """What the header calls the daemon: the host's name, or `demo`."""
    readonly: bool = False
    env: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    redraw_every_s: float = REDRAW_EVERY_S
    stale_after_s: float = STALE_AFTER_S
    host: Host = HERE
    """Where the daemon is."""
    hosts: Sequence[Host] | None = ()
    """The servers of the command line; None if this run stays with its daemon."""
    trouble: str = ""
    """Why the operator is on this daemon without having asked for it."""


class CrashConsole(Console):
    """Renders a crash without the values of variables: one of them may be a key."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return the segments of anything that Rich can draw."""
        trace = getattr(renderable, "trace", None)
        if trace is not None:
            _forget_locals(trace)
        return super().render(renderable, options)


def _leave_unanswered(verb: str, asking: Sequence[Asking]) -> Confirm:
    changes = "\n".join(one.change for one in asking)
    return Confirm(
        f"{verb} before the answer?",
        f"{changes}\nThe daemon has not answered yet. It may still be done, and a new key in the answer"
        " would be lost; Audit tells later what was done.",
        verb,
    )


def _forget_locals(trace: Trace) -> None:
    for stack in trace.stacks:
        for frame in stack.frames:
            frame.locals = None
        for part in stack.exceptions:
            _forget_locals(part)


def _palette_commands() -> type[Provider]:
    from tui.palette import Commands  # noqa: PLC0415 - loaded when first used

    return Commands


class RelaydApp(App[int]):
    """The app on one daemon.

    Args:
        client: the daemon.
        options: how this run was asked for.
        settings_file: what is remembered between runs.
        now_s: returns the time.
        open_archive: opens the database of the daemon, given its last status, if there is a file.
    """

    TITLE = "relayd"
    CSS_PATH = "app.tcss"
    COMMAND_PALETTE_BINDING = "ctrl+p"
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {_palette_commands}
    BINDINGS: ClassVar[list[BindingType]] = with_ids(
        "app",
        [
            Binding("ctrl+q", "quit", "Quit", show=False, priority=True),
            Binding("ctrl+z", "suspend_process", "Suspend", show=False, priority=True),
            Binding("ctrl+l", "repaint", "Draw the screen anew", show=False, priority=True),
        ],
    )

    def __init__(
        self,
        client: AdminClient,
        options: Options,
        settings_file: SettingsFile,
        *,
        now_s: Callable[[], float] = time.time,
        open_archive: Callable[[Status | None], Archive | None] | None = None,
    ) -> None:
        # Textual looks at NO_COLOR here, before the theme is known: with ANSI colours it can leave them out.
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        self.console = CrashConsole(
            file=StringIO(), force_terminal=True, highlight=False, emoji=False, legacy_windows=False
        )
        self.terminal: TerminalDriver | None = None
        self.type_ahead = TypeAhead(self, super().on_event)
        self.role_styles = role_styles(DARK)
        self._options = options
        self._settings_file = settings_file
        self._client = client
        self.state = AppState(settings_file.settings.keep_records)
        is_here = options.host.is_here
        if not is_here:
            self.state.no_history = "Run relayd-tui on the server to read its history."
        self.feed = Feed(
            self.state,
            client,
            changed=self.changed,
            backlog_records=settings_file.settings.backlog_records,
            open_archive=open_archive,
            stale_after_s=options.stale_after_s,
            silence=SILENCE if is_here else "It, its server or the network may stand still.",
            other_database=lambda: self._leave("Begin anew", options.host, _OTHER_DATABASE),
        )
        commands = DaemonCommands(
            client, self.state, readonly=options.readonly, now_s=now_s, changed=self.changed
        )
        self.context = Context(
            self.state,
            self.feed,
            commands,
            StreamActions(self, self.state, commands, self.feed),
            Exporter(self, self.state, options.env, self.write_to_terminal),
            settings_file,
            now_s,
            options.place,
            Path(options.env.get("HOME") or Path.cwd()),
        )
        self.next_host: Host | None = None
        """The server to show after this run of the app."""
        self.next_reason = ""
        """Why, if the operator did not ask for it."""
        self._chosen_keys: dict[str, str] = {}
        self._feed_worker: Worker[None] | None = None
        self._redraw: Timer | None = None
        self._drawn_at_s = 0.0
        self._seconds = 0
        for theme in themes():
            self.register_theme(theme)
        self.theme = self._wanted_theme()

    def _wanted_theme(self) -> str:
        if self.no_color:
            return best_theme({"NO_COLOR": "1"})
        remembered = self._settings_file.settings.theme
        return remembered if remembered in theme_names() else best_theme(self._options.env)

    def get_default_screen(self) -> Screen[None]:
        """Return the one window."""
        return MainScreen(self.context, self._settings_file.settings.screen)

    @property
    def main(self) -> MainScreen:
        """The window under the dialogs."""
        return cast("MainScreen", self.screen_stack[0])

    def on_mount(self) -> None:
        """Start following the daemon."""
        self._feed_worker = self.run_worker(self.feed.run, name="feed", group="feed")
        self.set_interval(_SECOND_S, self._on_second)
        self._choose_keys()
        if self._settings_file.problem:
            self.notify(self._settings_file.problem, severity="error")
        theme = self._settings_file.settings.theme
        if theme and theme not in theme_names():
            self.notify(
                f"Theme in the settings: there is no {theme}. : offers those that there are.",
                severity="error",
            )
        if self._options.trouble:
            self.notify(self._options.trouble, severity="error", timeout=_TROUBLE_SHOWN_S)

    async def on_unmount(self) -> None:
        """Stop following, and let go of the daemon and its database."""
        if self._feed_worker is not None:
            self._feed_worker.cancel()
            # A failure was shown when it happened.
            with suppress(WorkerCancelled, WorkerFailed):
                await self._feed_worker.wait()
        await self.feed.close()

    async def on_exit_app(self) -> None:
        """Cancel what is asked for: Textual closes a widget's children before its workers.

        An answer could still be drawn on them.
        """
        # Python complains of a coroutine that is cancelled before it has begun.
        while any(worker.state is WorkerState.PENDING for worker in self.workers):  # noqa: ASYNC110 - Textual tells nobody
            await asyncio.sleep(0)
        self.workers.cancel_all()

    async def on_event(self, event: events.Event) -> None:
        """Let keys and pastes take turns; everything else goes Textual's way."""
        if isinstance(event, events.Key | events.Paste) and not event.is_forwarded:
            await self.type_ahead.take(event)
        else:
            await super().on_event(event)

    # Drawing.

    def changed(self) -> None:
        """Draw soon, once for all changes until then."""
        if self._redraw is None and self.is_running:
            wait_s = max(0.001, self._drawn_at_s + self._options.redraw_every_s - time.monotonic())
            self._redraw = self.set_timer(wait_s, self.refresh_data)

    def refresh_data(self) -> None:
        """Draw new data on the window and on what is over it."""
        self._redraw = None
        self._drawn_at_s = time.monotonic()
        if self._may_draw:
            self.main.refresh_data()

    @property
    def _may_draw(self) -> bool:
        """Whether the window has its parts: at the end it loses them one by one."""
        return self.is_running and bool(self.screen_stack) and self.main.is_mounted

    def _on_second(self) -> None:
        """Draw what moves by itself: ages and countdowns."""
        if self._redraw is None and self._may_draw:
            self._seconds += 1
            self.main.refresh_moving(self._seconds)

    # The terminal.

    def get_driver_class(self) -> type[Driver]:
        """Return the driver that survives real terminals."""
        return TerminalDriver

    def write_to_terminal(self, sequence: str) -> None:
        """Write past Textual's drawing: for OSC 52 alone."""
        if self.terminal is not None:
            self.terminal.write(sequence)

    def action_repaint(self) -> None:
        """Draw every cell anew, after another program wrote to the terminal."""
        if self.terminal is not None:
            self.terminal.repaint()

    def action_command_palette(self) -> None:
        """Show the palette; its field says what may be typed."""
        if not isinstance(self.screen, CommandPalette):
            self.push_screen(CommandPalette(placeholder="Words of an action, or its key"))

    def action_mouse(self) -> None:
        """Give the mouse to the terminal, for its own selection, or take it back."""
        settings = self._settings_file.settings
        settings.mouse = not settings.mouse
        if self.terminal is not None:
            self.terminal.set_mouse(on=settings.mouse)
        self.notify(
            "The mouse works in the app again."
            if settings.mouse
            else "The mouse is your terminal's now: select and copy with it. M takes it back."
        )

    # Colours.

    def watch_theme(self, name: str) -> None:
        """Take over another theme."""
        self.role_styles = role_styles(name)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Return our own variables, for Textual's themes."""
        return variables(self.theme)

    def action_colours(self, name: str) -> None:
        """Take another theme, and remember it."""
        self.theme = name
        self._settings_file.settings.theme = name
        if problem := self._settings_file.save():
            self.notify(problem, severity="error")

    # What Textual offers, in our way.

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
        text = printable_text(message, 600)
        super().notify(text, title=title, severity=severity, timeout=timeout, markup=markup)

    def copy_to_clipboard(self, text: str) -> None:
        """Copy selected text, by our way."""
        self.context.exporter.copy(text, "The selection")

    def action_screenshot(self, filename: str | None = None, path: str | None = None) -> None:
        """Save a picture of the screen in a new file; never while a key is on it."""
        if any(isinstance(screen, Dialog) and screen.SHOWS_SECRET for screen in self.screen_stack):
            self.notify("No screenshots while a key is on the screen.")
            return
        prefix = filename or time.strftime("relayd-%Y%m%d-%H%M%S-")
        try:
            saved = private_file(self.export_screenshot(), prefix, Path(path or Path.cwd()), ".svg")
        except OSError as error:
            self.notify(f"No picture was saved: {error}", severity="error")
        else:
            self.notify(f"The picture is in {saved} (only you can read it).")

    # Keys that the operator chose.

    def _choose_keys(self) -> None:
        """Take over the keys of the settings, and name those that can't be used."""
        keys = self._settings_file.settings.keys
        if keys:
            from tui.palette import parts  # noqa: PLC0415 - loads every screen

            self._chosen_keys, faults = usable(keys, parts())
            self.set_keymap(self._chosen_keys)
            if faults:
                self.notify(
                    "Keys in the settings: " + " ".join(faults), severity="error", timeout=_TROUBLE_SHOWN_S
                )

    def chosen_key(self, action: str) -> str:
        """Return the keys that the operator chose for the action with this id; empty if there are none."""
        keys = self._chosen_keys.get(action)
        return " ".join(self.get_key_display(Binding(key, "")) for key in keys.split(",")) if keys else ""

    def keys_of(self, binding: Binding) -> list[str]:
        """Return the keys of an action as they are printed on a keyboard."""
        if chosen := self.chosen_key(binding.id or ""):
            return chosen.split()
        if binding.key_display:
            return [binding.key_display]
        return [self.get_key_display(one) for one in Binding.make_bindings([binding])]

    def takes_alt(self, character: str) -> bool:
        """Return whether Alt and a character are one key: it moves by words in a field, or was chosen."""
        screens = self.screen_stack
        if character in _WORD_KEYS and screens and isinstance(screens[-1].focused, Input):
            return True
        name = f"alt+shift+{character.lower()}" if character.isupper() else f"alt+{character}"
        return any(name in keys.split(",") for keys in self._chosen_keys.values())

    # Other servers.

    def offered_hosts(self) -> list[Host]:
        """Return the servers to switch to."""
        given = self._options.hosts
        return [] if given is None else known_hosts(given, self._settings_file.settings.hosts)

    def action_hosts(self) -> None:
        """Switch to the daemon of another server."""
        if self._options.hosts is None:
            self.notify("Not now: the demo shows its own daemon alone.")
        else:
            choose: Work = self._choose_host
            self.run_worker(choose, group=f"{ASKS}-hosts")

    async def _choose_host(self) -> None:
        from tui.screens.hosts import AskHost  # noqa: PLC0415 - loaded when first used

        host = await ask(self, AskHost(self.offered_hosts(), self._options.host, self._forget_host))
        if host is not None:
            self.switch_to(host)

    def _forget_host(self, host: Host) -> str:
        """Forget a server that was shown before; return why not, or an empty text."""
        settings = self._settings_file.settings
        if host in {HERE, self._options.host, *(self._options.hosts or ())}:
            return f"{host} stays: it is shown now, or the command line names it."
        settings.hosts = [text for text in settings.hosts if text != str(host)]
        return self._settings_file.keep()

    def switch_to(self, host: Host) -> None:
        """Show the daemon of another server."""
        self._leave("Switch", host)

    async def action_quit(self) -> None:
        """Quit the app; the daemon keeps running. Ask first if that would lose a new key."""
        self._leave("Quit", None)

    def _leave(self, verb: str, next_host: Host | None, reason: str = "") -> None:
        """End this run of the app. Another server, or another database, gets a new one: nothing mixes."""
        dialogs = [screen for screen in self.screen_stack if isinstance(screen, Dialog)]
        if not all(dialog.may_quit() for dialog in dialogs):
            return
        if self.state.asking:
            if not any(isinstance(dialog, Confirm) for dialog in dialogs):
                self.push_screen(
                    _leave_unanswered(verb, self.state.asking),
                    lambda answer: self._end(next_host, reason) if answer else None,
                )
            return
        self._end(next_host, reason)

    def _end(self, next_host: Host | None, reason: str) -> None:
        self.next_host, self.next_reason = next_host, reason
        self._settings_file.save()
        self.exit(0)
