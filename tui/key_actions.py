"""Changes of keys, step by step: question, change, what it led to."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING

from relayd.admin.client import AdminClientError
from relayd.admin.schema import KeyChange, KeyInfo, epoch_s
from tui.model.secret import Secret
from tui.model.text import neutral
from tui.model.units import clock, in_words, plural
from tui.screens.confirm import Confirm
from tui.screens.key_dialogs import AskClient, AskGrace, AskRevoke
from tui.screens.secret import SecretDialog
from tui.type_ahead import ASKS

if TYPE_CHECKING:
    from tui.app import RelaydApp

_MAX_NAMED = 4
_GROUP = f"{ASKS}-key"


class KeyActions:
    """Each method starts one flow and returns at once."""

    def __init__(self, app: RelaydApp, save_directory: Path) -> None:
        self._app = app
        self._save_directory = save_directory

    def rotate(self, key: KeyInfo) -> None:
        """Make a new key for the client of this one."""
        self._app.run_worker(self._rotate(key), exclusive=True, group=_GROUP)

    def add(self) -> None:
        """Make a key for a new client."""
        self._app.run_worker(self._add(), exclusive=True, group=_GROUP)

    def extend(self, key: KeyInfo) -> None:
        """Give a retiring key more time."""
        self._app.run_worker(self._extend(key), exclusive=True, group=_GROUP)

    def undo(self, key: KeyInfo) -> None:
        """Make a retiring key the primary one again."""
        self._app.run_worker(self._undo(key), exclusive=True, group=_GROUP)

    def revoke(self, key: KeyInfo | None) -> None:
        """End a key now."""
        self._app.run_worker(self._revoke(key), exclusive=True, group=_GROUP)

    def _open_streams(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for stream in self._app.state.open_streams.streams.values():
            key_id = stream.progress.key_id
            if key_id is not None:
                counts[key_id] = counts.get(key_id, 0) + 1
        return counts

    async def _rotate(self, key: KeyInfo) -> None:
        grace_s = await self._app.push_screen_wait(
            AskGrace(f"Rotate the key of {key.client}?", self._what_rotates(key), "Rotate")
        )
        if grace_s is None:
            return
        await self._make(
            self._app.commands.rotate(key.id, grace_s),
            "Not rotated",
            f"The old key {key.id} works for {in_words(grace_s)} more.",
        )

    def _what_rotates(self, key: KeyInfo) -> str:
        app = self._app
        users = [use for use in app.state.evidence.users(key.id, app.now_s()) if use.requests]
        named = ", ".join(use.ip for use in users[:_MAX_NAMED])
        more = f" and {len(users) - _MAX_NAMED} more" if len(users) > _MAX_NAMED else ""
        who = (
            f"{plural(len(users), 'address', 'addresses')} used it in 24 h: {named}{more}."
            if users
            else "Nobody used it in 24 h."
        )
        open_now = self._open_streams().get(key.id, 0)
        return (
            f"Key {key.id}. {who}\n"
            f"{plural(open_now, 'stream')} of it open now; none is cut.\n"
            "A new key works at once. The old one keeps working for the grace:"
        )

    async def _make(self, question: Awaitable[KeyChange], failed: str, note: str) -> None:
        """Ask for a new key and show it once. No name but the dialog's holds its text afterwards."""
        app = self._app
        try:
            change = await question
        except AdminClientError as error:
            app.notify(f"{failed}: {error}", severity="error")
            return
        secret = Secret(change.secret) if change.secret is not None else None
        client = neutral(change.key.client)
        del change
        await app.look_at_ring()
        if secret is None:
            app.notify(
                "It was done, but the answer with the new key was lost on the way."
                " Rotate again to get a key that you can read.",
                severity="error",
            )
            return
        await app.push_screen_wait(SecretDialog(client, secret, note, self._save_directory))
        await app.action_show_screen("keys")

    async def _add(self) -> None:
        app = self._app
        known = frozenset(
            key.client for key in app.state.ring.keys if key.revoked_at is None and key.expires_at is None
        )
        client = await app.push_screen_wait(AskClient(known))
        if client is None:
            return
        await self._make(
            app.commands.add(client), "Not added", f"The client {client} can use it from now on."
        )

    async def _extend(self, key: KeyInfo) -> None:
        app = self._app
        ends = clock(epoch_s(key.expires_at)) if key.expires_at else "now"
        by_s = await app.push_screen_wait(
            AskGrace(
                f"Extend the old key of {key.client}?",
                f"Key {key.id} ends at {ends}. Later by:",
                "Extend",
                default="15m",
            )
        )
        if by_s is not None and await app.attempt("Not extended", app.commands.extend(key.id, by_s)):
            app.notify(f"The old key {key.id} works {in_words(by_s)} longer.")
            await app.look_at_ring()

    async def _undo(self, key: KeyInfo) -> None:
        app = self._app
        sure = await app.push_screen_wait(
            Confirm(
                f"Undo the rotation of {key.client}?",
                f"The old key {key.id} is primary again. The new key {key.replaced_by or ''} is revoked now"
                " and never comes back; whoever has it is refused.",
                "Undo the rotation",
            )
        )
        if sure and await app.attempt("Not undone", app.commands.undo(key.id)):
            app.notify(f"The key {key.id} of {key.client} is active again.")
            await app.look_at_ring()

    async def _revoke(self, key: KeyInfo | None) -> None:
        app = self._app
        answer = await app.push_screen_wait(AskRevoke(key, app.state.ring.keys, self._open_streams()))
        if answer is None:
            return
        try:
            change = await app.commands.revoke(answer.key.id, cut=answer.cut)
        except AdminClientError as error:
            app.notify(f"Not revoked: {error}", severity="error")
        else:
            cut = f"; {plural(change.cut, 'stream')} cut" if answer.cut else ""
            app.notify(f"The key {answer.key.id} of {answer.key.client} is revoked{cut}.")
        await app.look_at_ring()
