"""What the operator asks the daemon to change: each change happens once, however often it is asked for."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from relayd.admin.client import AdminClient, AdminClientError, AnswerUnknown, NoDaemon
from tui.model.app_state import AppState, Connection

T = TypeVar("T")
C_co = TypeVar("C_co", covariant=True)
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


class RingChange(Protocol[C_co]):
    """A change of keys or clients that names everything but these two."""

    def __call__(self, *, generation: int, idempotency_key: str) -> Awaitable[C_co]:
        """Ask for the change."""


class DaemonCommands:
    """Asks the daemon for changes, by the methods of its client.

    Each method may raise `AdminClientError`: the daemon refused, or can't be asked; `AnswerUnknown`: no
    answer came, however often it was asked for.

    Args:
        client: the daemon.
        state: what the app knows.
        readonly: refuse every change.
        on_unknown: called with a sentence each time an answer was lost and the question is repeated.
    """

    def __init__(
        self, client: AdminClient, state: AppState, *, readonly: bool, on_unknown: Callable[[str], None]
    ) -> None:
        self.client = client
        self._state = state
        self._readonly = readonly
        self._on_unknown = on_unknown

    def refusal(self) -> str:
        """Return why nothing can be changed now, or an empty text."""
        if self._readonly:
            return "read-only: the app was started with --readonly"
        return _REASONS.get(self._state.connection, "")

    async def change_ring(self, change: RingChange[T], generation: int) -> T:
        """Change keys or clients, unless the ring has moved on from the generation that was on the screen."""
        return await self._until_answered(lambda key: change(generation=generation, idempotency_key=key))

    async def act(self, action: Callable[[], Awaitable[object]]) -> None:
        """Cancel, pause, resume or drain: what may be asked for twice without harm."""
        await self._until_answered(lambda _: action())

    async def _until_answered(self, question: Callable[[str], Awaitable[T]]) -> T:
        """Ask until an answer comes, each time with the same idempotency key."""
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
            "UNKNOWN: no answer came. It may have happened; look at Clients and Audit later."
        ) from unanswered
