"""The settings in force: a reload reads them again and applies what may change while the daemon runs.

The report of them has every key with its source, and with what its sources say by now. No secret is in it: of
those there is only whether they are set, and how long they are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from relayd.admin.schema import Applies, ConfigReport, LastReload, Reloaded, Setting, utc_text
from relayd.alerts.command import program_of
from relayd.config import KEYS, ConfigError, Key, Origin, OriginKind, Settings, live_changes
from relayd.config.schema import COMMAND, route_credential
from relayd.config.sources import VARIABLES
from relayd.config.toml import toml_key, toml_value
from relayd.logs import set_level
from relayd.printable import plural, printable
from relayd.public.tls import TlsError
from relayd.systemd import ServiceManager

_log = logging.getLogger(__name__)

_MAX_SHOWN_CHARS = 80
_NOT_SET = "not set"
_DEFAULT = Origin(OriginKind.DEFAULT, "default")
# RELAYD_SERVER__PORT comes after SERVER_PORT, which it beats.
_VARIABLE_OF = {name: variable for variable, name in VARIABLES.items()}


class ConfigReloader:
    """Holds the settings in force, and replaces them on request.

    Args:
        settings: those of the start.
        read: reads all sources again; raises ConfigError.
        manager: gets the notifications that a reload begins and ends.
    """

    def __init__(self, settings: Settings, read: Callable[[], Settings], manager: ServiceManager) -> None:
        self.current = settings
        self._at_start = settings
        self._read = read
        self._manager = manager
        self._read_at = utc_text(time.time())
        self._last_reload: LastReload | None = None
        self._latest: asyncio.Task[Reloaded] | None = None
        self._has_begun = True
        """Whether the latest reload has read its files already."""

    def reload(self, apply: Callable[[Settings], None]) -> asyncio.Task[Reloaded]:
        """Read and apply in the background, after a running reload; requests meanwhile share one.

        Args:
            apply: puts settings in force; raises TlsError, with nothing changed, if it cannot.
        """
        if self._latest is None or self._has_begun:
            self._has_begun = False
            self._latest = asyncio.create_task(self._reload(apply, self._latest), name="reload")
        return self._latest

    async def report(self) -> ConfigReport:
        """Return the settings in force, and what their sources say now; nothing is changed."""
        newest, problems = self.current, []
        try:
            newest = await asyncio.to_thread(self._read)
        except ConfigError as error:
            problems = list(map(str, error.problems))
        file = self.current.config_file
        return ConfigReport(
            file=None if file is None else printable(str(file)),
            read_at=self._read_at,
            settings=settings_in_force(self._at_start, self.current, newest),
            warnings=list(newest.warnings),
            problems=problems,
            last_reload=self._last_reload,
        )

    async def close(self) -> None:
        """Wait for a reload that is under way."""
        if self._latest is not None:
            await asyncio.wait([self._latest])

    async def _reload(
        self, apply: Callable[[Settings], None], before: asyncio.Task[Reloaded] | None
    ) -> Reloaded:
        if before is not None:
            await asyncio.wait([before])
        self._has_begun = True
        self._manager.reloading()
        try:
            report = await self._reload_once(apply)
        finally:
            self._manager.reloaded()
        self._last_reload = LastReload(utc_text(time.time()), report)
        return report

    async def _reload_once(self, apply: Callable[[Settings], None]) -> Reloaded:
        try:
            new = await asyncio.to_thread(self._read)
            apply(new)
        except (ConfigError, TlsError) as error:
            _log.error("reload: the configuration cannot be used, so nothing was changed:\n%s", error)
            return Reloaded(error=str(error))
        except Exception as error:  # noqa: BLE001 - a bug here must neither be silent nor stop the daemon
            _log.exception("reload: failed")
            return Reloaded(error=f"An unexpected {type(error).__name__}; see the log.")
        old, self.current = self.current, new
        self._read_at = utc_text(time.time())
        report = Reloaded(
            changed=[_change(old, new, name) for name in live_changes(old, new).live],
            # A change that waits for a restart is reported until then, however often the file is read.
            waiting=list(live_changes(self._at_start, new).restart),
            notes=[warning for warning in new.warnings if warning not in old.warnings],
        )
        if credentials := _credentials(new):
            report.notes.append(
                f"{', '.join(credentials)}: a credential is read by systemd only at a start of the service: "
                "sudo systemctl restart relayd"
            )
        _write(report)
        # Last: at the new level the report might not be shown.
        set_level(new.log.level)
        return report


def _credentials(settings: Settings) -> list[str]:
    """Return the provider's keys that systemd passed, by the names of their credentials."""
    origin = settings.origins["openai_api_key"]
    return [
        *(["openai_api_key"] if origin.kind is OriginKind.CREDENTIAL else []),
        *(
            route_credential(route.name)
            for route in settings.upstream.route
            if route.openai_api_key is not None and route.openai_api_key_file is None
        ),
    ]


