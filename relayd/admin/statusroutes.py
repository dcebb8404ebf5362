"""`/status` for people and `/metrics` for Prometheus."""

from __future__ import annotations

from relayd.admin.base import AdminHandler
from relayd.admin.status import status_of


class StatusHandler(AdminHandler):
    """The daemon at a glance."""

    async def get(self) -> None:
        """All figures as they are now."""
        self.send_json(await status_of(self.parts))


class MetricsHandler(AdminHandler):
    """Prometheus' text format, version 0.0.4."""

    async def get(self) -> None:
        """All figures since the start."""
        parts = self.parts
        status = await status_of(parts)
        deltas, readers = parts.registry.deltas, len(parts.hub)

        def render() -> bytes:
            # Imported at the first scrape: many a daemon is never scraped, and it is not small.
            from relayd.admin.metrics import Totals, metrics_text  # noqa: PLC0415

            return metrics_text(status, Totals(parts.tally, deltas, readers))

        text = await parts.offload.run(render)
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(text)
