"""The command palette: every action of every screen, with the reason for each that can't run now."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from textual.binding import Binding
from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.containers import Vertical
from textual.content import Content
from textual.dom import DOMNode
from textual.screen import Screen

from tui.keymap import Parts, bindings_of
from tui.screens.filtered import FilteredPane
from tui.screens.main import MainScreen, pane_class
from tui.screens.pane import Pane
from tui.theme import theme_names
from tui.type_ahead import LEADS, Work
from tui.widgets.bars import TABS
from tui.widgets.line_list import LineList
from tui.widgets.request_list import RequestList

if TYPE_CHECKING:
    from tui.app import RelaydApp

_NOT_OFFERED = {"back", "app.command_palette"}


@dataclass(frozen=True, slots=True)
class Command:
    """One line of the palette."""

    title: str
    help: str
    run: Callable[[], object]
    keys: tuple[str, ...] = ()
    is_here: bool = False
    """Whether it belongs to the screen that is on."""
    is_of_screen: bool = False
    """Whether it belongs to one screen."""

    def score(self, query: str) -> int:
        """Return how well it matches: its key, or all words in its title and help; 0 if it does not."""
        title, words = self.title.casefold(), query.casefold().split()
        if query.strip() in self.keys:
            return 100 + self.is_here
        if not all(word in title or word in self.help.casefold() for word in words):
            return 0
        begins = sum(re.search(rf"\b{re.escape(word)}", title) is not None for word in words)
        return 1 + 4 * begins + 2 * sum(word in title for word in words) + self.is_here


def commands(app: RelaydApp) -> list[Command]:
    """Return what can be done, the actions of the screen that is on first."""
    found = [command for tab in TABS for command in _screen_actions(app, tab.name, tab.title)]
    found += [command for tab in TABS for command in _named_filters(app, tab.name, tab.title)]
    refusal = app.context.commands.refusal()
    for keys, binding in actions_of(app, MainScreen):
        reason = refusal if binding.action in MainScreen.CHANGES else ""
        run = partial(_start, app, partial(_act, app, "", binding.action, reason))
        found.append(Command(binding.description, _help(keys, reason), run, keys))
    no_colour = "NO_COLOR is set" if app.no_color else ""
    for name in theme_names():
        run = partial(_start, app, partial(_act, app, "", f"app.colours('{name}')", no_colour))
        help_text = f"not now: {no_colour}" if no_colour else "a theme, remembered"
        found.append(Command(f"Colours: {name}", help_text, run))
    found += [
        Command(f"Show {host}", "switch to its daemon", partial(app.switch_to, host))
        for host in app.offered_hosts()
    ]
    picture = "Save a screenshot of this screen (SVG)"
    found.append(_app_command(app, picture, "a picture in the directory you started from", "screenshot"))
    return sorted(found, key=lambda command: (not command.is_here, command.is_of_screen))


def _screen_actions(app: RelaydApp, name: str, title: str) -> Iterator[Command]:
    """Yield the actions of a screen; choosing one goes there first."""
    main, kind = app.main, pane_class(name)
    is_here = main.pane.id == name
    refusal = app.context.commands.refusal()
    reasons = {hint.action: hint.reason for hint in main.pane.hints()} if is_here else {}
    for keys, binding in actions_of(app, kind):
        changes = refusal if binding.action in kind.CHANGES else ""
        reason = reasons.get(binding.action, changes)
        run = partial(_start, app, partial(_act, app, name, binding.action, reason))
        yield Command(
            f"{title}: {binding.description}", _help(keys, reason), run, keys, is_here, is_of_screen=True
        )


def _named_filters(app: RelaydApp, name: str, title: str) -> Iterator[Command]:
    """Yield the filters of a screen that have a name; choosing one goes there first."""
    pane, kind = app.main.pane, pane_class(name)
    if not issubclass(kind, FilteredPane):
        return
    saved = app.context.settings_file.settings.saved_filters.get(kind.KIND.name, {})
    is_here = pane.id == name
    row = pane.chosen_row() if is_here and isinstance(pane, FilteredPane) else None
    for named in kind.KIND.filters(saved, row):
        run = partial(_start, app, partial(_act, app, name, f"use_filter({named.text!r})", ""))
        yield Command(f"{title}: filter {named.name}", named.text, run, (), is_here, is_of_screen=True)


def actions_of(app: RelaydApp, kind: type[DOMNode]) -> Iterator[tuple[tuple[str, ...], Binding]]:
    """Yield each action of a screen or of the window, with all its keys."""
    base: type[DOMNode] = Vertical if issubclass(kind, Pane) else Screen
    yield from _by_action(app, bindings_of(kind, base))


def _by_action(app: RelaydApp, bindings: Iterable[object]) -> Iterator[tuple[tuple[str, ...], Binding]]:
    """Yield each action once, with all its keys as they are printed on a keyboard."""
    found: dict[str, list[Binding]] = {}
    for binding in bindings:
        if isinstance(binding, Binding) and binding.action not in _NOT_OFFERED:
            found.setdefault(binding.action, []).append(binding)
    for same in found.values():
        yield tuple(dict.fromkeys(key for binding in same for key in app.keys_of(binding))), same[0]


def _help(keys: tuple[str, ...], reason: str) -> str:
    return f"not now: {reason}" if reason else f"key {' '.join(keys)}"


def _plain(text: str) -> str:
    """Return markup that shows the text as it is; `textual.markup.escape` leaves some texts broken."""
    return text.replace("[", r"\[")


def _app_command(app: RelaydApp, title: str, help_text: str, action: str) -> Command:
    return Command(title, help_text, partial(_start, app, partial(_act, app, "", f"app.{action}", "")))


def _start(app: RelaydApp, work: Work) -> None:
    app.run_worker(work, group=LEADS)


async def _act(app: RelaydApp, screen: str, action: str, reason: str) -> None:
    """Go to a screen, if one is named, and do there what was chosen, or say why it can't be done."""
    main = app.main
    if screen and main.pane.id != screen:
        await main.action_show_screen(screen)
        reason = next((hint.reason for hint in main.pane.hints() if hint.action == action), reason)
    if reason:
        main.action_explain(reason)
    else:
        await app.run_action(action, main.pane if screen else main)


class Commands(Provider):
    """What the palette finds."""

    @property
    def _commands(self) -> list[Command]:
        return commands(cast("RelaydApp", self.app))

    async def discover(self) -> Hits:
        """Yield everything, before anything is typed."""
        for command in self._commands:
            yield DiscoveryHit(Content(command.title), command.run, command.title, _plain(command.help))

    async def search(self, query: str) -> Hits:
        """Yield what matches."""
        for command in self._commands:
            if score := command.score(query):
                title = self._marked(command.title, query)
                yield Hit(score, title, command.run, command.title, _plain(command.help))

    def _marked(self, title: str, query: str) -> Content:
        """Return the title with the words that match set off."""
        content, text = Content(title), title.casefold()
        for word in query.casefold().split():
            start = text.find(word)
            if start >= 0 and self.match_style is not None:
                content = content.stylize(self.match_style, start, start + len(word))
        return content


def parts() -> Parts:
    """Return every action that may be given another key, by the part of the app that has it."""
    from tui.app import RelaydApp  # noqa: PLC0415 - which loads this module when first used

    found = {tab.name: list(bindings_of(pane_class(tab.name), Pane)) for tab in TABS}
    found["requests"] += bindings_of(RequestList, LineList)
    return {
        **found,
        "main": MainScreen.BINDINGS,
        "list": [*LineList.BINDINGS, *Pane.BINDINGS],
        "app": RelaydApp.BINDINGS,
    }
