"""`GET /healthz` and `GET /readyz`, and every path where nothing is."""

from __future__ import annotations

from http import HTTPStatus

from relayd.public.base import BaseHandler
from relayd.public.exchange import PublicSide
from relayd.relay.intake import Intake


class HealthHandler(BaseHandler):
    """200 while the process serves at all."""

    def get(self) -> None:
        """Say so."""
        self.send_json({"status": "ok"})


class ReadyHandler(BaseHandler):
    """200 while new work is taken, for load balancers and deploy scripts."""

    _intake: Intake

    def initialize(self, public: PublicSide, intake: Intake | None = None) -> None:
        """Take the switch beside the common part."""
        super().initialize(public)
        assert intake is not None  # noqa: S101 - only optional to fit the base class's signature
        self._intake = intake

    def get(self) -> None:
        """Say whether, and why not."""
        refusal = self._intake.refusal()
        if refusal is None:
            self.send_json({"status": "ready"})
        else:
            self.send_json(
                {"status": self._intake.state, "reason": refusal.sentence}, HTTPStatus.SERVICE_UNAVAILABLE
            )


class NotFoundHandler(BaseHandler):
    """Every other path."""

    def prepare(self) -> None:
        """Answer before any method is looked for, except to a preflight."""
        if self.request.method != "OPTIONS":
            self.write_error(HTTPStatus.NOT_FOUND)
