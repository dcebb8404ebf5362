"""Changes of keys, step by step: question, change, and the new key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from textual.app import App

from relayd.admin.client import AdminClientError
from relayd.admin.schema import KeyChange, KeyInfo, epoch_s
from tui.context import Context
from tui.daemon_commands import RingChange
from tui.model.secret import Secret
from tui.model.text import printable_text
from tui.model.units import clock, in_words, plural
from tui.screens.dialogs import Confirm
from tui.screens.key_dialogs import AskClient, AskGrace, AskRevoke, SecretDialog

_MAX_NAMED = 4


class KeyActions:
    """One method for each change, from its question to what it led to; to be run as a worker.

    Args:
        app: shows dialogs and notifications.
        context: what the app knows and can do.
    """

    def __init__(self, app: App[int], context: Context) -> None:
        self._app = app
        self._context = context
        self._commands = context.commands
        self._client = context.commands.client
        self._state = context.state

    def _open_streams(self) -> Counter[str]:
        streams = self._state.open_streams.streams.values()
        return Counter(stream.progress.key_id for stream in streams if stream.progress.key_id is not None)

    async def rotate(self, key: KeyInfo) -> None:
        """Make a new key for the client of this one."""
        grace_s = await self._app.push_screen_wait(
            AskGrace(f"Rotate the key of {key.client}?", self._rotation_in_words(key), "Rotate")
        )
        if grace_s is not None:
            await self._make_key(
                partial(self._client.rotate_key, key.id, grace_s=grace_s),
                "Not rotated",
                f"The old key {key.id} works for {in_words(grace_s)} more.",
            )

    def _rotation_in_words(self, key: KeyInfo) -> str:
        uses = self._state.evidence.users(key.id, self._context.now_s())
        addresses = [use.ip for use in uses if use.requests]
        named = ", ".join(addresses[:_MAX_NAMED])
        more = f" and {len(addresses) - _MAX_NAMED} more" if len(addresses) > _MAX_NAMED else ""
        users = "It was not used in 24 h."
        if addresses:
            users = f"{plural(len(addresses), 'address', 'addresses')} used it in 24 h: {named}{more}."
        return (
            f"Key {key.id}. {users}\n"
            f"{plural(self._open_streams()[key.id], 'stream')} open with it now; none is cut.\n"
            "A new key works at once. The old one keeps working for the grace:"
        )

    async def add(self) -> None:
        """Make a key for a new client."""
        keys = self._state.ring.keys
        known = frozenset(key.client for key in keys if key.revoked_at is None and key.expires_at is None)
        client = await self._app.push_screen_wait(AskClient(known))
        if client is not None:
            await self._make_key(
                partial(self._client.add_key, client),
                "Not added",
                f"The client {client} can use it from now on.",
            )

    async def _make_key(self, wanted: RingChange, failure: str, note: str) -> None:
        """Ask for a new key and show it once. No name but the dialog's holds its text afterwards."""
        try:
            change = await self._commands.change_ring(wanted)
        except AdminClientError as error:
            self._app.notify(f"{failure}: {error}", severity="error")
            return
        secret = Secret(change.secret) if change.secret is not None else None
        client = printable_text(change.key.client)
        del change
        await self._refresh_ring()
        if secret is None:
            self._app.notify(
                "It was done, but the answer with the new key was lost on the way."
                " Rotate again to get a key that you can read.",
                severity="error",
            )
            return
        send = self._context.exporter.send
        await self._app.push_screen_wait(
            SecretDialog(
                client, secret, note, lambda text: send(text, "The key", secret=True), self._context.home
            )
        )

    async def extend(self, key: KeyInfo) -> None:
        """Give a retiring key more time."""
        ends = clock(epoch_s(key.expires_at)) if key.expires_at else "now"
        by_s = await self._app.push_screen_wait(
            AskGrace(
                f"Extend the old key of {key.client}?",
                f"Key {key.id} ends at {ends}. Later by:",
                "Extend",
                default="15m",
            )
        )
        if by_s is not None:
            await self._change(
                partial(self._client.extend_key, key.id, by_s=by_s),
                "Not extended",
                lambda _: f"The old key {key.id} works {in_words(by_s)} longer.",
            )

    async def undo(self, key: KeyInfo) -> None:
        """Make a retiring key the primary one again."""
        question = Confirm(
            f"Undo the rotation of {key.client}?",
            f"The old key {key.id} is primary again. The new key {key.replaced_by or ''} is revoked now"
            " and never comes back; a client that uses it is refused.",
            "Undo the rotation",
        )
        if await self._app.push_screen_wait(question):
            await self._change(
                partial(self._client.undo_key, key.id),
                "Not undone",
                lambda _: f"The key {key.id} of {key.client} is active again.",
            )

    async def revoke(self, chosen: KeyInfo | None) -> None:
        """End a key now."""
        answer = await self._app.push_screen_wait(
            AskRevoke(chosen, self._state.ring.keys, self._open_streams())
        )
        if answer is not None:
            key, cut = answer.key, answer.cut
            await self._change(
                partial(self._client.revoke_key, key.id, cut=cut),
                "Not revoked",
                lambda change: (
                    f"The key {key.id} of {key.client} is revoked"
                    + (f"; {plural(change.cut, 'stream')} cut." if cut else ".")
                ),
            )

    async def _change(self, wanted: RingChange, failure: str, success: Callable[[KeyChange], str]) -> None:
        try:
            change = await self._commands.change_ring(wanted)
        except AdminClientError as error:
            self._app.notify(f"{failure}: {error}", severity="error")
        else:
            self._app.notify(success(change))
        await self._refresh_ring()

    async def _refresh_ring(self) -> None:
        # Without a connection the reconnect does it.
        with suppress(AdminClientError):
            await self._context.feed.refresh_ring()
