"""The settings in force, key by key, each with its source and with what its sources say by now.

No secret is in it: of those there is only whether they are set, and how long they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from relayd.admin.schema import Applies, Setting
from relayd.alerts.command import program_of
from relayd.config import KEYS, Key, Origin, OriginKind, Settings, live_changes
from relayd.config.schema import COMMAND
from relayd.config.sources import VARIABLES
from relayd.config.toml import toml_key, toml_value

_NOT_SET = "not set"
_DEFAULT = Origin(OriginKind.DEFAULT, "default")
# RELAYD_SERVER__PORT comes after SERVER_PORT, which it beats.
_VARIABLE_OF = {name: variable for variable, name in VARIABLES.items()}


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
    arguments = f", and {count} {'argument' if count == 1 else 'arguments'}" if count else ""
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
