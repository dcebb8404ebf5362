"""The public routes."""

from __future__ import annotations

from typing import Any

from tornado.web import Application

from relayd.public.base import PublicSide
from relayd.public.chat import ChatHandler, ChatService
from relayd.public.health import HealthHandler, NotFoundHandler, ReadyHandler, RootHandler
from relayd.relay.intake import Intake


def public_app(public: PublicSide, service: ChatService, intake: Intake) -> Application:
    """Everything that the internet may ask for; all other paths are 404 in JSON."""
    common: dict[str, Any] = {"public": public}
    return Application(
        [
            (r"/chat", ChatHandler, {**common, "service": service}),
            (r"/healthz", HealthHandler, common),
            (r"/readyz", ReadyHandler, {**common, "intake": intake}),
            (r"/", RootHandler, common),
        ],
        default_handler_class=NotFoundHandler,
        default_handler_args=common,
        # The ledger writes the one line of a request; Tornado's own access log would double it.
        log_function=lambda _handler: None,
        compress_response=False,
    )
