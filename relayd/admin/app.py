"""The admin routes."""

from __future__ import annotations

from typing import Any

from tornado.web import Application

from relayd.admin.base import NotFoundHandler
from relayd.admin.context import AdminContext
from relayd.admin.controlroutes import CancelHandler, DrainHandler, PauseHandler, ResumeHandler
from relayd.admin.eventsroute import EventsHandler
from relayd.admin.keyroutes import ExtendHandler, KeysHandler, RevokeHandler, RotateHandler, UndoHandler
from relayd.admin.logroutes import AuditHandler, RequestHandler, RequestsHandler
from relayd.admin.statusroutes import MetricsHandler, StatusHandler

_ID = r"([^/]{1,200})"


def admin_app(parts: AdminContext, *, event_write_timeout_s: float) -> Application:
    """Everything that the operator's programs may ask for.

    Args:
        parts: the daemon.
        event_write_timeout_s: how long a reader of events may stand still.
    """
    common: dict[str, Any] = {"parts": parts}
    return Application(
        [
            (r"/status", StatusHandler, common),
            (r"/metrics", MetricsHandler, common),
            (r"/requests", RequestsHandler, common),
            (rf"/requests/{_ID}", RequestHandler, common),
            (rf"/inflight/{_ID}", CancelHandler, common),
            (r"/events", EventsHandler, {**common, "write_timeout_s": event_write_timeout_s}),
            (r"/keys", KeysHandler, common),
            (rf"/keys/{_ID}/rotate", RotateHandler, common),
            (rf"/keys/{_ID}/extend", ExtendHandler, common),
            (rf"/keys/{_ID}/undo", UndoHandler, common),
            (rf"/keys/{_ID}/revoke", RevokeHandler, common),
            (r"/audit", AuditHandler, common),
            (r"/pause", PauseHandler, common),
            (r"/resume", ResumeHandler, common),
            (r"/drain", DrainHandler, common),
        ],
        default_handler_class=NotFoundHandler,
        default_handler_args=common,
        # What changes something is in the audit; the rest is of no interest.
        log_function=lambda _handler: None,
    )
