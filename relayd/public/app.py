"""The public routes."""

from __future__ import annotations

from relayd.public.chat import ChatHandler
from relayd.public.context import AppContext
from relayd.public.handlers import PublicApp
from relayd.public.health import HealthHandler, NotFoundHandler, ReadyHandler
from relayd.public.page import PageHandler, page_pattern
from relayd.public.usage import OwnUsageHandler
from relayd.public.v1 import V1Handler


def make_app(context: AppContext) -> PublicApp:
    """Return Tornado's application; every path that is not listed here is 404 in JSON."""
    app = PublicApp(
        [
            (r"/chat", ChatHandler),
            (r"/v1/usage", OwnUsageHandler),
            (r"/v1(?:/.*)?", V1Handler),
            (r"/healthz", HealthHandler),
            (r"/readyz", ReadyHandler),
            (page_pattern(context.page), PageHandler),
        ],
        default_handler_class=NotFoundHandler,
        # Requests have records; Tornado's own access log would only tell of probes.
        log_function=lambda _handler: None,
    )
    app.context = context
    return app
