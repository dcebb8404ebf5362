"""What the operator asks the daemon to change: each change happens once, however often it is asked for."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

from relayd.admin.client import AdminClient, AdminClientError, AnswerUnknown, NoDaemon
from relayd.admin.schema import KeyChange, Status
from tui.model.app_state import AppState, Connection

T = TypeVar("T")
_TRIES = 8
_RETRY_AFTER_S = 0.5
_REASONS = {
    Connection.DOWN: "the daemon is down",
    Connection.CONNECTING: "there is no connection to the daemon",
    Connection.DENIED: "this user may not use the admin socket",
    Connection.MISMATCH: "the daemon speaks another version",
}


class ReadOnly(AdminClientError):
    """The app was started with --readonly, or the daemon can't be changed from here now."""


class _Change(Protocol):
    def __call__(self, *, generation: int, idempotency_key: str) -> Awaitable[KeyChange]: ...


class DaemonCommands:
    """Changes the daemon.

    Args:
        client: the daemon.
        state: what the app knows; a change of keys names the ring's generation that was on the screen.
        readonly: refuse every change.
        on_unknown: called with a sentence each time an answer was lost and the question is repeated.
    """

    def __init__(
        self, client: AdminClient, state: AppState, *, readonly: bool, on_unknown: Callable[[str], None]
    ) -> None:
        self._client = client
        self._state = state
        self._readonly = readonly
        self._on_unknown = on_unknown

    def refusal(self) -> str:
        """Return why nothing can be changed now, or an empty text."""
        if self._readonly:
            return "read-only: the app was started with --readonly"
        return _REASONS.get(self._state.connection, "")

    async def rotate(self, key_id: str, grace_s: float) -> KeyChange:
        """Make a new key for the client of this one, which retires after the grace."""
        return await self._change_keys(partial(self._client.rotate_key, key_id, grace_s=grace_s))

    async def add(self, client: str) -> KeyChange:
        """Make a first key for a new client."""
        return await self._change_keys(partial(self._client.add_key, client))

    async def extend(self, key_id: str, by_s: float) -> KeyChange:
        """Move the end of a retiring key later."""
        return await self._change_keys(partial(self._client.extend_key, key_id, by_s=by_s))

    async def undo(self, key_id: str) -> KeyChange:
        """Make the old key active again and revoke the new one."""
        return await self._change_keys(partial(self._client.undo_key, key_id))

    async def revoke(self, key_id: str, *, cut: bool) -> KeyChange:
        """End a key now; with `cut`, its open streams too."""
        return await self._change_keys(partial(self._client.revoke_key, key_id, cut=cut))

    async def cancel(self, request_id: str) -> None:
        """End one stream."""
        await self._ask(lambda _: self._client.cancel(request_id))

    async def pause(self) -> Status:
        """Take no new work."""
        return await self._ask(lambda _: self._client.pause())

    async def resume(self) -> Status:
        """Take new work again."""
        return await self._ask(lambda _: self._client.resume())

    async def drain(self) -> Status:
        """Let open streams finish, then stop the daemon."""
        return await self._ask(lambda _: self._client.drain())

    async def _change_keys(self, change: _Change) -> KeyChange:
        generation = self._state.ring.generation
        return await self._ask(lambda key: change(generation=generation, idempotency_key=key))

    async def _ask(self, question: Callable[[str], Awaitable[T]]) -> T:
        """Ask until an answer comes, each time with the same idempotency key.

        Raises:
            AdminClientError: the daemon refused, or can't be asked.
            AnswerUnknown: no answer came, however often it was asked for.
        """
        if refusal := self.refusal():
            raise ReadOnly(f"Not done: {refusal}.")
        idempotency_key = uuid.uuid4().hex
        for attempt in range(_TRIES):
            try:
                return await question(idempotency_key)
            except AnswerUnknown as error:
                unanswered: AdminClientError = error
            except NoDaemon as error:
                if attempt == 0:
                    raise
                unanswered = error
            self._on_unknown("UNKNOWN: the answer never came. Asking again; it can't happen twice.")
            await asyncio.sleep(_RETRY_AFTER_S * (attempt + 1))
        raise AnswerUnknown(
            "UNKNOWN: no answer came. It may have happened; look at Keys and Audit when the daemon is back."
        ) from unanswered
