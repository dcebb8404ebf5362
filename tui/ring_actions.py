"""Changes of keys and clients, step by step: question, change, and the new key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import TypeVar

from textual.app import App

from relayd.admin.client import AdminClientError, Refused
from relayd.admin.schema import LIVE_STATES, ClientChange, ClientInfo, KeyChange, KeyInfo, epoch_s
from tui.context import Context
from tui.daemon_commands import RingChange
from tui.model.clients import FIELDS, texts_of
from tui.model.secret import Secret
from tui.model.units import clock, in_words, plural
from tui.screens.client_dialogs import AskClient, AskRemove
from tui.screens.dialogs import Confirm
from tui.screens.key_dialogs import AskGrace, AskRevoke, SecretDialog

_MAX_NAMED = 4
_TRY_AGAIN = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED})
"""Refusals of a form that the operator can mend in it."""

C = TypeVar("C", KeyChange, ClientChange)


class RingActions:
    """One method for each change, from its question to what it led to; to be run as a worker.

    Each change names the generation of the ring that was on the screen when its question was asked: if
    another operator was faster, the daemon refuses it.

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

    # Keys.

    def _current(self, key: KeyInfo) -> KeyInfo:
        """Return a key as it is known by now: the list that it comes from may not be drawn anew yet."""
        return next((known for known in self._state.ring.keys if known.id == key.id), key)

    async def rotate(self, key: KeyInfo) -> None:
        """Make a new key for the client of this one."""
        key = self._current(key)
        generation = self._state.generation
        grace_s = await self._app.push_screen_wait(
            AskGrace(f"Rotate the key of {key.client}?", self._rotation_in_words(key), "Rotate")
        )
        if grace_s is not None:
            await self._show_new_key(
                partial(self._client.rotate_key, key.id, grace_s=grace_s),
                generation,
                key.client,
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

    async def make_key(self, client: str) -> None:
        """Make a key for a client that has no active one."""
        generation = self._state.generation
        question = Confirm(
            f"Make a key for {client}?",
            f"{client} has no active key now. The new one works at once, within the client's bounds.",
            "Make a key",
        )
        if await self._app.push_screen_wait(question):
            await self._show_new_key(
                partial(self._client.add_key, client),
                generation,
                client,
                "Not made",
                f"The client {client} can use it from now on.",
            )

    async def extend(self, key: KeyInfo) -> None:
        """Give a retiring key more time."""
        key = self._current(key)
        generation = self._state.generation
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
                generation,
                "Not extended",
                lambda _: f"The old key {key.id} works {in_words(by_s)} longer.",
            )

    async def undo(self, key: KeyInfo) -> None:
        """Make a retiring key the primary one again."""
        key = self._current(key)
        generation = self._state.generation
        question = Confirm(
            f"Undo the rotation of {key.client}?",
            f"The old key {key.id} is primary again. The new key {key.replaced_by or ''} is revoked now"
            " and never comes back; a client that uses it is refused.",
            "Undo the rotation",
        )
        if await self._app.push_screen_wait(question):
            await self._change(
                partial(self._client.undo_key, key.id),
                generation,
                "Not undone",
                lambda _: f"The key {key.id} of {key.client} is active again.",
            )

    async def revoke(self, chosen: KeyInfo | None) -> None:
        """End a key now."""
        generation = self._state.generation
        answer = await self._app.push_screen_wait(
            AskRevoke(chosen, self._state.ring.keys, self._open_streams())
        )
        if answer is not None:
            key, cut = answer.key, answer.cut
            await self._change(
                partial(self._client.revoke_key, key.id, cut=cut),
                generation,
                "Not revoked",
                lambda change: _with_cut(
                    f"The key {key.id} of {key.client} is revoked", change.cut, asked=cut
                ),
            )

    # Clients.

    async def add_client(self) -> None:
        """Make a client with its bounds and its first key; a refusal keeps what was typed."""
        name, texts, fault = "", dict[str, str](), ""
        while True:
            generation = self._state.generation
            names = frozenset(name for name, known in self._state.clients.items() if known.removed_at is None)
            form = await self._app.push_screen_wait(
                AskClient(None, texts, fault, name=name, names=names, now_s=self._context.now_s)
            )
            if form is None:
                return
            name, texts = form.name, form.texts
            wanted = partial(self._client.add_client, name, form.changes)
            note = f"The client {name} can use it from now on."
            fault = await self._show_new_key(wanted, generation, name, "Not added", note, mendable=True)
            if not fault:
                return

    async def edit_client(self, client: ClientInfo) -> None:
        """Change the bounds of a client. A refusal shows the form again, with what is new in it."""
        client = self._state.clients.get(client.name, client)
        texts, fault = texts_of(client), ""
        while True:
            generation = self._state.generation
            form = await self._app.push_screen_wait(
                AskClient(client, texts, fault, now_s=self._context.now_s)
            )
            if form is None:
                return
            wanted = partial(self._client.set_client, client.name, form.changes)
            try:
                await self._commands.change_ring(wanted, generation)
            except AdminClientError as error:
                await self._refresh_ring()
                fresh = self._state.clients.get(client.name)
                if not _is_mendable(error) or fresh is None or fresh.removed_at is not None:
                    self._app.notify(f"Not changed: {error}", severity="error")
                    return
                fault = f"Not changed. {_difference(client, fresh) or error}"
                texts = _merged(form.texts, texts_of(client), texts_of(fresh))
                client = fresh
            else:
                self._app.notify(f"The bounds of {client.name} hold from its next request on.")
                await self._refresh_ring()
                return

    async def remove_client(self, client: ClientInfo) -> None:
        """Remove a client with all its keys."""
        generation = self._state.generation
        keys = [
            key for key in self._state.ring.keys if key.client == client.name and key.state in LIVE_STATES
        ]
        streams = self._state.open_streams.streams.values()
        count = sum(stream.progress.client == client.name for stream in streams)
        cut = await self._app.push_screen_wait(AskRemove(client.name, keys, count))
        if cut is not None:
            await self._change(
                partial(self._client.remove_client, client.name, cut=cut),
                generation,
                "Not removed",
                lambda change: _with_cut(
                    f"The client {client.name} is removed, {plural(len(change.revoked), 'key')} revoked",
                    change.cut,
                    asked=cut,
                ),
            )

    # What they share.

    async def _show_new_key(
        self,
        wanted: RingChange[C],
        generation: int,
        client: str,
        failure: str,
        note: str,
        *,
        mendable: bool = False,
    ) -> str:
        """Ask for a new key of a client, and show it once. No name but the dialog's holds its text then.

        Returns an empty text, or with `mendable` why the form was refused.
        """
        try:
            change = await self._commands.change_ring(wanted, generation)
        except AdminClientError as error:
            await self._refresh_ring()
            if mendable and _is_mendable(error):
                return f"{failure}: {error}"
            self._app.notify(f"{failure}: {error}", severity="error")
            return ""
        secret = Secret(change.secret) if change.secret is not None else None
        del change
        await self._refresh_ring()
        if secret is None:
            self._app.notify(
                "It was done, but the answer with the new key was lost on the way."
                " Rotate again to get a key that you can read.",
                severity="error",
            )
            return ""
        send = self._context.exporter.send
        await self._app.push_screen_wait(
            SecretDialog(
                client, secret, note, lambda text: send(text, "The key", secret=True), self._context.home
            )
        )
        return ""

    async def _change(
        self, wanted: RingChange[C], generation: int, failure: str, success: Callable[[C], str]
    ) -> None:
        try:
            change = await self._commands.change_ring(wanted, generation)
        except AdminClientError as error:
            self._app.notify(f"{failure}: {error}", severity="error")
        else:
            self._app.notify(success(change))
        await self._refresh_ring()

    async def _refresh_ring(self) -> None:
        # Without a connection the reconnect does it.
        with suppress(AdminClientError):
            await self._context.feed.refresh_ring()


def _with_cut(done: str, streams: int, *, asked: bool) -> str:
    """Return what was done as a sentence, with the number of streams cut if that was asked for."""
    return f"{done}; {plural(streams, 'stream')} cut." if asked else f"{done}."


def _is_mendable(error: AdminClientError) -> bool:
    return isinstance(error, Refused) and error.status in _TRY_AGAIN


def _difference(before: ClientInfo, now: ClientInfo) -> str:
    """Return what another operator changed meanwhile, in words; empty if it was not this client's bounds."""
    old, new = texts_of(before), texts_of(now)
    changed = [
        f"{field.label} is now {new[field.name] or 'not bounded'}"
        for field in FIELDS
        if old[field.name] != new[field.name]
    ]
    return f"Somebody else was faster: {'; '.join(changed)}. Look again." if changed else ""


def _merged(typed: dict[str, str], before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """Return what was typed, and in the lines that were left alone what holds now."""
    return {name: text if text != before[name] else now[name] for name, text in typed.items()}