def _write(report: Reloaded) -> None:
    for note in report.notes:
        _log.warning("%s", note)
    for change in report.changed:
        _log.warning("reload: %s", change)
    if report.waiting:
        _log.warning("reload: takes effect only after a restart: %s", ", ".join(report.waiting))
    if not report.changed and not report.waiting:
        _log.warning("reload: the configuration has not changed")


def _change(old: Settings, new: Settings, name: str) -> str:
    if KEYS[name].is_table:
        before, after = _rows(old.value(name)), _rows(new.value(name))
        rows = [row for row in {**before, **after} if before.get(row) != after.get(row)]
        return f"{name} has changed: {_cut(', '.join(rows) or 'their order')}"
    if name == COMMAND:
        return f"{name} has changed"
    if KEYS[name].secret:
        return f"{name} is now the one from {new.origins[name].place}"
    return f"{name} is now {_shown(new, name)}, was {_shown(old, name)}"


def _shown(settings: Settings, name: str) -> str:
    """Return a value that is no secret, cut to fit a line."""
    value = settings.value(name)
    text = ", ".join(map(str, value)) or "empty" if isinstance(value, tuple) else str(value)
    return _cut(text)


def _rows(table: Any) -> dict[str, Any]:
    """Return what a table holds, by the names of its rows."""
    return {row.name: row for row in table} if isinstance(table, tuple) else dict(table)


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"


@dataclass(frozen=True, slots=True)
class _Value:
    """A value as it is shown, and as it is compared."""

    text: str
    origin: Origin
    value: Any = None


def settings_in_force(at_start: Settings, current: Settings, newest: Settings) -> list[Setting]:
    """Return every key in the order of relayd.toml; of a table, each of its rows.

    Args:
        at_start: of this process; what needs a restart is still as in these.
        current: as the last reload read them.
        newest: as their sources say now.
    """
    waiting = live_changes(at_start, current).restart
    restart = live_changes(at_start, newest).restart
    found: list[Setting] = []
    for key in KEYS.values():
        in_force = _values(at_start if key.name in waiting else current, key)
        new = _values(newest, key)
        applies = Applies.RESTART if key.name in restart or not key.live else Applies.RELOAD
        nothing = _Value(_NOT_SET, _DEFAULT)
        found += [
            _setting(key, name, in_force.get(name, nothing), new.get(name, nothing), applies)
            for name in {**in_force, **new} or [key.name]
        ]
    return found


def _setting(key: Key, name: str, in_force: _Value, new: _Value, applies: Applies) -> Setting:
    has_changed = in_force.value != new.value
    new_text = f"another one, {new.text}" if new.text == in_force.text else new.text
    return Setting(
        name=name,
        value=in_force.text,
        source=_place(in_force.origin),
        is_default=in_force.origin.kind is OriginKind.DEFAULT,
        applies=applies,
        about=key.field.description or "",
        variable=_VARIABLE_OF.get(key.name, ""),
        default="" if key.default is None or key.secret or key.is_table else toml_value(key.default),
        new_value=new_text if has_changed else None,
        new_source=_place(new.origin) if has_changed else None,
    )


def _values(settings: Settings, key: Key) -> Mapping[str, _Value]:
    """Return a key's value by the key's name; of a table, the values of its rows by theirs."""
    origin, value = settings.origins[key.name], settings.value(key.name)
    if not key.is_table:
        text = _secret_text(value) if key.secret else _public_text(key, value)
        return {key.name: _Value(text, origin, value)}
    rows = {row.name: row for row in value} if key.is_list else value
    return {
        f"{key.name}.{toml_key(name)}": _Value(_row_text(key, row), origin, row) for name, row in rows.items()
    }


def _row_text(key: Key, row: Any) -> str:
    """Return a row of a table on one line; of its secrets, only that they are set."""
    if key.row is None:
        return toml_value(row)
    parts = []
    for leaf, inner in key.row_keys.items():
        value = getattr(row, leaf)
        if inner.secret:
            parts += [] if value is None else [f"{leaf} {_secret_text(value)}"]
        elif value is not None and leaf != "name":
            parts.append(f"{leaf} = {toml_value(value)}")
    return ", ".join(parts)


def _public_text(key: Key, value: Any) -> str:
    """Return a value as TOML; of a command, the program: its arguments may hold a token."""
    if key.name != COMMAND or not value:
        return toml_value(value)
    program, count = program_of(value), len(value) - 1
    if program != value[0]:
        return f"[{toml_value(program)} and more, in one text]"
    arguments = f", and {plural(count, 'argument')}" if count else ""
    return f"[{toml_value(program)}{arguments}]"


def _secret_text(secret: SecretStr | None) -> str:
    text = "" if secret is None else secret.get_secret_value()
    return f"set ({len(text)} characters)" if text else _NOT_SET


def _place(origin: Origin) -> str:
    """Return where a value was set, as `Setting.source` says it."""
    match origin.kind:
        case OriginKind.DEFAULT:
            return "default"
        case OriginKind.CREDENTIAL | OriginKind.KEY_FILE:
            return f"{origin.kind} {origin}"
    return str(origin)
