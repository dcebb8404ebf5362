"""What the app remembers between runs: layout, filter, theme. Never a secret."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec

from tui.model.store import KEEP_DEFAULT


def config_dir(env: Mapping[str, str]) -> Path:
    """Return `$XDG_CONFIG_HOME/relayd`, else `~/.config/relayd`; a relative variable is ignored."""
    base = Path(env.get("XDG_CONFIG_HOME", ""))
    return (base if base.is_absolute() else Path(env.get("HOME") or Path.home()) / ".config") / "relayd"


class Settings(msgspec.Struct):
    """`tui.json` in the config directory; a person may edit it."""

    theme: str = ""
    """Empty: chosen by what the terminal can show."""
    filter: str = ""
    filter_history: dict[str, list[str]] = {}
    """The last filters of each list, the newest last: `requests`, `inflight`, `clients`, `audit`."""
    saved_filters: dict[str, dict[str, str]] = {}
    """Filters by name, of each list."""
    screen: str = "requests"
    columns_hidden: list[str] = []
    keep_records: int = KEEP_DEFAULT
    """How many records the app holds in memory; older ones stay on the daemon's disk."""
    backlog_records: int = 10_000
    """How many of the newest records are loaded at start."""
    mouse: bool = True
    hosts: list[str] = []
    """Servers that were shown before, the last one first: `[user@]server[:port]`."""
    bell: bool = True
    """Whether the bell rings when an alert begins."""
    keys: dict[str, str] = {}
    """Other keys for actions, by their ids, separated by commas: `{"clients.rotate": "f6"}`."""


class SettingsFile:
    """Writes what this run of the app changed: another one, or a person, may have changed the file meanwhile.

    A file that can't be read is reported, never overwritten.
    """

    def __init__(self, path: Path) -> None:
        # A link, as people keep for such files, stays one.
        self.path = Path(os.path.realpath(path))
        self.problem = ""
        try:
            self.settings = self._read()
        except (OSError, msgspec.DecodeError) as error:
            self.problem = f"{self.path} can't be read ({error}); defaults are used and nothing is saved."
            self.settings = Settings()
        self._saved = _values(self.settings)

    def _read(self) -> Settings:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Settings)
        except FileNotFoundError:
            return Settings()

    def keep(self) -> str:
        """Save what somebody asked to keep; return why it is not, also if the file could not be read."""
        return self.save() or self.problem

    def save(self) -> str:
        """Replace the file in one step; return why that failed, or an empty text."""
        if self.problem:
            return ""
        ours = _values(self.settings)
        try:
            in_file = _values(self._read())
        except (OSError, msgspec.DecodeError) as error:
            return f"The settings were not saved: {self.path} can't be read ({error})"
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            wanted = _merged(self._saved, ours, in_file)
            fresh.write_bytes(msgspec.json.format(msgspec.json.encode(wanted)) + b"\n")
            fresh.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink()
            return f"The settings were not saved: {error}"
        self._saved = ours
        return ""


def _values(settings: Settings) -> dict[str, Any]:
    return cast("dict[str, Any]", msgspec.json.decode(msgspec.json.encode(settings)))


def _merged(before: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return their values with the changes from `before` to ours; each entry of a table is a value."""
    merged = {name: value for name, value in theirs.items() if name in ours or name not in before}
    for name, value in ours.items():
        known = before.get(name, type(value)())
        if isinstance(value, dict):
            merged[name] = _merged(known, value, theirs.get(name, {}))
        elif value != known:
            merged[name] = value
    return merged
