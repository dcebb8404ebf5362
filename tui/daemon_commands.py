"""What the operator asks the daemon to change: each change happens once, however often it is asked for."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Protocol, TypeVar

from relayd.admin.client import AdminClient, AdminClientError, AnswerUnknown, Refused
from tui.model.app_state import AppState, Asking, Connection

T = TypeVar("T")
C_co = TypeVar("C_co", covariant=True)
_ACT_TRIES = 8
_RETRY_AFTER_S = 0.5
_RETRY_AT_MOST_S = 5.0
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

    A change is in `AppState.asking` from the moment it is sent until its outcome is known. Each method may
    raise `AdminClientError`: the daemon refused, or can't be asked.

    Args:
        client: the daemon.
        state: what the app knows.
        readonly: refuse every change.
        now_s: returns the time.
        changed: called when something begins or ends to wait for its answer; must return at once.
    """

    def __init__(
        self,
        client: AdminClient,
        state: AppState,
        *,
        readonly: bool,
        now_s: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.client = client
        self._state = state
        self._readonly = readonly
        self._now_s = now_s
        self._changed = changed

    def refusal(self) -> str:
        """Return why nothing can be changed now, or an empty text."""
        if self._readonly:
            return "read-only: the app was started with --readonly"
        return _REASONS.get(self._state.connection, "")

    async def change_ring(self, what: str, change: RingChange[T], generation: int) -> T:
        """Change keys or clients, unless the ring has moved on from the generation that was on the screen.

        Asks again until the outcome is known, also over restarts of the daemon: it happens at most once.
        """
        return await self._until_answered(
            what, lambda key: change(generation=generation, idempotency_key=key), itertools.count(1)
        )

    async def act(self, what: str, action: Callable[[], Awaitable[T]]) -> T:
        """Cancel, pause, resume, reload or drain: what may be asked for a few times without harm.

        Raises:
            AnswerUnknown: no answer came, however often it was asked for.
        """
        return await self._until_answered(what, lambda _: action(), range(1, _ACT_TRIES + 1))

    async def act_once(self, what: str, action: Callable[[str], Awaitable[T]]) -> T:
        """Do what takes an idempotency key, so that it may be asked for a few times.

        Raises:
            AnswerUnknown: no answer came, however often it was asked for.
        """
        return await self._until_answered(what, action, range(1, _ACT_TRIES + 1))

    async def _until_answered(
        self, what: str, question: Callable[[str], Awaitable[T]], tries: Iterable[int]
    ) -> T:
        """Ask until an answer comes, each time with the same idempotency key."""
        if refusal := self.refusal():
            raise ReadOnly(f"Nothing can be changed now: {refusal}.")
        idempotency_key = uuid.uuid4().hex
        asking = Asking(what, self._now_s())
        self._state.asking.append(asking)
        try:
            for attempt in tries:
                try:
                    return await question(idempotency_key)
                except Refused as refused:
                    # A daemon that can't answer now does not know either what became of the first question.
                    if not asking.lost or refused.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                        raise
                except AdminClientError as error:
                    # A first question that did not arrive changed nothing; after a lost answer it is unknown.
                    if attempt == 1 and not isinstance(error, AnswerUnknown):
                        raise
                asking.lost += 1
                self._changed()
                await asyncio.sleep(min(_RETRY_AT_MOST_S, _RETRY_AFTER_S * attempt))
        finally:
            self._state.asking.remove(asking)
            self._changed()
        raise AnswerUnknown(
            "UNKNOWN: no answer came. It may have happened; look at the daemon's state and Audit."
        )
