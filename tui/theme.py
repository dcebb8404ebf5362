"""The one place that decides colours. Every state is a word first; colour only repeats it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import lru_cache

from rich.style import Style
from textual.app import App
from textual.color import Color
from textual.theme import BUILTIN_THEMES, Theme


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
    "dim": ("#98a2ad", "#5a6066", "bright_black"),
    "line": ("#2c3642", "#d2cec5", "bright_black"),
    "blue": ("#79b0ee", "#1f62ad", "blue"),
    "green": ("#86c98a", "#276d33", "green"),
    "yellow": ("#e2c06b", "#835c00", "yellow"),
    "red": ("#ee7f7c", "#b3312d", "red"),
    "magenta": ("#c894e0", "#8440a3", "magenta"),
    "cyan": ("#6cc3c7", "#0e6d72", "cyan"),
    "alarm_fg": ("#14100a", "#ffffff", "black"),
}
Colours = Mapping[str, str]
_COLOURS: Mapping[str, Colours] = {
    theme: {colour: shades[index] for colour, shades in _SHADES.items()}
    for index, theme in enumerate((DARK, LIGHT, ANSI))
}
# The colours of Textual's own themes that ours are made from.
_HUES = {
    "blue": "primary",
    "green": "success",
    "yellow": "warning",
    "red": "error",
    "magenta": "accent",
    "cyan": "secondary",
}
CONTRAST = 4.5
"""What text has at least against what is behind it (WCAG 2.2, 1.4.3)."""
_STEPS = 20

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


def contrast(one: Color, other: Color) -> float:
    """Return the contrast of two colours, 1 to 21 (WCAG 2.2, "contrast ratio")."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: Color) -> float:
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4  # noqa: PLR2004 - of sRGB
        for part in colour.normalized
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _readable(colour: Color, grounds: Iterable[Color], *, dark: bool) -> str:
    """Return the colour, as far towards white or black as it must go to be read on all these grounds."""
    grounds, end = list(grounds), Color.parse("white" if dark else "black")
    steps = (colour.blend(end, step / _STEPS) for step in range(_STEPS + 1))
    return next((c for c in steps if all(contrast(c, ground) >= CONTRAST for ground in grounds)), end).hex


@lru_cache(maxsize=4)
def colours(name: str) -> Colours:
    """Return the colours of a theme, ours or one of Textual's; those of an unknown one are the dark ones."""
    theme = BUILTIN_THEMES.get(name)
    if theme is None:
        return _COLOURS.get(name, _COLOURS[DARK])
    if theme.ansi:
        return _COLOURS[ANSI]
    made = theme.to_color_system().generate()
    back, text, blue = (Color.parse(made[key]) for key in ("background", "foreground", "primary"))
    grounds = [back, *(Color.parse(made[key]) for key in ("surface", "panel"))]
    cursor = back.blend(blue, 0.2)
    grounds.append(cursor)
    found = {
        "bg": back.hex,
        "surface": made["surface"],
        "panel": made["panel"],
        "cursor": cursor.hex,
        "fg": _readable(text, grounds, dark=theme.dark),
        "dim": _readable(text.blend(back, 0.4), grounds, dark=theme.dark),
        "line": back.blend(text, 0.25).hex,
        "alarm_fg": "#ffffff",
    }
    for hue, key in _HUES.items():
        found[hue] = _readable(Color.parse(made[key]), grounds, dark=theme.dark)
    if contrast(Color.parse("#14100a"), Color.parse(found["yellow"])) >= CONTRAST:
        found["alarm_fg"] = "#14100a"
    return found


def _is_ansi(name: str) -> bool:
    return BUILTIN_THEMES[name].ansi if name in BUILTIN_THEMES else name == ANSI


@lru_cache(maxsize=4)
def role_styles(name: str) -> Mapping[Role, Style]:
    """Return how every role looks in a theme."""
    hues, ansi = colours(name), _is_ansi(name)
    styles = {}
    for role, look in _LOOKS.items():
        colour, _, bold = look.partition(" ")
        styles[role] = Style(color=hues[colour], bold=bool(bold))
    if ansi:
        styles[Role.CURSOR] = Style(reverse=True)
        styles[Role.ALARM] = Style(bold=True, reverse=True)
    else:
        styles[Role.CURSOR] = Style(bgcolor=hues["cursor"])
        styles[Role.ALARM] = Style(color=hues["alarm_fg"], bgcolor=hues["yellow"], bold=True)
    return styles


_FALLBACK = role_styles(DARK)


def style(app: App[object], role: Role) -> Style:
    """Return how this role looks now. Asked for every piece of a row, for which `app.theme` is too slow."""
    current: Mapping[Role, Style] = getattr(app, "role_styles", _FALLBACK)
    return current[role]


def _theme(name: str) -> Theme:
    ansi = name == ANSI
    hue = {key: f"ansi_{value}" if ansi else value for key, value in _COLOURS[name].items()}
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
    """Return our own themes."""
    return [_theme(name) for name in _COLOURS]


def theme_names() -> list[str]:
    """Return the themes to choose from: our own, and Textual's."""
    return [*_COLOURS, *sorted(BUILTIN_THEMES)]


def variables(name: str) -> dict[str, str]:
    """Return the variables of our style sheets that a theme of Textual's does not have."""
    prefix = "ansi_" if _is_ansi(name) else ""
    return {key: prefix + colours(name)[key] for key in ("dim", "line")}


def best_theme(env: Mapping[str, str]) -> str:
    """Return the theme this terminal can show: ANSI for 16 colours or fewer, or if none are wanted."""
    if "NO_COLOR" in env:
        return ANSI
    if env.get("COLORTERM", "").lower() in {"truecolor", "24bit"} or "256" in env.get("TERM", ""):
        return DARK
    return ANSI
