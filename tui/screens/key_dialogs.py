"""The dialogs of a change of keys: the questions before it, and the new key shown once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Button, Input, Static

from relayd.admin.schema import LIVE_STATES, KeyInfo
from relayd.durations import parse_duration
from relayd.printable import plural
from tui.clipboard import NoClipboard, private_file
from tui.model.secret import Secret
from tui.model.units import in_words
from tui.screens.dialogs import Dialog, paragraph
from tui.widgets.choices import Choices

REVEAL_S = 30.0
_GRACES = ("5m", "15m", "1h", "24h")
_DEFAULT_GRACE_S = 3600.0
_LAST = 4


class AskGrace(Dialog[float]):
    """How long, in seconds: for the grace of a rotation, and for its extension.

    Args:
        title: the first line.
        text: what will happen.
        yes: the button that acts.
        default_s: what is chosen at first; one hour if None.
    """

    def __init__(self, title: str, text: str, yes: str, *, default_s: float | None = None) -> None:
        super().__init__(title, yes=yes)
        self._text = text
        default_s = _DEFAULT_GRACE_S if default_s is None else default_s
        self._graces_s = sorted({*map(parse_duration, _GRACES), default_s})
        self._default_s = default_s

    def body(self) -> Iterable[Widget]:
        """Say what will happen, and offer durations."""
        yield paragraph(self._text)
        labels = [*map(in_words, self._graces_s), "other"]
        yield Choices(labels, [self._graces_s.index(self._default_s)], id="grace")
        yield Input(placeholder="other: 10m, 2h, 7d", id="other", compact=True)
        yield paragraph("", id="fault", note=True)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        if event.value:
            self.query_one(Choices).choose(len(self._graces_s))

    def accept(self) -> None:
        """Answer with the seconds, if there are any."""
        chosen = self.query_one(Choices).index
        if chosen < len(self._graces_s):
            self.dismiss(self._graces_s[chosen])
            return
        try:
            seconds = parse_duration(self.query_one(Input).value.strip())
        except ValueError as error:
            self.explain(f"{error}.")
            return
        if seconds:
            self.dismiss(seconds)
        else:
            self.explain("No time at all: revoke the key instead, with !.")


@dataclass(frozen=True, slots=True)
class Revocation:
    """Which key to end, and whether its open streams end too."""

    key: KeyInfo
    cut: bool


def streams_in_words(count: int, *, cut: bool) -> str:
    """Return what becomes of the open streams of a key that is revoked."""
    if not count:
        return "No stream is open with it"
    one = count == 1
    verb = ("ends too" if one else "end too") if cut else ("goes on" if one else "go on")
    return f"{plural(count, 'stream')} open with it {verb}"


class AskRevoke(Dialog[Revocation]):
    """Which key to end now: its last four characters are typed, so that it is the right one.

    Any live key can be named, not only the chosen one: an operator with a leaked key in hand should not
    have to look for its row.
    """

    AUTO_FOCUS = "#last"
    YES_KEY = "Enter"

    def __init__(
        self, chosen: KeyInfo | None, keys: Iterable[KeyInfo], open_streams: dict[str, int], typed: str = ""
    ) -> None:
        super().__init__("Revoke a key now?", yes="Revoke now", danger=True)
        self._typed_before = typed
        self._chosen = chosen
        self._keys = [key for key in keys if key.state in LIVE_STATES]
        self._open_streams = open_streams

    def body(self) -> Iterable[Widget]:
        """Ask for the four characters, and show what they name."""
        yield paragraph("A revoked key never comes back. Type the last four characters of its id.")
        chosen = self._chosen
        hint = f"{chosen.id[-_LAST:]} for the key of {chosen.client}" if chosen is not None else ""
        yield Input(self._typed_before, placeholder=hint, id="last", compact=True, select_on_focus=False)
        yield paragraph("", id="named")
        yield Choices(["cut its open streams too"], [], id="cut", many=True)
        yield paragraph(
            "Tab goes to the choice, Space makes it, Enter revokes once a key is named.", note=True
        )

    def on_mount(self) -> None:
        """Show what is named so far."""
        self._show_named()

    def _matching(self, typed: str) -> list[KeyInfo]:
        return [key for key in self._keys if key.id.endswith(typed)] if len(typed) >= _LAST else []

    def _named(self) -> KeyInfo | None:
        found = self._matching(self.query_one("#last", Input).value.strip())
        if len(found) > 1 and self._chosen in found:
            return self._chosen
        return found[0] if len(found) == 1 else None

    @on(Choices.Changed)
    @on(Input.Changed, "#last")
    def _show_named(self) -> None:
        key = self._named()
        self.query_one("#yes", Button).disabled = key is None
        typed = self.query_one("#last", Input).value.strip()
        self.query_one("#named", Static).update(self._description(key, typed))

    def _description(self, key: KeyInfo | None, typed: str) -> str:
        if key is not None:
            cut = bool(self.query_one("#cut", Choices).chosen)
            streams = streams_in_words(self._open_streams.get(key.id, 0), cut=cut)
            return f"Ends the {key.state.value} key {key.id} of {key.client}.\n{streams}."
        if len(typed) < _LAST:
            return ""
        if self._matching(typed):
            return "More than one key ends like that; type more of its id."
        return "No live key ends like that."

    def accept(self) -> None:
        """Answer with the key, once one is named."""
        key = self._named()
        if key is not None:
            self.dismiss(Revocation(key, bool(self.query_one("#cut", Choices).chosen)))


class ConfirmRevoke(Dialog[Revocation]):
    """Whether to end one key now, which the operator has named already, and its open streams with it."""

    def __init__(self, key: KeyInfo, open_streams: int) -> None:
        super().__init__(f"Revoke the key {key.id} of {key.client} now?", yes="Revoke now", danger=True)
        self._key = key
        self._open_streams = open_streams

    def body(self) -> Iterable[Widget]:
        """Say what ends, and what goes on."""
        yield paragraph("A revoked key never comes back: its next request is refused.")
        yield paragraph("", id="streams")
        yield Choices(["cut its open streams too"], [], id="cut", many=True)
        yield paragraph("Tab goes to the choice, Space makes it.", note=True)

    def on_mount(self) -> None:
        """Say what becomes of the open streams."""
        self._show_streams()

    @on(Choices.Changed)
    def _show_streams(self) -> None:
        streams = streams_in_words(self._open_streams, cut=self._cut)
        self.query_one("#streams", Static).update(f"{streams}.")

    @property
    def _cut(self) -> bool:
        return bool(self.query_one("#cut", Choices).chosen)

    def accept(self) -> None:
        """Do it."""
        self.dismiss(Revocation(self._key, self._cut))


class AskDiscard(Dialog[bool]):
    """Whether to throw a new key away. Not by `y`: that copies, in the dialog below."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("d", "discard", "Throw it away")]

    def __init__(self, client: str) -> None:
        super().__init__("Throw the new key away?", no="Back to the key", danger=True)
        self._client = client

    def body(self) -> Iterable[Widget]:
        """Say what is lost."""
        yield paragraph(
            f"The new key of {self._client} was neither copied nor saved, and it can't be shown again. If it"
            " is lost, rotate once more."
        )

    def buttons(self) -> Iterable[Button]:
        """Show the way back first."""
        yield from super().buttons()
        yield Button("Throw it away (d)", id="discard", compact=True)

    @on(Button.Pressed, "#discard")
    def action_discard(self) -> None:
        """Throw it away."""
        self.dismiss(True)  # noqa: FBT003 - the answer to the question


