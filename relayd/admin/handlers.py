"""The routes of the admin API, their one base and their one renderer of errors."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Iterable
from http import HTTPStatus
from typing import Any, TypeVar, cast

import msgspec
from msgspec.structs import replace
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError

from relayd.admin.all_instances import AllInstances
from relayd.admin.context import AdminContext
from relayd.admin.errors import AdminError, as_admin_error
from relayd.admin.schema import PROTOCOL, PROTOCOL_HEADER, VERSION_MISMATCH, Drain, ErrorDetail, ErrorReply
from relayd.admin.unix_socket import identify_peer
from relayd.json_handler import JsonHandler
from relayd.relay.accepting import AcceptState
from relayd.state.errors import StateError
from relayd.state.records import Peer

_log = logging.getLogger(__name__)

_WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")

T = TypeVar("T")


class AdminHandler(JsonHandler):
    """A route of the admin API. Methods raise; `write_error` is the one place that renders errors."""

    context: AdminContext
    all_instances: AllInstances
    query_names: frozenset[str] = frozenset()
    """The parameters that the query may have."""

    def initialize(self, context: AdminContext, all_instances: AllInstances) -> None:
        """Keep what the application passes on."""
        self.context = context
        self.all_instances = all_instances

    def set_default_headers(self) -> None:
        """Set the headers of every answer, errors included."""
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header(PROTOCOL_HEADER, PROTOCOL)

    def prepare(self) -> Awaitable[None] | None:
        """Refuse a request for another version of the protocol, or with parameters that mean nothing."""
        version = self.request.headers.get(PROTOCOL_HEADER, PROTOCOL)
        if version != PROTOCOL:
            raise AdminError(
                HTTPStatus.CONFLICT,
                VERSION_MISMATCH,
                f"This daemon speaks version {PROTOCOL} of the admin protocol, not {version[:20]}. Use the "
                "relayd command of the version that runs.",
            )
        unknown = sorted(set(self.request.query_arguments) - self.query_names)
        if unknown:
            raise AdminError.bad_request(
                f"This path has no parameter {unknown[0][:40]!r}; "
                f"it has: {', '.join(sorted(self.query_names)) or 'none'}."
            )
        return None

    def compute_etag(self) -> str | None:
        """Return None: only the key ring has an ETag."""
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Raise: no route reads its body piece by piece."""
        raise NotImplementedError

    @property
    def connection(self) -> HTTP1Connection:
        """The connection that the request came on."""
        return cast("HTTP1Connection", self.request.connection)

    async def peer(self) -> Peer:
        """Return the process that asks."""
        stream = self.connection.stream
        if stream.closed():
            raise AdminError.bad_request("The connection is closed.")
        return await asyncio.to_thread(identify_peer, stream.socket)

    def body(self, kind: type[T]) -> T:
        """Return the decoded body; an empty body has every default.

        Raises:
            AdminError: the body is not JSON, or not of this kind.
        """
        try:
            return msgspec.json.decode(self.request.body or b"{}", type=kind)
        except msgspec.MsgspecError as error:
            raise AdminError.bad_request(f"The body is not valid: {error}.") from error

    def idempotency_key(self) -> str:
        """Return the key under which this change is made once.

        Raises:
            AdminError: it is missing.
        """
        given = self.request.headers.get("Idempotency-Key")
        if not given:
            raise AdminError(
                HTTPStatus.BAD_REQUEST,
                "idempotency_key_required",
                "Send an Idempotency-Key with a new value, such as a UUID, so that it can be repeated.",
            )
        return given

    def number(self, name: str) -> int | None:
        """Return a whole number of the query; None if it is not given."""
        text = self.get_query_argument(name, None)
        if text is None:
            return None
        if not _WHOLE_NUMBER.fullmatch(text):
            raise AdminError.bad_request(f"{name} must be a whole number, not {text[:40]!r}.")
        return int(text)

    def flag(self, name: str) -> bool:
        """Return a parameter of the query that is `true` or `false`; False if it is not given."""
        text = self.get_query_argument(name, "false")
        if text not in {"true", "false"}:
            raise AdminError.bad_request(f"{name} must be true or false, not {text[:40]!r}.")
        return text == "true"

    def write_error(self, status_code: int, **details: Any) -> None:
        """Send the error that ended this request; the details of a bug stay in the daemon's log."""
        kind, error, _ = details.get("exc_info", (None, None, None))
        answer = as_admin_error(error)
        if answer is None:
            name = "" if kind is None else f" ({kind.__name__})"
            answer = AdminError(status_code, "internal", f"relayd failed{name}; its log has the details.")
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.allow_methods()
        self.send_json(ErrorReply(ErrorDetail(answer.code, str(answer))), answer.status)

    def is_refusal(self, error: BaseException) -> bool:
        """Return whether it has an answer of its own."""
        return as_admin_error(error) is not None

    def bug_place(self) -> str:
        """Return the method and the path."""
        return f"{self.request.method} {self.request.path} of the admin API"


