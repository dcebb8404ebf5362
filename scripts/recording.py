"""Record a rotation in `relayd-tui --demo` in a tmux: docs/img/tui.svg, and docs/img/tui.cast for asciinema.

The SVG needs no script. Each of its frames is a column of rows, each different row is drawn once, and a style
sheet moves one frame after the other into view. Waits for the daemon are left out of both.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path

from rich.ansi import AnsiDecoder
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI

_TOP = Path(__file__).resolve().parents[1]
_COLUMNS, _ROWS = 96, 26
_LIVELY_AFTER_S = 15.0
_FRAME_S = 1.0
_WITHIN_S = 60.0
# Keys; what the screen then shows; for how many frames it is looked at.
_SCENES = (
    ((), "● LIVE", 3),
    (("4",), "support-bot", 2),
    (("Down", "Down", "Up"), "▶support-bot", 1),
    (("r",), "Rotate the key of support-bot?", 3),
    (("y",), "•" * 12, 2),
    (("s",), "Saved to", 2),
    (("Escape",), "Not used yet.", 2),
    ((), "First used at", 3),
    (("1",), "FOLLOW", 2),
)
_CELL_WIDTH, _CELL_HEIGHT, _BASELINE = 8, 17, 13
_FONT = "13.3px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace"
_PAGE = "#0f1419"  # the app's own background


@contextmanager
def _tmux(home: str) -> Iterator[list[str]]:
    """Run the app in a tmux of its own; yield how to talk to it."""
    (Path(home) / "tmux.conf").write_text("set -g status off\nset -s escape-time 0\n")
    env = {"PATH": os.environ["PATH"], "HOME": home, "TZ": "UTC", "LANG": "C.UTF-8", "COLORTERM": "truecolor"}
    tmux = ["env", "-i", *(f"{name}={value}" for name, value in env.items()), "TERM=xterm-256color"]
    tmux += ["tmux", "-u", "-S", f"{home}/socket"]
    app = shlex.join([sys.executable, "-m", "tui", "--demo"])
    size = ["-x", str(_COLUMNS), "-y", str(_ROWS)]
    subprocess.run(
        [*tmux, "-f", f"{home}/tmux.conf", "new-session", "-d", *size, "-c", str(_TOP), app], check=True
    )
    try:
        yield tmux
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)


def _record(tmux: Sequence[str]) -> Iterator[list[str]]:
    """Press the keys and yield the frames, each the rows of the screen."""
    time.sleep(_LIVELY_AFTER_S)
    for keys, text, frames in _SCENES:
        for key in keys:
            subprocess.run([*tmux, "send-keys", key], check=True)
        end_s = time.monotonic() + _WITHIN_S
        while not any(text in row for row in _rows(tmux)):
            if time.monotonic() > end_s:
                sys.exit(f"The screen does not show {text!r}:\n" + "\n".join(_rows(tmux)))
            time.sleep(0.05)
        for _ in range(frames):
            yield _rows(tmux, "-e")
            time.sleep(_FRAME_S)


def _rows(tmux: Sequence[str], *options: str) -> list[str]:
    capture = [*tmux, "capture-pane", *options, "-p"]
    shown = subprocess.run(capture, check=True, capture_output=True, text=True).stdout
    return shown.split("\n")[:_ROWS]


def _cast(frames: Sequence[Sequence[str]]) -> str:
    """Return the frames as an asciicast, version 2: at each moment the rows that are new."""
    title = "Rotating a client's key in relayd-tui"
    header = {
        "version": 2,
        "width": _COLUMNS,
        "height": _ROWS,
        "title": title,
        "env": {"TERM": "xterm-256color"},
    }
    lines, before = [json.dumps(header)], [""] * _ROWS
    for number, frame in enumerate(frames):
        changed = [
            f"\x1b[{y};1H\x1b[0m{row}\x1b[0m\x1b[K"
            for y, (row, old) in enumerate(zip(frame, before, strict=True), 1)
            if row != old or not number
        ]
        hidden = "" if number else "\x1b[?25l"
        if changed:
            lines.append(json.dumps([number * _FRAME_S, "o", hidden + "".join(changed)], ensure_ascii=False))
        before = list(frame)
    lines.append(json.dumps([len(frames) * _FRAME_S, "o", "\x1b[?25h"]))
    return "\n".join(lines) + "\n"


class _Drawing:
    """The different rows of all frames, and their colours."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self._classes: dict[str, str] = {}
        self._decoder = AnsiDecoder()
        self._console = Console(width=_COLUMNS, color_system="truecolor", legacy_windows=False)

    def row(self, text: str) -> int:
        """Return the number of a row."""
        boxes, words, column = list[tuple[str, int, int]](), "", 0
        for line in self._decoder.decode(text):
            line.end = ""
            for segment in line.render(self._console):
                style, columns = segment.style or Style(), segment.cell_length
                front, back = style.color or Color.default(), style.bgcolor or Color.default()
                if style.reverse:
                    front, back = back, front
                fill = back.get_truecolor(MONOKAI, foreground=style.reverse or False).hex
                if boxes and boxes[-1][0] == fill:
                    boxes[-1] = (fill, boxes[-1][1], boxes[-1][2] + columns)
                else:
                    boxes.append((fill, column, columns))
                css = f"fill:{front.get_truecolor(MONOKAI, foreground=not style.reverse).hex}"
                css += ";font-weight:bold" * bool(style.bold) + ";opacity:.6" * bool(style.dim)
                for word in re.finditer(r"\S+(?: \S+)*", segment.text):
                    x = (column + cell_len(segment.text[: word.start()])) * _CELL_WIDTH
                    words += (
                        f'<tspan class="{self._class(css)}" x="{x}">{escape(word[0], quote=False)}</tspan>'
                    )
                column += columns
        drawn = "".join(
            f'<rect class="{self._class(f"fill:{fill}")}" x="{start * _CELL_WIDTH}" '
            f'width="{columns * _CELL_WIDTH}" height="{_CELL_HEIGHT}"/>'
            for fill, start, columns in boxes
            if fill != _PAGE
        )
        drawn += f'<text y="{_BASELINE}">{words}</text>' if words else ""
        return self.rows.setdefault(drawn, len(self.rows))

    def _class(self, css: str) -> str:
        return self._classes.setdefault(css, f"c{len(self._classes)}")

    @property
    def css(self) -> str:
        """The colours."""
        return "".join(f".{name}{{{css}}}" for css, name in self._classes.items())


