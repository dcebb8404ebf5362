"""The admin side's life, in the order it is lived: built, started, ticking, closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from relayd.admin.accept import BoundedServer
from relayd.admin.app import admin_app
from relayd.admin.context import AdminContext, DaemonFacts, Limits
from relayd.admin.events import EventBus
from relayd.admin.eventsroute import WRITE_TIMEOUT_S
from relayd.admin.offload import Offload
from relayd.admin.peer import PeerBook
from relayd.admin.progress import progress_of
from relayd.admin.tally import Tally
from relayd.admin.unix_socket import AdminSocket
from relayd.relay.accepting import Accepting
from relayd.relay.active_streams import ActiveStreams
from relayd.state.state import State

_READ_THREADS = 4
_TICK_S = 1.0


class AdminServer:
    """Everything behind the admin socket, on the running loop.

    Args:
        admin_socket: the listening socket; its owner closes it.
        event_bus: the one that the state tells of its commits.
        tally: the one that the ledger tells of its requests.
        facts: what does not change.
        limits: what may change.
        state: open.
        registry: the open streams.
        intake: the switch.
        stop: begins to drain.
        event_write_timeout_s: how long a reader of events may stand still.
    """

    def __init__(  # noqa: PLR0913 - the one place where all of the daemon meets
        self,
        admin_socket: AdminSocket,
        *,
        event_bus: EventBus,
        tally: Tally,
        facts: DaemonFacts,
        limits: Callable[[], Limits],
        state: State,
        registry: ActiveStreams,
        intake: Accepting,
        stop: Callable[[], None],
        event_write_timeout_s: float = WRITE_TIMEOUT_S,
    ) -> None:
        quick = Offload("admin-quick", 1)
        self._parts = AdminContext(
            facts=facts,
            limits=limits,
            state=state,
            registry=registry,
            intake=intake,
            tally=tally,
            hub=event_bus,
            offload=Offload("admin-read", _READ_THREADS),
            quick=quick,
            peers=PeerBook(quick),
            stop=stop,
        )
        self._server = BoundedServer(
            admin_app(self._parts, event_write_timeout_s=event_write_timeout_s), admin_socket.socket
        )
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Answer from now on.

        Raises:
            StateError: the log can't be read.
        """
        parts = self._parts
        parts.hub.listen(parts.tally.logged)
        parts.hub.catch_up(await parts.offload.run(parts.state.reader.newest_seq))
        self._ticking = asyncio.create_task(self._tick(), name="admin tick")
        self._server.start_accepting()

    async def _tick(self) -> None:
        """Once a second: close a second of the figures, and tell where the open streams are."""
        parts, loop = self._parts, asyncio.get_running_loop()
        were_open = False
        due_s = loop.time()
        while True:
            due_s = max(due_s + _TICK_S, loop.time())
            await asyncio.sleep(due_s - loop.time())
            parts.tally.tick(loop.time(), parts.registry.deltas)
            are_open = len(parts.registry) > 0
            if len(parts.hub) and (are_open or were_open):
                parts.hub.tell_progress(progress_of(parts.registry))
            were_open = are_open

    async def close(self) -> None:
        """End the readers of events, then every connection, then the threads."""
        parts = self._parts
        self._server.stop_accepting()
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        parts.hub.close()
        await self._server.close()
        await parts.offload.close()
        await parts.quick.close()
