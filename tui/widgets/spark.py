"""Small plots made of block and braille characters: they need no colour and few bytes."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int, top: float | None = None) -> str:
    """The newest `width` values as one line of blocks; None is a blank."""
    shown = list(values)[-width:]
    known = [value for value in shown if value is not None]
    high = top if top is not None else max(known, default=0.0)
    cells = []
    for value in shown:
        if value is None or high <= 0:
            cells.append(" " if value is None else _BLOCKS[1])
            continue
        level = 1 + round(min(1.0, value / high) * 7) if value > 0 else 1
        cells.append(_BLOCKS[level])
    return "".join(cells).rjust(width)


def columns(values: Sequence[float], height: int, top: float) -> list[str]:
    """Values as columns of blocks, `height` lines from the top down."""
    lines = []
    for level in range(height - 1, -1, -1):
        line = ""
        for value in values:
            filled = (value / top * height if top > 0 else 0) - level
            line += _BLOCKS[max(0, min(8, round(filled * 8)))]
        lines.append(line)
    if lines:
        lines[-1] = "".join(
            "▁" if value > 0 and cell == " " else cell for value, cell in zip(values, lines[-1], strict=True)
        )
    return lines


def resampled(values: Sequence[float], width: int) -> list[float]:
    """The values stretched or summed into `width` places."""
    count = len(values)
    if not count or width <= 0:
        return []
    if count <= width:
        return [values[place * count // width] for place in range(width)]
    return [sum(values[place * count // width : (place + 1) * count // width]) for place in range(width)]


def nice_top(value: float) -> float:
    """The next round number at or above: 1, 1.5, 2, 3, 4, 5, 6, 8, 10 and so on."""
    if value <= 0:
        return 1.0
    power = 1.0
    while power > value:
        power /= 10
    while power * 10 <= value:
        power *= 10
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value - 1e-9)
