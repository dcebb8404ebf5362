"""The operator's changes: each is asked for once, and asked again only with the same key."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

from relayd.admin.client import AdminClientError, AnswerUnknown, NoDaemon
from relayd.admin.link import Link
from relayd.admin.schema import KeyChange, Status
from tui.model.app_state import AppState, Connection

T = TypeVar("T")
_TRIES = 8
_AGAIN_S = 0.5


class ReadOnly(AdminClientError):
    """The app was started with --readonly, or the daemon speaks another version."""


class DaemonCommands:
    """Changes the daemon. `unknown` is told when an answer never came and the question is repeated."""

    def __init__(
        self,
        link: Link,
        state: AppState,
        *,
        readonly: bool,
        unknown: Callable[[str], None],
        again_s: float = _AGAIN_S,
    ) -> None:
        self._link = link
        self._state = state
        self._readonly = readonly
        self._unknown = unknown
        self._again_s = again_s

    def refusal(self) -> str:
        """Why nothing can be changed now; empty when it can."""
        if self._readonly:
            return "read-only: the app was started with --readonly"
        if self._state.connection is Connection.LIVE:
            return ""
        return {
            Connection.DOWN: "the daemon is down",
            Connection.CONNECTING: "there is no connection to the daemon",
            Connection.DENIED: "this user may not use the admin socket",
            Connection.MISMATCH: "the daemon speaks another version",
        }[self._state.connection]

    async def rotate(self, key_id: str, grace_s: float) -> KeyChange:
        """A new key for the client of this one."""
        generation = self._state.ring.generation
        return await self._ask(
            lambda key: self._link.rotate_key(
                key_id, grace_s=grace_s, generation=generation, idempotency_key=key
            )
        )

    async def add(self, client: str) -> KeyChange:
        """A first key for a new client."""
        generation = self._state.ring.generation
        return await self._ask(
            lambda key: self._link.add_key(client, generation=generation, idempotency_key=key)
        )

    async def extend(self, key_id: str, by_s: float) -> KeyChange:
        """A longer grace."""
        generation = self._state.ring.generation
        return await self._ask(
            lambda key: self._link.extend_key(key_id, by_s=by_s, generation=generation, idempotency_key=key)
        )

    async def undo(self, key_id: str) -> KeyChange:
        """The old key active again, the new one revoked."""
        generation = self._state.ring.generation
        return await self._ask(
            lambda key: self._link.undo_key(key_id, generation=generation, idempotency_key=key)
        )

    async def revoke(self, key_id: str, *, cut: bool) -> KeyChange:
        """The end of a key, now."""
        generation = self._state.ring.generation
        return await self._ask(
            lambda key: self._link.revoke_key(key_id, cut=cut, generation=generation, idempotency_key=key)
        )

    async def cancel(self, request_id: str) -> None:
        """The end of one stream."""
        await self._ask(lambda _: self._link.cancel(request_id))

    async def pause(self) -> Status:
        """No new work."""
        return await self._ask(lambda _: self._link.pause())

    async def resume(self) -> Status:
        """New work again."""
        return await self._ask(lambda _: self._link.resume())

    async def drain(self) -> Status:
        """Let open streams finish, then stop."""
        return await self._ask(lambda _: self._link.drain())

    async def _ask(self, question: Callable[[str], Awaitable[T]]) -> T:
        refusal = self.refusal()
        if refusal:
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
            self._unknown("UNKNOWN: the answer never came. Asking again; it can't happen twice.")
            await asyncio.sleep(self._again_s * (attempt + 1))
        raise AnswerUnknown(
            "UNKNOWN: no answer came. It may have happened; look at Keys and Audit when the daemon is back."
        ) from unanswered
