"""What the operator does to the running daemon: cancel, pause, resume, drain; all audited."""

from __future__ import annotations

import logging

from tornado.iostream import StreamClosedError

from relayd.admin.base import AdminHandler
from relayd.admin.errors import AdminError
from relayd.admin.status import status_of
from relayd.relay.accepting import AcceptState
from relayd.state.errors import StateError
from relayd.state.records import Peer

_log = logging.getLogger(__name__)

_DONE = "done"


class _ControlHandler(AdminHandler):
    async def audit(self, action: str, result: str, peer: Peer, detail: str | None = None) -> None:
        """Write down what was done. A full disk must not keep the operator from acting."""
        try:
            await self.parts.state.audit(action, result, peer=peer, detail=detail)
        except StateError as error:
            _log.error(
                "%s by %s (uid %d, pid %d): %s; the audit could not store it: %s",
                *(action, peer.login, peer.uid, peer.pid, result, error),
            )

    async def refuse_while_draining(self, action: str, peer: Peer) -> None:
        if self.parts.intake.state is AcceptState.DRAINING:
            await self.audit(action, "draining", peer)
            raise AdminError(409, "draining", f"The daemon is stopping; it is too late to {action}.")


class CancelHandler(_ControlHandler):
    """`/inflight/{id}`."""

    async def delete(self, request_id: str) -> None:
        """End one open stream."""
        peer = await self.peer()
        if not self.parts.registry.cancel(request_id):
            await self.audit("cancel", "not_found", peer, request_id[:40])
            raise AdminError.not_found(f"No open stream has the id {request_id[:40]!r}; it may have ended.")
        await self.audit("cancel", _DONE, peer, request_id)
        self.send_json({"id": request_id, "cancelled": True})


class PauseHandler(_ControlHandler):
    """`/pause`."""

    async def post(self) -> None:
        """Take no new work."""
        peer = await self.peer()
        await self.refuse_while_draining("pause", peer)
        self.parts.intake.pause()
        await self.audit("pause", _DONE, peer)
        self.send_json(await status_of(self.parts))


class ResumeHandler(_ControlHandler):
    """`/resume`."""

    async def post(self) -> None:
        """Take new work again."""
        peer = await self.peer()
        await self.refuse_while_draining("resume", peer)
        self.parts.intake.resume()
        await self.audit("resume", _DONE, peer)
        self.send_json(await status_of(self.parts))


class DrainHandler(_ControlHandler):
    """`/drain`."""

    async def post(self) -> None:
        """Answer, then begin to stop as on SIGTERM; asked again, only answer."""
        peer = await self.peer()
        first = self.parts.intake.state is not AcceptState.DRAINING
        self.parts.intake.drain()
        try:
            await self.audit("drain", _DONE, peer)
            await self.send_json(await status_of(self.parts))
        except StreamClosedError:
            _log.info("who asked for the drain left before the answer")
        finally:
            # Whatever became of the answer: intake is closed already, so the daemon must end.
            if first:
                self.parts.stop()
