"""Texts for a terminal: none from outside can act on it, and commands in hints are what can be typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import _SubParsersAction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.cli import parser
from relayd.printable import COMMANDS, printable, printable_json

_BIN = Path(sys.prefix) / "bin"
_SHOW = "import sys; from relayd.printable import typeable; print(typeable(sys.argv[1]))"
_HINT = "Run `relayd keys list`, or: sudo relayd init. The page relayd checks is ./relayd keys. relayd-tui"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, déjà vu, 日本語, 🙂", "plain text, déjà vu, 日本語, 🙂"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b2J", r"\x9b2J"),
        ("a\nb\tc\x7f", r"a\nb\tc\x7f"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("line\u2028separator\u2029", r"line\u2028separator\u2029"),
        ("half \ud83d pair", r"half \ud83d pair"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("tag \U000e0041", r"tag \U000e0041"),
    ],
)
def test_unsafe_characters_become_escapes_and_all_others_stay(text: str, shown: str) -> None:
    """Controls, bidirectional marks, separators and surrogates are shown; words of any script are kept."""
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_one_printable_line(text: str) -> None:
    """Whatever the input, the result can be shown, encoded as UTF-8, and is a single line."""
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown


@given(st.dictionaries(st.text(), st.text() | st.integers(-(2**53), 2**53) | st.none() | st.floats(0, 1)))
def test_any_document_becomes_one_ascii_line_of_the_same_json(document: dict[str, object]) -> None:
    """A terminal finds nothing to act on in it, and a program reads back what went in."""
    line = printable_json(document)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == document


def _shown(cwd: Path, path: str) -> str:
    words = [sys.executable, "-c", _SHOW, _HINT]
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=True).stdout


def test_a_command_that_the_shell_finds_has_its_name_alone(tmp_path: Path) -> None:
    """Also by a link to this program; another program of that name is not meant."""
    assert _shown(tmp_path, f"/usr/bin:{_BIN}") == f"{_HINT}\n"
    (tmp_path / "relayd").symlink_to(_BIN / "relayd")
    assert _shown(tmp_path, f"{tmp_path}:/usr/bin") == f"{_HINT}\n"


def test_any_other_has_its_path(tmp_path: Path) -> None:
    """Short below the working directory, as after `scripts/serve` in a clone; only commands are changed."""
    assert _shown(_BIN.parents[1], "/usr/bin") == (
        f"Run `{_BIN.parent.name}/bin/relayd keys list`, or: sudo {_BIN.parent.name}/bin/relayd init. "
        f"The page relayd checks is ./relayd keys. {_BIN.parent.name}/bin/relayd-tui\n"
    )
    assert f"`{_BIN}/relayd keys list`" in _shown(tmp_path, "/usr/bin")


def test_every_command_is_known() -> None:
    """A hint may name any of them."""
    actions = [action for action in parser()._actions if isinstance(action, _SubParsersAction)]
    assert set(actions[0].choices) <= set(COMMANDS)
