"""Whose key is this: a key that was found somewhere is pasted, and what it opens is said."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import ClassVar

from textual import events, on
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Button, Input

from relayd.admin.client import AdminClientError
from relayd.admin.key_search import MAX_CHARS, Finding, Verdict
from relayd.admin.schema import LIVE_STATES, KeyInfo
from tui.screens.dialogs import Dialog, paragraph
from tui.type_ahead import Work


class Wish(Enum):
    """What the operator wants of a key that was found."""

    OPEN = auto()
    REQUESTS = auto()
    REVOKE = auto()


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A key that was found, and what is wanted of it."""

    key: KeyInfo
    wish: Wish


class PastedKey(Input):
    """A masked line; what is pasted takes the place of what was there."""

    def _on_paste(self, event: events.Paste) -> None:
        self.value = event.text[:MAX_CHARS]
        self.cursor_position = len(self.value)
        event.stop()
        event.prevent_default()

    def action_copy(self) -> None:
        """Copy nothing: what is masked stays here."""


class WhoseKey(Dialog[FoundKey]):
    """Asks for a key, and says whose it is and what can be done about it.

    The text is let go of as soon as it was looked up: only its digest leaves the app.

    Args:
        find: looks a text up.
        describe: returns what is known of a key, in words.
        refusal: why nothing can be changed now; empty if it can.
    """

    AUTO_FOCUS = "#pasted"
    YES_KEY = "Enter"
    SHOWS_SECRET = True
    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("exclamation_mark", "revoke", "Revoke it", key_display="!"),
        Binding("f", "requests", "Its requests"),
        Binding("o", "open", "Open it"),
    ]

    def __init__(
        self,
        find: Callable[[str], Awaitable[Finding]],
        describe: Callable[[KeyInfo], str],
        refusal: str,
    ) -> None:
        super().__init__("Whose key is this?", yes="Look it up", no="Close")
        self._find = find
        self._describe = describe
        self._refusal = refusal
        self._found: Finding | None = None

    def body(self) -> Iterable[Widget]:
        """Show a masked line."""
        yield paragraph("Paste the key; it stays in this app. Only its digest is compared.", id="intro")
        yield PastedKey(placeholder="rly_… or any key", password=True, id="pasted", compact=True)
        yield paragraph("", id="fault")

    def buttons(self) -> Iterable[Button]:
        """Show what can be done, of which most is possible only once a key is found."""
        yield from super().buttons()
        for label, name in (("Open (o)", "open"), ("Requests (f)", "requests"), ("Revoke (!)", "revoke")):
            button = Button(label, id=name, compact=True)
            button.display = False
            yield button

    def accept(self) -> None:
        """Look up what was pasted, and let go of it."""
        line = self.query_one("#pasted", Input)
        text, line.value = line.value, ""
        if not text.strip():
            self.explain("Nothing was pasted yet.")
            return
        self.explain("Looking it up …")
        look: Work = partial(self._look_up, text)
        self.run_worker(look, group="whose", exclusive=True)

    async def _look_up(self, text: str) -> None:
        try:
            found = await self._find(text)
        except AdminClientError as error:
            self.explain(f"Not looked up: {error}")
            return
        if found.key is None:
            self.explain(found.sentence)
        else:
            self._show(found, found.key)

    def _show(self, found: Finding, key: KeyInfo) -> None:
        self._found = found
        reason = self._no_revoke()
        note = f"\nIt can't be revoked here: {reason}." if reason else ""
        self.explain(f"{found.sentence}\n{self._describe(key)}{note}")
        self.query_one("#intro").display = self.query_one("#pasted").display = False
        self.query_one("#yes").display = False
        for name in ("open", "requests", "revoke"):
            self.query_one(f"#{name}").display = True
        if reason:
            self.query_one("#revoke", Button).label = "!(Revoke)"
            self.query_one("#revoke", Button).disabled = True
        self.query_one("#no", Button).focus()

    def _no_revoke(self) -> str:
        """Return why the key can't be revoked from here; empty if it can."""
        found = self._found
        if found is None or found.key is None:
            return "no key is found yet"
        if found.verdict is not Verdict.KNOWN:
            return "the key itself was not pasted"
        if found.key.state not in LIVE_STATES:
            return f"it is {found.key.state.value} already"
        return self._refusal

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Return whether an action can be done: a key is looked up before it is found, all else after."""
        if action == "yes":
            return self._found is None
        return super().check_action(action, parameters)

    @on(Button.Pressed, "#open")
    def action_open(self) -> None:
        """Show the key on Clients."""
        self._answer(Wish.OPEN)

    @on(Button.Pressed, "#requests")
    def action_requests(self) -> None:
        """Show its requests."""
        self._answer(Wish.REQUESTS)

    @on(Button.Pressed, "#revoke")
    def action_revoke(self) -> None:
        """Ask whether to revoke it."""
        if not self._no_revoke():
            self._answer(Wish.REVOKE)

    def _answer(self, wish: Wish) -> None:
        if self._found is not None and self._found.key is not None:
            self.dismiss(FoundKey(self._found.key, wish))
