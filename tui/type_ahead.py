"""Keys in the order they were typed, each acting on what the one before it opened.

Textual hands a key to the widget that has the focus at that moment, before the key typed just before
it has done its work. `/` and `x` typed at once would then filter and cancel; `!` and four characters
would type into the list. Here a key that opens something holds the next ones back until that is there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial

from textual import events
from textual.app import App
from textual.command import CommandPalette
from textual.dom import DOMNode
from textual.message_pump import MessagePump
from textual.widgets import Input
from textual.worker import Worker, WorkerCancelled, WorkerFailed

Work = Callable[[], Coroutine[object, object, None]]
"""What a worker runs."""
MAX_HELD = 1024
"""A terminal without bracketed paste types a pasted key: all of it must wait for the field."""
_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)))
ASKS = "asks"
"""How the groups of workers begin that open a dialog first of all: the next keys wait for it."""
LEADS = f"{ASKS}-leads"
"""The group of workers that lead to another screen: after their dialogs the next keys wait for that too."""
_LOOK_EVERY_S = 0.005
_GIVE_UP_S = 5.0


class TypeAhead:
    """The keys of one app.

    Args:
        app: what the keys are for.
        forward: Textual's own way of a key: to the widget that has the focus.
    """

    def __init__(
        self, app: App[int], forward: Callable[[events.Key | events.Paste], Awaitable[None]]
    ) -> None:
        self._app = app
        self._forward = forward
        self._held: deque[events.Key | events.Paste] = deque()
        self._waiting = False
        self._next: events.Key | None = None
        """The key to act on once the field has taken in what was typed before it."""

    @property
    def idle(self) -> bool:
        """Whether every key has been acted on."""
        return not self._waiting and not self._held

    async def take(self, event: events.Key | events.Paste) -> None:
        """Act on a key or a paste, or keep it until its turn; beyond `MAX_HELD` it is lost."""
        if isinstance(event, events.Paste):
            # A field has one line, and would else take the first one alone.
            event.text = " ".join(event.text.replace("\t", " ").splitlines()).translate(_CONTROLS).strip()
        if self.idle:
            await self._act(event)
        elif len(self._held) < MAX_HELD:
            self._held.append(event)

    async def _act(self, event: events.Key | events.Paste) -> None:
        field = self._app.focused
        if isinstance(event, events.Paste) or (isinstance(field, Input) and event.is_printable):
            await self._forward(event)
        elif isinstance(field, Input) and event is not self._next:
            # Enter and the like come after what was typed: the field takes that in at its own pace.
            self._next = event
            self._held.appendleft(event)
            self._wait_for(partial(self._taken_in, field))
        else:
            self._next = None
            await self._run_binding(event)

    async def _run_binding(self, event: events.Key) -> None:
        """Run the action of the key at once, not through the queues of the widgets between."""
        app = self._app
        bound = app.screen.active_bindings.get(event.key)
        known = frozenset(app.workers)
        if bound is None:
            # On its way through the queues it would else be overtaken, and act on what the next key opens.
            node: DOMNode = app.focused or app.screen
            await self._forward(event)
        else:
            node = bound.node
            if not await app.run_action(bound.binding.action, node) and bound.enabled:
                # A field that has nothing to scroll leaves the key to the dialog around it.
                await self._forward(event)
        if app.return_code is None:
            self._wait_for(partial(self._settled, node, known))

    def _wait_for(self, condition: Callable[[], Awaitable[None]]) -> None:
        self._waiting = True
        wait: Work = partial(self._wait_and_go_on, condition)
        self._app.run_worker(wait, name="type-ahead", group="type-ahead")

    async def _wait_and_go_on(self, condition: Callable[[], Awaitable[None]]) -> None:
        try:
            await condition()
        finally:
            self._waiting = False
        self._app.call_later(self._act_on_held)

    async def _taken_in(self, field: Input) -> None:
        """Wait until a field has acted on all keys that it was given; the palette, until it has searched."""
        palette = field.screen if isinstance(field.screen, CommandPalette) else None
        with suppress(TimeoutError, WorkerCancelled, WorkerFailed):
            async with asyncio.timeout(_GIVE_UP_S):
                # The news of what was typed rises through the widgets around the field.
                for node in [field] if palette is None else [field, *field.ancestors]:
                    done = asyncio.Event()
                    node.call_later(done.set)
                    await done.wait()
                    if node is palette:
                        break
                for worker in [worker for worker in self._app.workers if worker.node is palette]:
                    await worker.wait()

    async def _settled(self, node: DOMNode, known: frozenset[Worker[object]]) -> None:
        """Wait until an action of a node has led to where it leads; else the next keys are lost.

        Args:
            node: what the action belongs to.
            known: the workers that ran before it.
        """
        try:
            async with asyncio.timeout(_GIVE_UP_S):
                # What the action posted rises through the widgets around the node, and may be answered
                # with something else that rises from the same widget.
                for around in node.ancestors_with_self:
                    if around is self._app:
                        break
                    await _answered(around)
                    await _answered(around)
                while not self._is_there(known):  # noqa: ASYNC110 - Textual tells nobody
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            # They were typed for what did not come.
            self._held.clear()

    def _is_there(self, known: frozenset[Worker[object]]) -> bool:
        """Return whether a dialog has the focus, or nothing is on its way to open one or another screen."""
        app = self._app
        if app.screen_stack and app.screen.is_modal:
            return app.screen.focused is not None
        return not any(
            worker.group == LEADS or (worker.group.startswith(ASKS) and worker not in known)
            for worker in app.workers
            if not worker.is_finished
        )

    async def _act_on_held(self) -> None:
        while self._held and not self._waiting:
            await self._act(self._held.popleft())


async def _answered(node: MessagePump) -> None:
    """Wait until a node has acted on all messages that wait for it, or is gone."""
    done = asyncio.Event()
    if node.call_later(done.set):
        while node.is_attached and not done.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await done.wait()
