"""The new key, shown once. Its text is nowhere but here, and gone when this closes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.binding import Binding, BindingType
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Button, Static

from tui.clipboard import private_file
from tui.model.secret import Secret
from tui.screens.dialog import Dialog, words

if TYPE_CHECKING:
    from tui.app import RelaydApp

REVEAL_S = 30.0


class SecretDialog(Dialog[None]):
    """Masked; `v` reveals for 30 s, `y` copies, `s` saves. Closing asks once whether it was kept.

    While it is open there are no screenshots and no selection.
    """

    ALLOW_SELECT = False
    AUTO_FOCUS = "#view"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v", "view", "Reveal"),
        Binding("y", "copy", "Copy"),
        Binding("s", "save", "Save"),
    ]

    def __init__(self, client: str, secret: Secret, note: str, directory: Path) -> None:
        super().__init__(f"The new key of {client}: it is shown only now")
        self._client = client
        self._secret = secret
        self._note = note
        self._directory = directory
        self._timer: Timer | None = None
        self._kept = False
        self._asked = False

    def body(self) -> Iterable[Widget]:
        """The key, masked, and what became of it."""
        yield words(self._secret.masked, id="key")
        yield words(self._note)
        yield words(
            "v reveals it for 30 s · y copies · s saves it to a file that only you can read",
            id="told",
            note=True,
        )

    def buttons(self) -> Iterable[Button]:
        """Nothing here is dangerous but closing."""
        yield Button("View", id="view", compact=True)
        yield Button("Copy", id="copy", compact=True)
        yield Button("Save", id="save", compact=True)
        yield Button("Close", id="no", compact=True)

    def _tell(self, text: str) -> None:
        self.query_one("#told", Static).update(text)

    @on(Button.Pressed, "#view")
    def action_view(self) -> None:
        """Reveal for a while, or hide again."""
        if self._timer is not None:
            self._hide()
            return
        self.query_one("#key", Static).update(self._secret.text)
        self._kept = True
        self._timer = self.set_timer(REVEAL_S, self._hide)

    def _hide(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        self.query_one("#key", Static).update(self._secret.masked)

    @on(Button.Pressed, "#copy")
    async def action_copy(self) -> None:
        """Towards the clipboard; says by which way."""
        app = cast("RelaydApp", self.app)
        self._tell(await app.take_out.send(self._secret.text, "The key", secret=True))
        self._kept = True

    @on(Button.Pressed, "#save")
    async def action_save(self) -> None:
        """To a new file of mode 0600."""
        try:
            path = await asyncio.to_thread(
                private_file, self._secret.text + "\n", f"relayd-key-{_plain(self._client)}-", self._directory
            )
        except OSError as error:
            self._tell(f"Not saved: {error}")
            return
        self._tell(f"Saved to {path} (only you can read it). Delete it when the client has the key.")
        self._kept = True

    def action_leave(self) -> None:
        """Close, after asking once when nothing was done to keep the key."""
        if not self._kept and not self._asked:
            self._asked = True
            self._tell("Close without keeping the key? It can't be shown again. Close once more, or v, y, s.")
            self.add_class("-danger")
            return
        self._hide()
        self._secret.clear()
        self.dismiss(None)


def _plain(name: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in name)[:40]
