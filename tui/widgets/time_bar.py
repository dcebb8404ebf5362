"""A request's time as a bar: its length says how long, its parts say on what.

The length grows with the logarithm of the duration, so that 0.3 s and 90 s can stand in one list;
the parts share that length in proportion. Every part has its own glyph: the bar reads without colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.style import Style

from relayd.admin.schema import Outcome, RequestRecord
from tui.model.descriptions import time_parts
from tui.theme import Role
from tui.widgets.cells import Piece

GLYPHS = {"connect": "·", "first token": "░", "stream": "▓", "client": "▒"}
ROLES = {
    "connect": Role.DIM,
    "first token": Role.WAIT,
    "stream": Role.STREAM,
    "client": Role.CLIENT,
}
_SHORTEST_MS = 50.0
_LONGEST_MS = 120_000.0
_ENDS = {
    Outcome.COMPLETED: "",
    Outcome.CLIENT_CLOSED: "⊣",
}


def length(ms: float, width: int) -> int:
    """Return how many of `width` cells a duration takes: one under 50 ms, all from 2 minutes."""
    if ms <= _SHORTEST_MS:
        return 1
    part = math.log(ms / _SHORTEST_MS) / math.log(_LONGEST_MS / _SHORTEST_MS)
    return max(1, min(width, round(part * width)))


def shares(parts: list[int], cells: int) -> list[int]:
    """Share `cells` in proportion; the largest remainders get what rounding leaves over."""
    total = sum(parts)
    if not total:
        return [0] * len(parts)
    exact = [part * cells / total for part in parts]
    given = [int(part) for part in exact]
    order = sorted(range(len(parts)), key=lambda i: given[i] - exact[i])
    for i in order[: cells - sum(given)]:
        given[i] += 1
    return given


def time_bar(
    record: RequestRecord, age_ms: float | None, width: int, look: Callable[[Role], Style]
) -> list[Piece]:
    """Return the bar in at most `width` cells, its last cell for how it ended or that it runs."""
    parts = time_parts(record, age_ms)
    total = sum(part.ms for part in parts)
    if record.outcome is None:
        end, end_role = "▸", Role.RUN
    else:
        end = _ENDS.get(record.outcome, "✗")
        end_role = Role.DIM if end == "⊣" else Role.BAD
    cells = min(length(total, width), width - 1)
    if record.duration_ms is not None and record.outcome in {Outcome.DENIED, Outcome.REJECTED}:
        cells = 0
    pieces: list[Piece] = []
    for part, count in zip(parts, shares([part.ms for part in parts], cells), strict=True):
        pieces.append((GLYPHS[part.name] * count, look(ROLES[part.name])))
    pieces.append((end, look(end_role)))
    return pieces
