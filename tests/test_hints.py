"""Commands in hints are what the reader can type."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import _SubParsersAction
from pathlib import Path

from relayd.cli import parser
from relayd.printable import COMMANDS

_BIN = Path(sys.prefix) / "bin"
_SHOW = "import sys; from relayd.printable import typeable; print(typeable(sys.argv[1]))"
_HINT = "Run `relayd keys list`, or: sudo relayd init. The page relayd checks is ./relayd keys. relayd-tui"


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
