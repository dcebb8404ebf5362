"""One request as one line for people."""

from __future__ import annotations

from relayd.admin.schema import RequestRecord
from relayd.commands.words import millis

_COLUMNS = (24, 3, 14, 12, 18, 8, 8, 6, 15, 16)
_NAMES = ("TIME (UTC)", "ST", "OUTCOME", "CLIENT", "MODEL", "FIRST", "TOTAL", "DELTAS", "FROM", "ID")


def _laid_out(cells: tuple[str, ...], rest: str = "") -> str:
    shown = [cell.ljust(width) for cell, width in zip(cells, _COLUMNS, strict=True)]
    return " ".join([*shown, rest]).rstrip()


HEADER = _laid_out(_NAMES)


def line_of(record: RequestRecord) -> str:
    """Its time, how it ended and how long it took, who asked for what, and its error if it had one."""
    error = "" if record.error is None else f"{record.error.code}: {record.error.message}"
    cells = (
        record.started_at,
        "-" if record.status is None else str(record.status),
        "running" if record.outcome is None else record.outcome.value,
        _cut(record.client or "-", 12),
        _cut(record.model or "-", 18),
        millis(record.first_token_ms),
        millis(record.duration_ms),
        str(record.deltas),
        record.ip,
        record.id,
    )
    return _laid_out(cells, error)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
