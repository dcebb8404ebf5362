"""The public routes, and the handlers that relay nothing: health, readiness, and 404."""

from __future__ import annotations

from http import HTTPStatus

from tornado.web import HTTPError

from relayd.public.chat import ChatHandler
from relayd.public.context import AppContext
from relayd.public.handlers import BaseHandler, PublicApp
from relayd.public.page import PageHandler, page_pattern
from relayd.public.usage import OwnUsageHandler
from relayd.public.v1 import V1Handler


class HealthHandler(BaseHandler):
    """200 while the process serves at all."""

    def get(self) -> None:
        """Answer."""
        self.send_json({"status": "ok"})

    head = get


class ReadyHandler(BaseHandler):
    """200 while new requests are accepted, for load balancers and deploy scripts."""

    def get(self) -> None:
        """Answer, with the reason if requests are refused."""
        refusal = self.context.accepting.refusal
        if refusal is not None:
            self._refuse(self.context.accepting.state, refusal.message)
        elif self.context.keys.is_stale:
            self._refuse("no database", "The database could not be asked for too long to know valid keys.")
        else:
            self.send_json({"status": "ready"})

    def _refuse(self, status: str, reason: str) -> None:
        self.send_json({"status": status, "reason": reason}, HTTPStatus.SERVICE_UNAVAILABLE)

    head = get


class NotFoundHandler(BaseHandler):
    """Every other path."""

    def get(self) -> None:
        """Answer when the body has been read, as all methods but OPTIONS do."""
        raise HTTPError(HTTPStatus.NOT_FOUND)

    head = post = put = patch = delete = get


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
