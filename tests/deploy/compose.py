"""docs/deploy/compose.yaml as nested dictionaries: enough of YAML for it, strictly, and no dependency."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

Node: TypeAlias = "str | list[str] | dict[str, Node]"


def read_compose(path: Path) -> dict[str, Node]:
    """The file; anything that this does not know is an error."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    found, rest = _block([line for line in lines if not line.lstrip().startswith("#")], 0)
    assert rest == [], rest
    assert isinstance(found, dict)
    return found


def _block(lines: list[str], indent: int) -> tuple[Node, list[str]]:
    """The mapping or list at this indent, and the lines after it."""
    mapping: dict[str, Node] = {}
    listed: list[str] = []
    while lines and _indent(lines[0]) == indent:
        line = lines.pop(0).strip()
        if line.startswith("- "):
            listed.append(line[2:])
            while lines and _indent(lines[0]) > indent:  # the rest of an item that is a mapping
                listed[-1] += f" {lines.pop(0).strip()}"
            continue
        name, colon, value = line.partition(":")
        assert colon, line
        assert name not in mapping, f"{name} stands there twice"
        inner = _indent(lines[0]) if lines else 0
        if value.strip() == "|":
            mapping[name] = "\n".join(_taken(lines, indent))
        elif value.strip():
            mapping[name] = _flow(value.strip())
        elif inner > indent:
            mapping[name], lines = _block(lines, inner)
        else:
            mapping[name] = ""
    assert not (mapping and listed)
    return (listed or mapping), lines


def _taken(lines: list[str], indent: int) -> list[str]:
    taken = []
    while lines and _indent(lines[0]) > indent:
        taken.append(lines.pop(0).strip())
    return taken


def _flow(value: str) -> Node:
    if value.startswith("["):
        return [item.strip().strip('"') for item in value.strip("[]").split(",")]
    return value.strip('"')


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
