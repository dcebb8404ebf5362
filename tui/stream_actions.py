"""What an operator does to running work: cancel a stream, pause, resume, drain."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from textual.app import App

from relayd.admin.client import AdminClientError
from relayd.admin.schema import AcceptState, InstanceInfo, RequestRecord, Status
from relayd.printable import plural
from tui.daemon_commands import DaemonCommands
from tui.feed import Feed
from tui.model.app_state import AppState
from tui.model.instances import stopping_with
from tui.screens.dialogs import Confirm, ask
from tui.type_ahead import ASKS, Work


class StreamActions:
    """Each method starts one action and returns at once; an action that can't run now says why.

    Args:
        app: shows dialogs and notifications.
        state: what the app knows.
        commands: change the daemon.
        feed: asks for the daemon's status after a change.
    """

    def __init__(self, app: App[int], state: AppState, commands: DaemonCommands, feed: Feed) -> None:
        self._app = app
        self._state = state
        self._commands = commands
        self._client = commands.client
        self._feed = feed

    def cancel(self, record: RequestRecord) -> None:
        """Ask, then end one stream."""
        if self._may_change("" if record.outcome is None else "this request has ended"):
            self._start(partial(self._cancel, record))

    def pause_or_resume(self) -> None:
        """Take no new work after a question, or take it again."""
        if not self._may_change():
            return
        status = self._state.status
        if status is None or status.intake is AcceptState.OPEN:
            self._start(self._pause)
        else:
            self._start(self._resume, group="resume")

    def drain(self, instance: InstanceInfo | None = None) -> None:
        """Ask, with the count and an estimate, then let one instance, or all, finish and stop."""
        if self._may_change():
            self._start(partial(self._drain, instance))

    def _may_change(self, reason: str = "") -> bool:
        reason = self._commands.refusal() or reason
        if reason:
            self._app.notify(f"Not now: {reason}.")
        return not reason

    def _start(self, action: Work, group: str = f"{ASKS}-streams") -> None:
        self._app.run_worker(action, group=group)

    async def _cancel(self, record: RequestRecord) -> None:
        user = f"{record.client or 'no client'} at {record.ip}"
        question = Confirm(
            "Cancel this request?",
            f"{record.model or '—'} for {user}, {plural(record.deltas, 'token')} so far.\n"
            "The client gets an error line, and the provider's stream is closed.",
            "Cancel the request",
            no="Leave it",
        )
        if await ask(self._app, question):
            cancelling = partial(self._client.cancel, record.id)
            await self._change("Cancel a request", cancelling, "The daemon cancelled the request.")

    async def _pause(self) -> None:
        question = Confirm(
            "Pause intake?",
            "New requests get 503 with Retry-After until you resume. Open streams continue.",
            "Pause",
        )
        if await ask(self._app, question):
            await self._change("Pause intake", self._client.pause, "Intake is paused; P resumes it.")

    async def _resume(self) -> None:
        await self._change("Resume intake", self._client.resume, "The daemon takes new work again.")

    async def _drain(self, instance: InstanceInfo | None) -> None:
        status = self._state.status
        at_most = f"{status.drain_timeout_s:.0f} s" if status is not None else "the drain timeout"
        streams, what = len(self._state.open_streams.streams), "the daemon"
        if self._state.is_shared and status is not None:
            what = f"all {status.instances.live} instances"
        if instance is not None:
            known = [] if self._state.instances is None else self._state.instances.instances
            what, streams = stopping_with(instance, known)
        question = Confirm(
            f"Drain, then stop {what}?",
            f"{plural(streams, 'stream')} open now. They may finish, for at most {at_most};"
            " what is left then ends with `draining`.\n"
            f"After that, {what} will not serve until something starts it again.",
            "Drain and stop",
        )
        if await ask(self._app, question):
            # By its boot id: one that was restarted meanwhile has the same name, and goes on.
            boot_id = None if instance is None else instance.boot_id
            await self._change(f"Drain {what}", partial(self._client.drain, boot_id), "Draining.")

    async def _change(self, what: str, change: Callable[[], Awaitable[object]], success: str) -> None:
        try:
            answer = await self._commands.act(what, change)
        except AdminClientError as error:
            self._app.notify(f"{what}: not done. {error}", severity="error")
        else:
            silent = answer.silent if isinstance(answer, Status) else ()
            if silent:
                self._app.notify(
                    f"{what}: no answer yet from {', '.join(silent)}; there it may happen later.",
                    severity="warning",
                )
            else:
                self._app.notify(success)
        self._feed.look_soon()
