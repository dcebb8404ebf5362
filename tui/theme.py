"""The one place that decides colours. Every state is a word first; colour only repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from rich.style import Style
from textual.app import App
from textual.theme import Theme


class Role(StrEnum):
    """What a piece of text is, not how it looks."""

    TEXT = "text"
    DIM = "dim"
    STRONG = "strong"
    ACCENT = "accent"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"
    RUN = "run"
    WAIT = "wait"
    STREAM = "stream"
    CLIENT = "client"
    KEY = "key"
    CURSOR = "cursor"
    ALARM = "alarm"


_DARK = {
    "bg": "#0f1419",
    "surface": "#151b22",
    "panel": "#1b232c",
    "cursor": "#23384d",
    "fg": "#d3dae3",
    "dim": "#7f8b99",
    "line": "#2c3642",
    "blue": "#79b0ee",
    "green": "#86c98a",
    "yellow": "#e2c06b",
    "red": "#ee7f7c",
    "magenta": "#c894e0",
    "cyan": "#6cc3c7",
    "alarm_fg": "#14100a",
}
_LIGHT = {
    "bg": "#fbfaf7",
    "surface": "#f3f1ec",
    "panel": "#e9e6df",
    "cursor": "#d3e3f4",
    "fg": "#23282e",
    "dim": "#6b7178",
    "line": "#d2cec5",
    "blue": "#1f62ad",
    "green": "#2c7a39",
    "yellow": "#8a6100",
    "red": "#b3312d",
    "magenta": "#8440a3",
    "cyan": "#0f7378",
    "alarm_fg": "#ffffff",
}
_ANSI = {
    "bg": "default",
    "surface": "default",
    "panel": "default",
    "cursor": "default",
    "fg": "default",
    "dim": "bright_black",
    "line": "bright_black",
    "blue": "blue",
    "green": "green",
    "yellow": "yellow",
    "red": "red",
    "magenta": "magenta",
    "cyan": "cyan",
    "alarm_fg": "black",
}

DARK, LIGHT, ANSI = "relayd-dark", "relayd-light", "relayd-ansi"
_COLOURS: Mapping[str, Mapping[str, str]] = {DARK: _DARK, LIGHT: _LIGHT, ANSI: _ANSI}

# A colour of the theme, and whether the text is bold.
_LOOKS = {
    Role.TEXT: "fg",
    Role.DIM: "dim",
    Role.STRONG: "fg bold",
    Role.ACCENT: "blue",
    Role.GOOD: "green",
    Role.WARN: "yellow",
    Role.BAD: "red bold",
    Role.RUN: "cyan",
    Role.WAIT: "yellow",
    Role.STREAM: "blue",
    Role.CLIENT: "magenta",
    Role.KEY: "blue bold",
}


def _styles(name: str) -> dict[Role, Style]:
    colours = _COLOURS[name]
    styles = {}
    for role, look in _LOOKS.items():
        colour, _, bold = look.partition(" ")
        styles[role] = Style(color=colours[colour], bold=bool(bold))
    if name == ANSI:
        styles[Role.CURSOR] = Style(reverse=True)
        styles[Role.ALARM] = Style(bold=True, reverse=True)
    else:
        styles[Role.CURSOR] = Style(bgcolor=colours["cursor"])
        styles[Role.ALARM] = Style(color=colours["alarm_fg"], bgcolor=colours["yellow"], bold=True)
    return styles


STYLES: Mapping[str, Mapping[Role, Style]] = {name: _styles(name) for name in _COLOURS}


def role_styles(theme: str) -> Mapping[Role, Style]:
    """Return how every role looks in a theme."""
    return STYLES.get(theme, STYLES[DARK])


def style(app: App[object], role: Role) -> Style:
    """Return how this role looks now. Asked for every piece of a row, for which `app.theme` is too slow."""
    current: Mapping[Role, Style] = getattr(app, "role_styles", STYLES[DARK])
    return current[role]


def _theme(name: str) -> Theme:
    colours = _COLOURS[name]
    ansi = name == ANSI
    hue = {key: f"ansi_{value}" if ansi else value for key, value in colours.items()}
    return Theme(
        name=name,
        primary=hue["blue"],
        secondary=hue["cyan"],
        accent=hue["blue"],
        warning=hue["yellow"],
        error=hue["red"],
        success=hue["green"],
        foreground=hue["fg"],
        background=hue["bg"],
        surface=hue["surface"],
        panel=hue["panel"],
        boost=hue["panel"],
        dark=name != LIGHT,
        ansi=ansi,
        variables={
            "line": hue["line"],
            "dim": hue["dim"],
            "border": hue["blue"],
            "border-blurred": hue["line"],
            "block-cursor-background": hue["blue"],
            "block-cursor-foreground": "ansi_black" if ansi else hue["bg"],
            "block-cursor-text-style": "reverse" if ansi else "bold",
            "input-cursor-background": hue["fg"] if not ansi else "ansi_white",
            "input-cursor-foreground": hue["bg"] if not ansi else "ansi_black",
            "input-selection-background": "ansi_blue" if ansi else hue["cursor"],
            "input-selection-foreground": "ansi_black" if ansi else hue["fg"],
            "screen-selection-background": "ansi_blue" if ansi else hue["cursor"],
            "screen-selection-foreground": "ansi_black" if ansi else hue["fg"],
            "ansi-background": "ansi_black",
            "ansi-foreground": "ansi_white",
            "scrollbar": hue["line"],
            "scrollbar-background": hue["bg"],
            "scrollbar-corner-color": hue["bg"],
        },
    )


def themes() -> list[Theme]:
    """Return the themes the app offers."""
    return [_theme(name) for name in _COLOURS]


def best_theme(env: Mapping[str, str]) -> str:
    """Return the theme this terminal can show: ANSI for 16 colours or fewer, or if none are wanted."""
    if "NO_COLOR" in env:
        return ANSI
    if env.get("COLORTERM", "").lower() in {"truecolor", "24bit"} or "256" in env.get("TERM", ""):
        return DARK
    return ANSI
