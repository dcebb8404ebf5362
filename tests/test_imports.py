"""The direction of imports, and what may be imported at all."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_TREES = ("relayd", "tui", "tests", "scripts")
_FILES = {tree: sorted((_ROOT / tree).rglob("*.py")) for tree in _TREES}
_SHIPPED = [*_FILES["relayd"], *_FILES["tui"]]

# cli -> server -> public, admin -> relay -> state; admin -> alerts -> state; tui -> admin. Other
# packages may import all below `cli`.
_MAY_IMPORT = {
    "relayd.public": {"relayd.relay", "relayd.state"},
    "relayd.admin": {"relayd.alerts", "relayd.relay", "relayd.state"},
    "relayd.alerts": {"relayd.state"},
    "relayd.relay": {"relayd.state"},
    "relayd.state": set(),
    "tui": {"relayd.admin"},
}
_SHARED = {
    "relayd",
    "relayd.durations",
    "relayd.json_handler",
    "relayd.files",
    "relayd.pipes",
    "relayd.printable",
}
"""Modules that every package may import."""
_ONLY_FROM = {
    "relayd.cli": {"relayd.__main__"},
    "relayd.commands": {"relayd.cli", "relayd.commands", "relayd.doctor", "relayd.init"},
    "tui": {"relayd.cli", "tui"},
}
_NEVER = {
    "relayd.state": {"tornado", "openai", "httpx2"},
    "relayd.relay": {"tornado"},
    "relayd.public": {"openai", "httpx2"},
    "tui": {"tornado"},
}


def _module(path: Path) -> str:
    parts = path.relative_to(_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _package(module: str) -> str:
    """`relayd.public.chat` is in `relayd.public`, `relayd.server` in `relayd.server`, `tui.x` in `tui`."""
    parts = module.split(".")
    return parts[0] if parts[0] == "tui" else ".".join(parts[:2])


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield node.lineno, node.module or ""


@pytest.mark.parametrize("path", _SHIPPED, ids=_module)
def test_imports_follow_the_arrows(path: Path) -> None:
    """`public` and `admin` never import each other, `relay` knows no handler, `state` no network, ..."""
    package = _package(_module(path))
    wrong = []
    for line, name in _imports(path):
        if name.split(".")[0] in {"relayd", "tui"}:
            target = _package(name)
            allowed = _MAY_IMPORT.get(package)
            above = allowed is not None and target not in {package, *allowed, *_SHARED}
            closed = target in _ONLY_FROM and package not in _ONLY_FROM[target]
            if above or closed:
                wrong.append(f"line {line}: {package} may not import {name}")
        if name.split(".")[0] in _NEVER.get(package, ()) or name.split(".")[0] == "tests":
            wrong.append(f"line {line}: {package} must not know {name}")
    assert wrong == []


@pytest.mark.parametrize("path", _FILES["scripts"], ids=_module)
def test_no_script_imports_the_tests(path: Path) -> None:
    """A script works without the test packages' own code."""
    assert [name for _, name in _imports(path) if name.split(".")[0] == "tests"] == []


def _declared(*groups: str) -> set[str]:
    """Return the names of the distributions that pyproject.toml asks for."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = list(project["project"]["dependencies"])
    for group in groups:
        wanted += project["dependency-groups"][group]
    return {_normalized(re.split(r"[<>=!~;\[ ]", requirement)[0]) for requirement in wanted}


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("tree", "groups"), [("relayd", ()), ("tui", ()), ("tests", ("test",)), ("scripts", ("test",))]
)
def test_every_imported_library_is_declared(tree: str, groups: tuple[str, ...]) -> None:
    """Nothing works only because another library happens to bring it."""
    ours = {*_TREES, *(path.stem for path in (_ROOT / "scripts").iterdir())}
    imported = {name.split(".")[0] for path in _FILES[tree] for _, name in _imports(path)}
    distributions = packages_distributions()
    undeclared = {
        name
        for name in imported - ours - sys.stdlib_module_names
        if not {_normalized(known) for known in distributions.get(name, [])} & _declared(*groups)
    }
    assert undeclared == set()