def json_list(items: Iterable[msgspec.Struct]) -> msgspec.Raw:
    """Return the items as a JSON list, encoded one by one: in between, a thread can be interrupted."""
    return msgspec.Raw(b"[" + b",".join(map(msgspec.json.encode, items)) + b"]")


class NotFoundHandler(AdminHandler):
    """Every path that no other handler has."""

    def prepare(self) -> None:
        """Refuse before the method is looked at."""
        raise HTTPError(HTTPStatus.NOT_FOUND)


class StatusHandler(AdminHandler):
    """`GET /status`."""

    async def get(self) -> None:
        """Send the state of the daemon at a glance."""
        self.send_json(await self.all_instances.status())


class InstancesHandler(AdminHandler):
    """`GET /instances`."""

    def get(self) -> None:
        """Send the processes that serve this relay."""
        self.send_json(self.context.instances())


class AlertsHandler(AdminHandler):
    """`GET /alerts`."""

    async def get(self) -> None:
        """Send what is wrong now, and what was, as all instances see it."""
        alerts, _ = await self.all_instances.alerts()
        self.send_json(alerts)


class ConfigHandler(AdminHandler):
    """`GET /config`."""

    async def get(self) -> None:
        """Send the settings in force in this instance, with their sources, and its health."""
        self.send_json(await self.context.configuration())


class MetricsHandler(AdminHandler):
    """`GET /metrics`."""

    async def get(self) -> None:
        """Send the metrics of all instances in Prometheus' text format, version 0.0.4."""
        text = await self.all_instances.metrics()
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(text)


class ControlHandler(AdminHandler):
    """A command to the running daemon, which is audited."""

    async def audit(self, action: str, result: str, peer: Peer, detail: str | None = None) -> None:
        """Write down what was done. A full disk must not keep the operator from acting."""
        try:
            await self.context.state.audit.record(action, result, peer=peer, detail=detail)
        except StateError as error:
            _log.error(
                "%s by %s (uid %d, pid %d): %s; the audit could not store it: %s",
                *(action, peer.login, peer.uid, peer.pid, result, error),
            )


class InflightHandler(AdminHandler):
    """`GET /inflight`."""

    async def get(self) -> None:
        """Send where each open stream is, as the `progress` event of `/events` says it."""
        progress = await self.all_instances.progress()
        self.send_json({"at": progress.at, "streams": progress.streams})


class CancelHandler(ControlHandler):
    """`DELETE /inflight/{id}`."""

    async def delete(self, request_id: str) -> None:
        """End one open stream."""
        peer = await self.peer()
        if not await self.all_instances.cancel(request_id):
            await self.audit("cancel", "not_found", peer, request_id[:40])
            raise AdminError.not_found(f"No open stream has the id {request_id[:40]!r}; it may have ended.")
        await self.audit("cancel", "done", peer, request_id)
        self.send_json({"id": request_id, "cancelled": True})


class PauseHandler(ControlHandler):
    """`POST /pause` and `POST /resume`."""

    async def post(self, action: str) -> None:
        """Stop accepting new requests, or accept them again."""
        peer = await self.peer()
        try:
            silent = await self.all_instances.set_intake(action)
        except AdminError as refusal:
            await self.audit(action, refusal.code, peer)
            raise
        await self.audit(action, "done", peer)
        self.send_json(replace(await self.all_instances.status(), silent=silent))


class ReloadHandler(ControlHandler):
    """`POST /reload`."""

    async def post(self) -> None:
        """Read the configuration again and say what changed; if it cannot be used, nothing changes."""
        peer = await self.peer()
        report = await self.all_instances.reload()
        await self.audit("reload", "done" if report.error is None else "refused", peer)
        if report.error is not None:
            raise AdminError(
                HTTPStatus.UNPROCESSABLE_ENTITY, "bad_configuration", f"Nothing is changed. {report.error}"
            )
        self.send_json(report)


class DrainHandler(ControlHandler):
    """`POST /drain`."""

    async def post(self) -> None:
        """Answer, then begin to stop as on SIGTERM; a second drain is only answered."""
        name, peer, accepting = self.body(Drain).instance, await self.peer(), self.context.accepting
        target = None if name is None else self.all_instances.find(name)
        is_first = (target is None or target.is_self) and accepting.state is not AcceptState.DRAINING
        if is_first:
            accepting.drain()
        try:
            with self.all_instances.answering():
                silent = await self.all_instances.drain_others(None if target is None else target.boot_id)
                await self.audit("drain", "done", peer, None if target is None else target.name)
                await self.send_json(replace(await self.all_instances.status(), silent=silent))
        except StreamClosedError:
            _log.info("The client that asked for the drain left before the answer.")
        finally:
            # Whatever became of the answer: nothing is accepted any more, so the daemon must end.
            if is_first:
                self.context.stop()
