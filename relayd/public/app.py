"""The public routes."""

from __future__ import annotations

from typing import Any

from tornado.web import Application

from relayd.public.base import PublicSide
from relayd.public.chat import ChatHandler, ChatService
from relayd.public.health import HealthHandler, NotFoundHandler, ReadyHandler
from relayd.public.root import Page, PageHandler, notice, page_pattern
from relayd.relay.intake import Intake


def public_app(
    public: PublicSide, service: ChatService, intake: Intake, page: Page | None = None
) -> Application:
    """Everything that the internet may ask for; all other paths are 404 in JSON.

    Args:
        public: what every handler needs.
        service: what `/chat` works with.
        intake: whether work is taken, for `/readyz`.
        page: the chat page's files; None shows a short notice instead.
    """
    page = page or notice()
    common: dict[str, Any] = {"public": public}
    return Application(
        [
            (r"/chat", ChatHandler, {**common, "service": service}),
            (r"/healthz", HealthHandler, common),
            (r"/readyz", ReadyHandler, {**common, "intake": intake}),
            (page_pattern(page), PageHandler, {**common, "page": page}),
        ],
        default_handler_class=NotFoundHandler,
        default_handler_args=common,
        # The ledger writes the one line of a request; Tornado's own access log would double it.
        log_function=lambda _handler: None,
        compress_response=False,
    )
