"""The rows that are no relays, by name: each measures, and says its figures as a Markdown table."""

from __future__ import annotations

from collections.abc import Callable

from benchmark import rows_db, rows_scale, rows_tui

ROWS: dict[str, Callable[[], str]] = {
    "db": rows_db.measure,
    "scale": rows_scale.measure,
    "tui": rows_tui.measure,
}
