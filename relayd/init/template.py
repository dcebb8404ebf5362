"""The commented relayd.toml, with some of its keys set."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

# A copy of the file at the top of the repository, which the wheel does not hold and people may edit.
_TEMPLATE = Path(__file__).parents[1] / "deploy" / "relayd.toml"
_SECTION = re.compile(r"\[(\w+)\]")
_KEY = re.compile(r"# (?P<key>\w+) += (?P<value>.*?)(?P<gap> +)(?P<comment># .*)")


def template() -> str:
    """Every key with its default, commented out, and a line that explains it."""
    return _TEMPLATE.read_text(encoding="utf-8")


def with_values(text: str, values: Mapping[str, object]) -> str:
    """Set keys in the template.

    Args:
        text: of the template.
        values: by dotted name (`server.port`): strings, numbers, booleans or lists of them.

    Raises:
        KeyError: the template has no such key.
    """
    left = dict(values)
    section = ""
    lines = []
    for line in text.splitlines():
        found = _SECTION.fullmatch(line)
        section = found[1] + "." if found else section
        key = _KEY.fullmatch(line)
        name = section + key["key"] if key else ""
        if key and name in left:
            # JSON's strings, numbers, booleans and lists are TOML's as well.
            setting = f"{key['key']} = {json.dumps(left.pop(name), ensure_ascii=False)}"
            column = key.start("comment")
            lines.append(f"{setting:<{column - 1}} {key['comment']}")
        else:
            lines.append(line)
    if left:
        raise KeyError(*left)
    return "\n".join(lines) + "\n"
