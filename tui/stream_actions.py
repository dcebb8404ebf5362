"""What an operator does to running work: cancel a stream, pause, resume, drain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relayd.admin.schema import Intake, RequestRecord
from tui.model.units import plural
from tui.screens.confirm import Confirm
from tui.type_ahead import ASKS

if TYPE_CHECKING:
    from tui.app import RelaydApp

_GROUP = f"{ASKS}-control"


class StreamActions:
    """Each method starts one flow and returns at once; one that can't run now says why."""

    def __init__(self, app: RelaydApp) -> None:
        self._app = app

    def cancel(self, record: RequestRecord) -> None:
        """Ask, then end one stream."""
        refusal = self._app.commands.refusal() or ("" if record.outcome is None else "this request has ended")
        if refusal:
            self._app.action_explain(refusal)
            return
        self._app.run_worker(self._cancel(record), exclusive=True, group=_GROUP)

    async def _cancel(self, record: RequestRecord) -> None:
        who = f"{record.client or 'no client'} at {record.ip}"
        question = Confirm(
            "Cancel this request?",
            f"{record.model or '—'} for {who}, {plural(record.deltas, 'delta')} so far.\n"
            "The client gets one line that says so; the provider is told to stop.",
            "Cancel the request",
            no="Leave it",
        )
        sure = await self._app.push_screen_wait(question)
        if sure and await self._app.attempt("Not cancelled", self._app.commands.cancel(record.id)):
            self._app.notify("The daemon cancelled the request.")

    def pause_or_resume(self) -> None:
        """Take no new work after a question, or take it again."""
        refusal = self._app.commands.refusal()
        if refusal:
            self._app.action_explain(refusal)
            return
        status = self._app.state.status
        live = status is None or status.intake is Intake.LIVE
        if live:
            self._app.run_worker(self._pause(), exclusive=True, group=_GROUP)
        else:
            self._app.run_worker(self._resume(), exclusive=True, group="resume")

    async def _pause(self) -> None:
        question = Confirm(
            "Pause intake?",
            "New requests get 503 with Retry-After until you resume. Open streams go on.",
            "Pause",
        )
        if await self._app.push_screen_wait(question) and await self._app.attempt(
            "Not paused", self._app.commands.pause()
        ):
            self._app.notify("Intake is paused; P resumes it.")
        self._app.feed.look_soon()

    async def _resume(self) -> None:
        if await self._app.attempt("Not resumed", self._app.commands.resume()):
            self._app.notify("The daemon takes new work again.")
        self._app.feed.look_soon()

    def drain(self) -> None:
        """Ask, with the count and an estimate, then let the daemon finish and stop."""
        refusal = self._app.commands.refusal()
        if refusal:
            self._app.action_explain(refusal)
            return
        self._app.run_worker(self._drain(), exclusive=True, group=_GROUP)

    async def _drain(self) -> None:
        state = self._app.state
        at_most = f"{state.status.drain_timeout_s:.0f} s" if state.status is not None else "the drain timeout"
        open_now = plural(len(state.open_streams.streams), "stream")
        question = Confirm(
            "Drain, then stop the daemon?",
            f"{open_now} open now. They may finish, for at most {at_most};"
            " what is left then ends with `draining`.\n"
            "After that the daemon stops. It does not come back unless a supervisor starts it.",
            "Drain and stop",
        )
        if await self._app.push_screen_wait(question) and await self._app.attempt(
            "Not drained", self._app.commands.drain()
        ):
            self._app.notify("Draining.")
            self._app.feed.look_soon()
