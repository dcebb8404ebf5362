"""The rooms and their arrows: who may import whom, and what no room may do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_SOURCES = sorted(path for room in ("relayd", "tui") for path in (_ROOT / room).rglob("*.py"))

# Each room, and the rooms of this project that it may import beside itself. Files at the top of relayd/
# are rooms of their own kind: what starts the daemon may import all, and nothing may import it back.
_MAY_IMPORT = {
    "relayd.public": {"relayd", "relayd.public", "relayd.relay", "relayd.state"},
    "relayd.admin": {"relayd", "relayd.admin", "relayd.relay", "relayd.state"},
    "relayd.relay": {"relayd", "relayd.relay", "relayd.state"},
    "relayd.state": {"relayd", "relayd.state"},
    "tui": {"relayd", "tui", "relayd.admin", "relayd.state"},
}
# What may not be reached from a room, whatever its name for it.
_NEVER = {
    "relayd.state": {"tornado", "aiohttp", "openai", "httpx2"},
    "relayd.relay": {"tornado"},
    "relayd.public": {"openai", "httpx2", "aiohttp"},
    "tui": {"tornado", "relayd.server", "relayd.commands.serve", "relayd.demo", "relayd.config"},
}
# The modules at the top of relayd/ that are no room: what every room may use of them.
_SHARED_TOP = {"relayd", "relayd.durations", "relayd.paths", "relayd.printable"}


def _module(path: Path) -> str:
    parts = path.relative_to(_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    """`relayd.public.chat` is in `relayd.public`, `relayd.server` in `relayd.server`, `tui.x` in `tui`."""
    parts = module.split(".")
    return "tui" if parts[0] == "tui" else ".".join(parts[:2])


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield node.lineno, node.module or ""


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", _SOURCES, ids=_module)
def test_a_room_imports_only_what_its_arrows_allow(path: Path) -> None:
    """The arrows: cli → server → public, admin → relay → state; tui knows relayd.admin alone."""
    room = _room(_module(path))
    allowed = _MAY_IMPORT.get(room)
    wrong = []
    for line, name in _imports(_parsed(path)):
        ours = name.split(".")[0] in {"relayd", "tui"}
        if allowed is not None and ours and _room(name) not in allowed and name not in _SHARED_TOP:
            wrong.append(f"line {line}: {room} may not import {name}")
        if any(_is_within(name, banned) for banned in _NEVER.get(room, ())):
            wrong.append(f"line {line}: {room} must not know {name}")
        if _is_within(name, "tests"):
            wrong.append(f"line {line}: no source imports the tests")
    assert wrong == []


def test_the_operators_app_never_becomes_part_of_the_daemon() -> None:
    """Only its own package and its command may import tui, so a daemon never loads Textual."""
    users = {
        _module(path)
        for path in _SOURCES
        for _, name in _imports(_parsed(path))
        if _is_within(name, "tui") and not _is_within(_module(path), "tui")
    }
    assert users <= {"relayd.cli"}


def _faults(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) == "create_task" and not _has_name(node):
            yield f"line {node.lineno}: a task without a name"
        if isinstance(node, ast.Expr) and _called(node.value) in {"create_task", "ensure_future"}:
            yield f"line {node.lineno}: a task without an owner"
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield f"line {node.lineno}: a bare except"
            elif _is_wide(node.type) and all(isinstance(part, ast.Pass) for part in node.body):
                yield f"line {node.lineno}: any exception is swallowed"


def _is_wide(caught: ast.expr) -> bool:
    return isinstance(caught, ast.Name) and caught.id in {"Exception", "BaseException"}


def _has_name(call: ast.Call) -> bool:
    return any(keyword.arg == "name" for keyword in call.keywords)


def _called(node: ast.AST) -> str:
    """The last part of the name that is called; empty where nothing is."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


@pytest.mark.parametrize("path", _SOURCES, ids=_module)
def test_tasks_have_names_and_exceptions_are_not_swallowed(path: Path) -> None:
    """Every task is named and kept; no except is bare or swallows whatever comes."""
    assert list(_faults(_parsed(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        "task = asyncio.create_task(work())",
        "asyncio.create_task(work(), name='x')",
        "loop.create_task(work())",
        "try:\n    x()\nexcept:\n    y()",
        "try:\n    x()\nexcept Exception:\n    pass",
    ],
)
def test_the_hygiene_check_sees_each_fault(source: str) -> None:
    """The check itself can fail."""
    assert list(_faults(ast.parse(source)))
