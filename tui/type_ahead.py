"""Keys in the order they were typed, each on what the one before it opened.

Textual hands a key to the widget that has the focus at that moment, before the key typed just before
it has done its work. `/` and `x` typed at once would then filter and cancel; `!` and four characters
would type into the list. Here a key that opens something holds the next ones back until that is there.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING

from textual import events
from textual.widgets import Input
from textual.worker import Worker

if TYPE_CHECKING:
    from textual.app import App

MAX_HELD = 64
ASKS = "asks"
"""How the groups of workers begin that open a dialog first of all: the next keys wait for it."""
_LOOK_EVERY_S = 0.005
_GIVE_UP_S = 5.0


class TypeAhead:
    """The keys of one app.

    Args:
        app: what the keys are for.
        forward: Textual's own way of a key: to the widget that has the focus.
    """

    def __init__(self, app: App[int], forward: Callable[[events.Key], Awaitable[None]]) -> None:
        self._app = app
        self._forward = forward
        self._held: deque[events.Key] = deque()
        self._opening: asyncio.Task[None] | None = None
        self._next: events.Key | None = None
        """The key whose turn it is when the field has taken in what was typed before it."""

    @property
    def idle(self) -> bool:
        """Whether every key has been acted on."""
        return self._opening is None and not self._held

    async def take(self, event: events.Key) -> None:
        """Act on a key, or keep it until its turn; beyond `MAX_HELD` it is lost."""
        if self.idle:
            await self._act(event)
        elif len(self._held) < MAX_HELD:
            self._held.append(event)

    async def _act(self, event: events.Key) -> None:
        app, field = self._app, self._app.focused
        if app.screen.is_modal or (isinstance(field, Input) and event.is_printable):
            await self._forward(event)
        elif isinstance(field, Input) and event is not self._next:
            # Enter and the like come after what was typed: the field takes that in at its own pace.
            self._next = event
            self._held.appendleft(event)
            self._wait_for(self._taken_in(field))
        else:
            self._next = None
            await self._bound(event)

    async def _bound(self, event: events.Key) -> None:
        """What the key is bound to, at once: the action is done when this returns."""
        app = self._app
        known = set(app.workers)
        # Not through the queues of the widgets between.
        if not await app._check_bindings(event.key, priority=True):  # noqa: SLF001 - Textual is pinned, and offers no other way
            await app._check_bindings(event.key)  # noqa: SLF001 - as above
        flows = [worker for worker in set(app.workers) - known if worker.group.startswith(ASKS)]
        if flows or app.screen.is_modal:
            self._wait_for(self._opened(flows))

    def _wait_for(self, what: Coroutine[object, object, None]) -> None:
        self._opening = asyncio.create_task(what, name="tui-opening")
        self._opening.add_done_callback(self._let_go)

    async def _taken_in(self, field: Input) -> None:
        """Until a field has acted on all keys that it was given."""
        done = asyncio.Event()
        field.call_later(done.set)
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), _GIVE_UP_S)

    async def _opened(self, flows: list[Worker[object]]) -> None:
        """Until a dialog has the focus, or the flows ended without one."""
        app, end_s = self._app, time.monotonic() + _GIVE_UP_S
        while app.screen_stack and time.monotonic() < end_s:
            if app.screen.is_modal and app.screen.focused is not None:
                return
            if not app.screen.is_modal and all(flow.is_finished for flow in flows):
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    def _let_go(self, task: asyncio.Task[None]) -> None:
        self._opening = None
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._app._handle_exception(error)  # noqa: SLF001 - as Textual does with what its own tasks meet
        elif not task.cancelled() and self._held:
            self._app.call_later(self._act_on_held)

    async def _act_on_held(self) -> None:
        while self._held and self._opening is None:
            await self._act(self._held.popleft())

    async def close(self) -> None:
        """Wait for nothing any more."""
        self._held.clear()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