def _draw(frames: Sequence[Sequence[str]]) -> str:
    drawing, columns = _Drawing(), list[str]()
    numbers = [[drawing.row(row) for row in frame] for frame in frames]
    blank = drawing.rows.get("")
    width, height = _COLUMNS * _CELL_WIDTH, _ROWS * _CELL_HEIGHT
    for number, frame in enumerate(numbers):
        used = "".join(
            f'<use href="#r{row}" y="{y * _CELL_HEIGHT}"/>' for y, row in enumerate(frame) if row != blank
        )
        columns.append(f'<svg x="{number * width}">{used}</svg>')
    shown_s = len(frames) * _FRAME_S
    steps = "".join(
        f"{100 * number / len(frames):.3g}%{{transform:translateX({-number * width}px)}}"
        for number in range(len(frames))
    )
    rows = "".join(f'<g id="r{number}">{drawn}</g>' for drawn, number in drawing.rows.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -8 {width + 16} {height + 16}">'
        "<title>relayd-tui: rotating a client's key</title>"
        f"<style>text{{font:{_FONT};white-space:pre}}"
        f"#f{{animation:f {shown_s:g}s step-end infinite}}"
        "@media(prefers-reduced-motion){#f{animation:none}}"
        f"@keyframes f{{{steps}}}{drawing.css}</style>"
        f"<defs>{rows}</defs>"
        f'<rect x="-8" y="-8" width="{width + 16}" height="{height + 16}" rx="6" fill="{_PAGE}"/>'
        f'<svg width="{width}" height="{height}"><g id="f">{"".join(columns)}</g></svg></svg>\n'
    )


def main() -> None:
    """Record and draw."""
    with tempfile.TemporaryDirectory(prefix="relayd-recording-") as home, _tmux(home) as tmux:
        frames = list(_record(tmux))
    drawing = Path(sys.argv[1])
    drawing.write_text(_draw(frames))
    drawing.with_suffix(".cast").write_text(_cast(frames))


if __name__ == "__main__":
    main()
