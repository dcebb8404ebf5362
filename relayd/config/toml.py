"""TOML: the line of each key in a text, a value as TOML, and the commented relayd.toml."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tomli

from relayd.config.schema import KEYS, Key

KeyPath = tuple[str | int, ...]
"""The names that lead to a key; the number of a table in a list of tables is one of them."""

_COMMENT_COLUMN = 45
_HEAD = """\
# The configuration of relayd: every key with its default. Remove the "#" before a key to change it.
# Sources, weakest first: these defaults, this file, .env, environment (RELAYD_SERVER__PORT), command line.
# Keep secrets out of this file: set openai_api_key_file or OPENAI_API_KEY. More: docs/configuration.md
"""
_EXAMPLES = {
    "upstream.route": """
# Several provider keys, or several providers: one table each. Without any, base_url and its key are used.
# [[upstream.route]]
#   name = "second"                           # how the log, status and metrics call it
#   openai_api_key_file = "/etc/relayd/second_api_key" # a file that contains only the key of this route
#   base_url = "https://api.openai.com/v1"    # default: upstream.base_url
#   weight = 1                                # its share of the requests, beside those of the other routes
#   models = ["gpt-*", "o3"]                  # the models that it serves, as names or globs; empty: all
""",
    "aliases": """
# A model name that clients still ask for, and what the provider is asked for.
# [aliases]
#   "gpt-3.5-turbo" = "gpt-4o-mini"
""",
    "prices": """
# What a model costs, in US dollars a million tokens; it replaces the price that relayd comes with.
# [prices."gpt-4o-mini"]
#   input = 0.15                              # of the prompt
#   cached_input = 0.075                      # of what the provider had cached; default: input
#   output = 0.6                              # of the answer
""",
}
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
    lengths = Counter[KeyPath]()
    statement, first = "", 0
    for number, line in enumerate(text.split("\n"), start=1):
        first = first if statement else number
        statement += line + "\n"
        try:
            paths = list(_paths(tomli.loads(statement)))
        except tomli.TOMLDecodeError:
            continue  # a string or a list is still open
        if statement.lstrip().startswith("[["):
            tables = paths[-1]
            table = (*tables, lengths[tables])
            lengths[tables] += 1
            paths.append(table)
        elif statement.lstrip().startswith("["):
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


def toml_key(name: str) -> str:
    """Return a name as TOML: bare if it may be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)


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


def table_toml(key: Key, value: Any, comments: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of a table, or of a list of tables, as TOML.

    Args:
        key: of the table.
        value: its value in the settings.
        comments: by the names of rows; each follows its row.
    """
    if key.row is None:
        yield from ("", f"[{key.name}]")
        yield from (f"{toml_key(name)} = {toml_value(item)}" for name, item in value.items())
        return
    rows = {row.name: row for row in value} if key.is_list else value
    for name, row in rows.items():
        yield from ("", f"[[{key.name}]]" if key.is_list else f"[{key.name}.{toml_key(name)}]")
        for leaf, inner in key.row_keys.items():
            item = getattr(row, leaf)
            if inner.in_file and item is not None:
                yield f"{leaf} = {toml_value(item)}"
        if name in comments:
            yield f"# {comments[name]}"


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
        if key.is_table:
            lines.append(_EXAMPLES[name])
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