class SecretDialog(Dialog[None]):
    """The new key, masked; `v` reveals it for 30 s, `y` copies, `s` saves. Its text is kept only here.

    Closing it, or the app, asks if it was neither copied nor saved. While the dialog is open there are no
    pictures of the screen and no selection.

    Args:
        client: to whom the key belongs.
        secret: the key; let go of when the dialog closes.
        note: what became of the old key.
        copy: copies a text and returns a sentence on how; may raise `NoClipboard`.
        directory: where `s` saves.
    """

    ALLOW_SELECT = False
    AUTO_FOCUS = "#view"
    SHOWS_SECRET = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v", "view", "Reveal"),
        Binding("y", "copy", "Copy"),
        Binding("s", "save", "Save"),
    ]

    def __init__(
        self,
        client: str,
        secret: Secret,
        note: str,
        copy: Callable[[str], Awaitable[str]],
        directory: Path,
    ) -> None:
        super().__init__(f"The new key of {client}: it is shown only now", no="Close")
        self._client = client
        self._secret = secret
        self._note = note
        self._copy = copy
        self._directory = directory
        self._hide_timer: Timer | None = None
        self._kept = False

    def body(self) -> Iterable[Widget]:
        """Show the key, masked, and what became of the old one."""
        yield paragraph(self._secret.masked, id="key")
        yield paragraph(self._note)
        hint = "v reveals it for 30 s · y copies · s saves it to a file that only you can read"
        yield paragraph(hint, id="fault", note=True)

    def buttons(self) -> Iterable[Button]:
        """Show what can be done with it."""
        yield Button("Reveal (v)", id="view", compact=True)
        yield Button("Copy (y)", id="copy", compact=True)
        yield Button("Save (s)", id="save", compact=True)
        yield from super().buttons()

    @on(Button.Pressed, "#view")
    def action_view(self) -> None:
        """Reveal for a while, or hide again."""
        if self._hide_timer is not None:
            self._hide()
            return
        self.query_one("#key", Static).update(self._secret.text)
        self._hide_timer = self.set_timer(REVEAL_S, self._hide)

    def _hide(self) -> None:
        if self._hide_timer is not None:
            self._hide_timer.stop()
            self._hide_timer = None
        self.query_one("#key", Static).update(self._secret.masked)

    @on(Button.Pressed, "#copy")
    async def action_copy(self) -> None:
        """Copy to the clipboard, and say how."""
        try:
            self.explain(await self._copy(self._secret.text))
        except NoClipboard as error:
            self.explain(str(error))
        else:
            self._kept = True

    @on(Button.Pressed, "#save")
    async def action_save(self) -> None:
        """Save to a new file of mode 0600."""
        client = "".join(char if char.isascii() and char.isalnum() else "-" for char in self._client)[:40]
        prefix = f"relayd-key-{client}-"
        try:
            path = await asyncio.to_thread(private_file, self._secret.text + "\n", prefix, self._directory)
        except OSError as error:
            self.explain(f"Not saved: {error}")
            return
        self.explain(f"Saved to {path} (only you can read it). Delete it when the client has the key.")
        self._kept = True

    def action_leave(self) -> None:
        """Close; ask first if the key was neither copied nor saved."""
        if self.may_quit():
            self._close()

    def may_quit(self) -> bool:
        """Return whether the key was copied or saved; if not, ask whether to throw it away."""
        self._hide()
        # Only over this dialog itself: leaving twice asks once, and closes nothing else.
        if not self._kept and self.is_active:
            self.app.push_screen(AskDiscard(self._client), lambda answer: self._close() if answer else None)
        return self._kept

    def _close(self) -> None:
        self._secret.clear()
        self.dismiss(None)
