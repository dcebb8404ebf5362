"""Which way the app's imports point."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imported(source: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("source", sorted((ROOT / "tui/model").rglob("*.py")), ids=lambda path: path.name)
def test_the_model_knows_no_screen(source: Path) -> None:
    """tui/model imports neither Textual nor Rich; of the app, only itself and what can be shown."""
    names = imported(source)
    assert {name for name in names if name.split(".")[0] in {"textual", "rich"}} == set()
    assert {name for name in names if name.split(".")[0] == "tui"} <= {
        name for name in names if name.startswith(("tui.model", "tui.glyphs"))
    }


def test_line_mode_and_the_model_load_no_textual() -> None:
    """In a fresh process, line mode and the model leave Textual unloaded."""
    code = "import sys, tui.__main__, tui.plain, tui.model.app_state; sys.exit('textual' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
