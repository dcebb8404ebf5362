"""The questions before a key changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from textual import on
from textual.widget import Widget
from textual.widgets import Button, Input, Static

from relayd.admin.schema import KeyInfo, KeyState
from relayd.durations import parse_duration
from tui.model.units import in_words
from tui.screens.dialog import Dialog, words
from tui.widgets.choices import Choices

_GRACES = ("5m", "15m", "1h", "24h")
_DEFAULT_GRACE = "1h"
_LAST = 4


class AskGrace(Dialog[float | None]):
    """How long: for a rotation's grace, and for its extension. The answer is in seconds."""

    def __init__(self, title: str, text: str, yes: str, *, default: str = _DEFAULT_GRACE) -> None:
        super().__init__(title)
        self._text = text
        self._yes = yes
        self._default = default

    def body(self) -> Iterable[Widget]:
        """What will happen, and for how long."""
        yield words(self._text)
        labels = [*(in_words(parse_duration(grace)) for grace in _GRACES), "other"]
        yield Choices(labels, [_GRACES.index(self._default)], id="grace")
        yield Input(placeholder="other: 10m, 2h, 7d", id="other", compact=True)
        yield words("", id="fault", note=True)

    def buttons(self) -> Iterable[Button]:
        """Cancel has the focus."""
        yield Button("Cancel", id="no", compact=True)
        yield Button(self._yes, id="yes", compact=True)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        if event.value:
            self.query_one(Choices).choose(len(_GRACES))

    @on(Input.Submitted)
    @on(Button.Pressed, "#yes")
    def _sure(self) -> None:
        chosen = self.query_one(Choices).index
        text = _GRACES[chosen] if chosen < len(_GRACES) else self.query_one(Input).value.strip()
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            self.query_one("#fault", Static).update(f"{error}.")
            return
        if seconds:
            self.dismiss(seconds)
        else:
            self.query_one("#fault", Static).update("No time at all: revoke the key instead, with !.")


@dataclass(frozen=True, slots=True)
class Revocation:
    """Which key to end, and whether its open streams end too."""

    key: KeyInfo
    cut: bool


class AskRevoke(Dialog[Revocation | None]):
    """Which key to end now: its last four characters are typed, so that it is the right one.

    Any live key can be named, not only the chosen one: whoever comes here with a leaked key in hand
    should not have to look for its row.
    """

    AUTO_FOCUS = "#last"

    def __init__(self, chosen: KeyInfo | None, keys: Iterable[KeyInfo], open_streams: dict[str, int]) -> None:
        super().__init__("Revoke a key now?", danger=True)
        self._chosen = chosen
        self._keys = [key for key in keys if key.state in {KeyState.ACTIVE, KeyState.RETIRING}]
        self._open = open_streams

    def body(self) -> Iterable[Widget]:
        """The four characters, and what they name."""
        yield words("A revoked key never comes back. Type the last four characters of its id.")
        hint = self._chosen.id[-_LAST:] if self._chosen is not None else ""
        yield Input(
            placeholder=f"{hint}  ends {self._chosen.client}" if self._chosen else "", id="last", compact=True
        )
        yield words("", id="named")
        yield Choices(["cut its open streams too"], [], id="cut", many=True)
        yield words("Enter revokes once a key is named · Tab, Space: the choice · Esc leaves", note=True)

    def buttons(self) -> Iterable[Button]:
        """Cancel first."""
        yield Button("Cancel", id="no", compact=True)
        yield Button("Revoke now", id="yes", compact=True, disabled=True)

    def _named(self) -> KeyInfo | None:
        typed = self.query_one("#last", Input).value.strip()
        if len(typed) < _LAST:
            return None
        found = [key for key in self._keys if key.id.endswith(typed)]
        if len(found) > 1 and self._chosen in found:
            return self._chosen
        return found[0] if len(found) == 1 else None

    @on(Input.Changed, "#last")
    def _typed(self, event: Input.Changed) -> None:
        key = self._named()
        self.query_one("#yes", Button).disabled = key is None
        self.query_one("#named", Static).update(self._what(key, event.value.strip()))

    def _what(self, key: KeyInfo | None, typed: str) -> str:
        if key is not None:
            streams = self._open.get(key.id, 0)
            return (
                f"Ends the {key.state.value} key {key.id} of {key.client}; {streams} of its streams are open."
            )
        if len(typed) < _LAST:
            return ""
        many = sum(key.id.endswith(typed) for key in self._keys) > 1
        return (
            "More than one key ends like that; type more of its id."
            if many
            else "No live key ends like that."
        )

    @on(Input.Submitted, "#last")
    @on(Button.Pressed, "#yes")
    def _sure(self) -> None:
        key = self._named()
        if key is not None:
            self.dismiss(Revocation(key, bool(self.query_one("#cut", Choices).chosen)))


class AskClient(Dialog[str | None]):
    """The name of a new client."""

    AUTO_FOCUS = "#name"

    def __init__(self, known: frozenset[str]) -> None:
        super().__init__("Add a client")
        self._known = known

    def body(self) -> Iterable[Widget]:
        """Its name."""
        yield words("A new client gets its own key, which can be rotated and revoked apart from the others.")
        yield Input(placeholder="name, for example: web", id="name", max_length=64, compact=True)
        yield words("", id="fault", note=True)

    def buttons(self) -> Iterable[Button]:
        """Cancel first."""
        yield Button("Cancel", id="no", compact=True)
        yield Button("Make a key", id="yes", compact=True)

    @on(Input.Submitted)
    @on(Button.Pressed, "#yes")
    def _sure(self) -> None:
        name = self.query_one("#name", Input).value.strip()
        if not name or name in self._known:
            fault = "It needs a name." if not name else f"{name} has a key already; rotate it instead."
            self.query_one("#fault", Static).update(fault)
            return
        self.dismiss(name)
