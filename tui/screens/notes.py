"""Notes of operators: asked for in a dialog, kept in the audit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from textual.app import App
from textual.widget import Widget
from textual.widgets import Input

from relayd.admin.client import AdminClientError
from relayd.admin.schema import AuditEntry
from tui.daemon_commands import DaemonCommands
from tui.model.filter_kinds import looks_like_key
from tui.screens.dialogs import Dialog, ask, paragraph

_MAX_NOTE = 500
_MAX_NAME = 64
_MAX_KEYS = 10
"""The daemon takes no more; the client is named anyway."""


async def write_note(
    app: App[int], commands: DaemonCommands, client: str, key_ids: Sequence[str]
) -> AuditEntry | None:
    """Ask for a note about a client and keys, and add it to the audit; return its entry.

    Args:
        app: shows the dialog, and why it can't be done.
        commands: change the daemon.
        client: the name of the client; if the operator writes another one, the keys are left out.
        key_ids: the ids of the keys.
    """
    if refusal := commands.refusal():
        app.notify(f"Not now: {refusal}.")
        return None
    noted = await ask(app, AskNote(client))
    if noted is None:
        return None
    text, name = noted
    about = key_ids[:_MAX_KEYS] if name == client else ()
    write = partial(commands.client.note, text, client=name or None, key_ids=about)
    try:
        return await commands.act_once("Add a note", lambda key: write(idempotency_key=key))
    except AdminClientError as error:
        app.notify(f"The note was not added: {error}", severity="error")
        return None


class AskNote(Dialog[tuple[str, str]]):
    """The text of a note, and the name of the client it is about."""

    AUTO_FOCUS = "#text"
    YES_KEY = "Enter"

    def __init__(self, client: str) -> None:
        super().__init__("Add a note to the audit", yes="Add")
        self._client = client

    def body(self) -> Iterable[Widget]:
        """Show a field for the text, and one for the client."""
        yield Input(placeholder="told web, Tuesday", id="text", max_length=_MAX_NOTE, compact=True)
        yield paragraph("About which client; may be empty:", note=True)
        yield Input(self._client, id="client", max_length=_MAX_NAME, compact=True)
        yield paragraph(
            "It can't be changed or removed later. Your name and the time are added.", id="fault", note=True
        )

    def accept(self) -> None:
        """Answer with text and client."""
        text, client = (self.query_one(name, Input).value.strip() for name in ("#text", "#client"))
        if not text:
            self.explain("Write something.")
        elif looks_like_key(text) or (client != self._client and looks_like_key(client)):
            self.explain("This looks like a key. Name keys by their id.")
        else:
            self.dismiss((text, client))
