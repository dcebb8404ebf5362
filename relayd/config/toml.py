"""TOML: the line of each key in a text, a value as TOML, and the commented relayd.toml."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tomli

from relayd.config.schema import KEYS

KeyPath = tuple[str, ...]

_COMMENT_COLUMN = 45
_HEAD = """\
# The configuration of relayd: every key with its default. Remove the "#" before a key to change it.
# Sources, weakest first: these defaults, this file, .env, environment (RELAYD_SERVER__PORT), command line.
# Keep secrets out of this file: set openai_api_key_file or OPENAI_API_KEY. More: docs/configuration.md
"""
_DERIVED = {"state_dir": "~/.local/state/relayd", "admin.socket": "~/.local/state/relayd/admin.sock"}


def key_lines(text: str) -> dict[KeyPath, int]:
    """Map the path of every table and key to the line (from 1) of the statement that first names it.

    tomli gives values without lines. But each statement of a TOML text is a TOML text of its own: parsing
    them one by one shows which keys each of them brings.

    Args:
        text: TOML that tomli accepts, with LF line ends.
    """
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    statement, first = "", 0
    for number, line in enumerate(text.split("\n"), start=1):
        first = first if statement else number
        statement += line + "\n"
        try:
            paths = list(_paths(tomli.loads(statement)))
        except tomli.TOMLDecodeError:
            continue  # a string or a list is still open
        if statement.lstrip().startswith("["):
            table = paths[-1]
        else:
            paths = [(*table, *path) for path in paths]
        for path in paths:
            found.setdefault(path, first)
        statement = ""
    return found


def _paths(document: Mapping[str, Any]) -> Iterator[KeyPath]:
    """Yield the path of every key outside arrays, tables before what they hold."""
    for name, value in document.items():
        yield (name,)
        if isinstance(value, dict):
            yield from ((name, *path) for path in _paths(value))


def toml_value(value: object) -> str:
    """Return a setting as TOML: whole floats without a fraction, None as an empty string."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(toml_value, value))}]"
    text = "" if value is None else str(value)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def commented_toml(values: Mapping[str, object] | None = None) -> str:
    """Return relayd.toml: every key with its default, commented out, and a line that explains it.

    Args:
        values: by dotted key; these are set instead of commented out.

    Raises:
        KeyError: `values` has a key that does not exist or does not belong in the file.
    """
    left = dict(values or {})
    lines = [_HEAD]
    section = ""
    for name, key in KEYS.items():
        if not key.in_file:
            continue
        if key.section != section:
            section = key.section
            lines.append(f"\n[{section}]\n")
        is_set = name in left
        value = left.pop(name) if is_set else _DERIVED.get(name, key.default)
        setting = f"{'' if is_set else '# '}{key.leaf} = {toml_value(value)}"
        lines.append(f"{setting:<{_COMMENT_COLUMN}} # {key.field.description}\n")
    if left:
        raise KeyError(*left)
    lines.insert(1, "\n")
    return "".join(lines)


def nested(flat: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Turn dotted keys into the tables that the settings are made of."""
    tree: dict[str, Any] = {}
    for name, value in flat:
        section, _, leaf = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[leaf] = value
    return tree
