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


DARK, LIGHT, ANSI = "relayd-dark", "relayd-light", "relayd-ansi"
# Each colour as those three themes have it.
_SHADES = {
    "bg": ("#0f1419", "#fbfaf7", "default"),
    "surface": ("#151b22", "#f3f1ec", "default"),
    "panel": ("#1b232c", "#e9e6df", "default"),
    "cursor": ("#23384d", "#d3e3f4", "default"),
    "fg": ("#d3dae3", "#23282e", "default"),
    "dim": ("#7f8b99", "#6b7178", "bright_black"),
    "line": ("#2c3642", "#d2cec5", "bright_black"),
    "blue": ("#79b0ee", "#1f62ad", "blue"),
    "green": ("#86c98a", "#2c7a39", "green"),
    "yellow": ("#e2c06b", "#8a6100", "yellow"),
    "red": ("#ee7f7c", "#b3312d", "red"),
    "magenta": ("#c894e0", "#8440a3", "magenta"),
    "cyan": ("#6cc3c7", "#0f7378", "cyan"),
    "alarm_fg": ("#14100a", "#ffffff", "black"),
}
_COLOURS: Mapping[str, Mapping[str, str]] = {
    theme: {colour: shades[index] for colour, shades in _SHADES.items()}
    for index, theme in enumerate((DARK, LIGHT, ANSI))
}

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
