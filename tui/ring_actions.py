"""Changes of keys and clients, step by step: question, change, and the new key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Generic, TypeVar

from msgspec.structs import replace
from textual.app import App

from relayd.admin.client import AdminClientError, Refused
from relayd.admin.key_search import find_owner
from relayd.admin.schema import LIVE_STATES, ClientChange, ClientInfo, KeyChange, KeyInfo, KeyState, epoch_s
from relayd.printable import plural
from tui.context import Context
from tui.daemon_commands import RingChange
from tui.model.clients import FIELDS, texts_of
from tui.model.evidence import state_in_words, use_in_words
from tui.model.instances import which_have_it
from tui.model.secret import Secret
from tui.model.text import printable_struct
from tui.model.units import clock, in_words
from tui.screens.client_dialogs import AskClient, AskRemove
from tui.screens.dialogs import Confirm, Dialog, ask
from tui.screens.key_dialogs import (
    AskGrace,
    AskRevoke,
    ConfirmRevoke,
    Revocation,
    SecretDialog,
    streams_in_words,
)
from tui.screens.whose_key import FoundKey, WhoseKey

_MAX_NAMED = 4
_MAX_NEWS = 10
_TRY_AGAIN = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED})
"""Refusals of a form that the operator can mend in it."""

A = TypeVar("A")
C = TypeVar("C", KeyChange, ClientChange)


@dataclass(slots=True)
class _Done(Generic[A, C]):
    """What the operator answered, and what the daemon answered to that."""

    answer: A
    change: C

    def take_secret(self) -> Secret | None:
        """Return the text of the new key, if it came, and let go of it here."""
        text, self.change = self.change.secret, replace(self.change, secret=None)
        return None if text is None else Secret(text)


class RingActions:
    """One method for each change, from its question to what it led to; to be run as a worker.

    Each change names the generation of the ring that its question was made from. If another operator was
    faster, the daemon refuses it, and the question comes again: with what changed, and what is true now.

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

        def question() -> AskGrace | str:
            now = self._current(key)
            if now.state is not KeyState.ACTIVE:
                return _is_now(now)
            status = self._state.status
            return AskGrace(
                f"Rotate the key of {key.client}?",
                self._rotation_in_words(now),
                "Rotate",
                default_s=None if status is None else status.grace_s,
            )

        done = await self._ask_and_change(
            f"Rotate the key of {key.client}",
            question,
            lambda grace_s: partial(self._client.rotate_key, key.id, grace_s=grace_s),
        )
        if done is not None:
            works = f"works for {in_words(done.answer)} more" if done.answer else "has ended"
            await self._show_new_key(key.client, done, f"The old key {key.id} {works}.")

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
            f"{streams_in_words(self._open_streams()[key.id], cut=False)}.\n"
            "A new key works at once. The old one keeps working for the grace:"
        )

    async def make_key(self, client: str) -> None:
        """Make a key for a client that has no active one."""

        def question() -> Confirm | str:
            if self._state.active_key(client) is not None:
                return f"{client} has an active key now."
            return Confirm(
                f"Make a key for {client}?",
                f"{client} has no active key now. The new one works at once, within the client's bounds.",
                "Make a key",
            )

        done = await self._ask_and_change(
            f"Make a key for {client}", question, lambda _: partial(self._client.add_key, client)
        )
        if done is not None:
            await self._show_new_key(client, done, f"The client {client} can use it from now on.")

    async def extend(self, key: KeyInfo) -> None:
        """Give a retiring key more time."""

        def question() -> AskGrace | str:
            now = self._current(key)
            if now.state is not KeyState.RETIRING or now.expires_at is None:
                return _is_now(now)
            return AskGrace(
                f"Extend the old key of {key.client}?",
                f"Key {key.id} ends at {clock(epoch_s(now.expires_at))}. Extend it by:",
                "Extend",
                default_s=900,
            )

        done = await self._ask_and_change(
            f"Extend the old key {key.id} of {key.client}",
            question,
            lambda by_s: partial(self._client.extend_key, key.id, by_s=by_s),
        )
        if done is not None:
            self._app.notify(f"The old key {key.id} works {in_words(done.answer)} longer.")

    async def undo(self, key: KeyInfo) -> None:
        """Make a retiring key the primary one again."""

        def question() -> Confirm | str:
            now = self._current(key)
            if now.state is not KeyState.RETIRING:
                return _is_now(now)
            active = self._state.active_key(key.client)
            if active is not None and active.id != now.replaced_by:
                return (
                    f"The key {key.id} was replaced by {now.replaced_by}, but {active.id} is the active key"
                    f" of {key.client} now. Undo or revoke that one first."
                )
            ends = (
                f"No other key of {key.client} is active."
                if active is None
                else f"The new key {active.id} is revoked now and never comes back; a client that uses it is"
                " refused."
            )
            return Confirm(
                f"Undo the rotation of {key.client}?",
                f"The old key {key.id} is primary again. {ends}",
                "Undo the rotation",
            )

        done = await self._ask_and_change(
            f"Undo the rotation of {key.client}",
            question,
            lambda _: partial(self._client.undo_key, key.id),
        )
        if done is not None:
            self._app.notify(f"The key {key.id} of {key.client} is active again.")

    async def revoke(self, chosen: KeyInfo | None) -> None:
        """End a key now."""
        typed = ""

        def change(answer: Revocation) -> RingChange[KeyChange]:
            # If another operator was faster, the question comes again with what was typed.
            nonlocal typed
            typed = answer.key.id
            return partial(self._client.revoke_key, answer.key.id, cut=answer.cut)

        await self._revoke(
            lambda: AskRevoke(chosen, self._state.ring.keys, self._open_streams(), typed), change
        )

    async def revoke_found(self, key: KeyInfo) -> None:
        """End a key that the operator has in hand."""

        def question() -> ConfirmRevoke | str:
            now = self._current(key)
            if now.state not in LIVE_STATES:
                return _is_now(now)
            return ConfirmRevoke(now, self._open_streams()[now.id])

        await self._revoke(
            question, lambda answer: partial(self._client.revoke_key, answer.key.id, cut=answer.cut)
        )

    async def _revoke(
        self,
        question: Callable[[], Dialog[Revocation] | str],
        change: Callable[[Revocation], RingChange[KeyChange]],
    ) -> None:
        done = await self._ask_and_change(
            lambda answer: f"Revoke the key {answer.key.id} of {answer.key.client}", question, change
        )
        if done is not None:
            key, cut = done.answer.key, done.answer.cut
            revoked = _with_cut(f"The key {key.id} of {key.client} is revoked", done.change.cut, asked=cut)
            self._app.notify(f"{revoked} {which_have_it(done.change.instances)}".rstrip())

    def _in_words(self, key: KeyInfo) -> str:
        """Return a key that was just found as a sentence: its state, and its use."""
        now_s = self._context.now_s()
        use = use_in_words(key, self._state.evidence, self._open_streams()[key.id], now_s)
        return f"The key {key.id} is {state_in_words(key, now_s)}.\n{use}"

    async def whose_key(self) -> FoundKey | None:
        """Ask for a key and say whose it is; return it, and what is wanted of it."""
        feed, keys = self._context.feed, self._state.ring.keys
        question = WhoseKey(
            lambda text: find_owner(text, feed.find_key, keys),
            self._in_words,
            self._commands.refusal(),
        )
        return await ask(self._app, question)

    # Clients.

    async def add_client(self) -> None:
        """Make a client with its bounds and its first key; a refusal keeps what was typed."""
        name, texts, fault = "", dict[str, str](), ""
        while True:
            generation = self._state.generation
            names = frozenset(name for name, known in self._state.clients.items() if known.removed_at is None)
            question = AskClient(None, texts, fault, name=name, names=names, now_s=self._context.now_s)
            form = await ask(self._app, question)
            if form is None:
                return
            name, texts = form.name, form.texts
            wanted = partial(self._client.add_client, name, form.changes)
            note = f"The client {name} can use it from now on."
            try:
                change = await self._commands.change_ring(f"Add the client {name}", wanted, generation)
            except AdminClientError as error:
                await self._refresh_ring()
                fault = f"Not added: {await self._why(error, generation)}"
                if not _is_mendable(error):
                    self._app.notify(fault, severity="error")
                    return
            else:
                done = _Done(form, change)
                del change
                await self._refresh_ring()
                await self._show_new_key(name, done, note)
                return

    async def edit_client(self, client: ClientInfo) -> None:
        """Change the bounds of a client. A refusal shows the form again, with what is new in it."""
        client = self._state.clients.get(client.name, client)
        texts, fault = texts_of(client), ""
        while True:
            generation = self._state.generation
            form = await ask(self._app, AskClient(client, texts, fault, now_s=self._context.now_s))
            if form is None:
                return
            wanted = partial(self._client.set_client, client.name, form.changes)
            try:
                await self._commands.change_ring(f"Change the bounds of {client.name}", wanted, generation)
            except AdminClientError as error:
                await self._refresh_ring()
                fresh = self._state.clients.get(client.name)
                reason = await self._why(error, generation)
                if not _is_mendable(error) or fresh is None or fresh.removed_at is not None:
                    self._app.notify(f"Not changed: {reason}", severity="error")
                    return
                fault = f"Not changed. {_difference(client, fresh) or reason}"
                texts = _merged(form.texts, texts_of(client), texts_of(fresh))
                client = fresh
            else:
                await self._refresh_ring()
                self._app.notify(f"The bounds of {client.name} hold from its next request on.")
                return

    async def remove_client(self, client: ClientInfo) -> None:
        """Remove a client with all its keys."""

        def question() -> AskRemove | str:
            known = self._state.clients.get(client.name)
            if known is None or known.removed_at is not None:
                return f"There is no client {client.name} any more."
            keys = self._state.live_keys(client.name)
            streams = self._state.open_streams.streams.values()
            return AskRemove(
                client.name, keys, sum(stream.progress.client == client.name for stream in streams)
            )

        done = await self._ask_and_change(
            f"Remove the client {client.name}",
            question,
            lambda cut: partial(self._client.remove_client, client.name, cut=cut),
        )
        if done is not None:
            revoked = plural(len(done.change.revoked), "key")
            self._app.notify(
                _with_cut(
                    f"The client {client.name} is removed, {revoked} revoked",
                    done.change.cut,
                    asked=done.answer,
                )
            )

    # What they share.

    async def _ask_and_change(
        self,
        what: str | Callable[[A], str],
        question: Callable[[], Dialog[A] | str],
        change: Callable[[A], RingChange[C]],
    ) -> _Done[A, C] | None:
        """Ask, and change what was asked for; None if nothing was changed, and the operator knows why.

        Args:
            what: what the change does, in words.
            question: returns the dialog on what is known now, or why there is nothing to ask any more.
            change: returns the change for an answer.
        """
        news = ""
        while True:
            generation = self._state.generation
            dialog = question()
            if isinstance(dialog, str):
                reasons = " ".join(reason for reason in (news, dialog) if reason)
                self._app.notify(f"Not done. {reasons}", severity="error")
                return None
            dialog.news = news
            answer = await ask(self._app, dialog)
            if answer is None:
                return None
            words = what if isinstance(what, str) else what(answer)
            try:
                return _Done(answer, await self._commands.change_ring(words, change(answer), generation))
            except AdminClientError as error:
                if not _is_late(error):
                    self._app.notify(f"{words}: not done. {error}", severity="error")
                    return None
                news = await self._changed_since(generation)
            finally:
                self._context.feed.look_soon()
                await self._refresh_ring()

    async def _why(self, error: AdminClientError, generation: int) -> str:
        """Return why a change was refused: in words what others did meanwhile, or what the daemon says."""
        return await self._changed_since(generation) if _is_late(error) else str(error)

    async def _changed_since(self, generation: int) -> str:
        """Return in words what other operators did to keys and clients meanwhile."""
        with suppress(AdminClientError):
            entries = (await self._client.audit(limit=_MAX_NEWS)).entries
            changes = [
                f"{entry.login} did {entry.action} for {entry.client}"
                for entry in map(printable_struct, reversed(entries))
                if entry.generation > generation and entry.result == "done" and entry.client is not None
            ]
            if changes:
                return f"Meanwhile {', then '.join(changes)}. Nothing of yours was done. Look again."
        return "Keys or clients were changed meanwhile. Nothing of yours was done. Look again."

    async def _show_new_key(self, client: str, done: _Done[A, C], note: str) -> None:
        """Show a new key of a client once. No name but the dialog's holds its text then."""
        secret = done.take_secret()
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
                client,
                secret,
                f"{note}\n{which_have_it(done.change.instances)}".rstrip(),
                lambda text: send(text, "The key", secret=True),
                self._context.home,
            )
        )

    async def _refresh_ring(self) -> None:
        # Without a connection the reconnect does it.
        with suppress(AdminClientError):
            await self._context.feed.refresh_ring()


def _is_now(key: KeyInfo) -> str:
    return f"The key {key.id} of {key.client} is {key.state.value} now."


def _with_cut(done: str, streams: int, *, asked: bool) -> str:
    """Return what was done as a sentence, with the number of streams cut if that was asked for."""
    return f"{done}; {plural(streams, 'stream')} cut." if asked else f"{done}."


def _is_late(error: AdminClientError) -> bool:
    """Return whether another operator was faster."""
    return isinstance(error, Refused) and error.status == HTTPStatus.PRECONDITION_FAILED


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
