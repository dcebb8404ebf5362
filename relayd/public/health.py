"""`GET /healthz`, `GET /readyz` and the page at `/`."""

from __future__ import annotations

from http import HTTPStatus

from relayd.public.base import BaseHandler, PublicSide
from relayd.relay.intake import Intake

_PAGE = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>relayd</title>
<h1>relayd</h1>
<p>This is a relay for chat completions. It answers <code>POST /chat</code> with
<code>{"model": "&hellip;", "messages": [&hellip;]}</code> and an <code>Authorization</code> key,
as a stream of JSON lines, one for each piece of text as the model writes it.</p>
<p>Keys come from the person who runs this relay.</p>
"""


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


class RootHandler(BaseHandler):
    """A short page that says what this is."""

    def get(self) -> None:
        """Show it."""
        self.set_reply_headers("text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", "default-src 'none'")
        self.finish(_PAGE)


class NotFoundHandler(BaseHandler):
    """Every other path."""

    def prepare(self) -> None:
        """Answer before any method is looked for, except to a preflight."""
        if self.request.method != "OPTIONS":
            self.write_error(HTTPStatus.NOT_FOUND)
