"""Copying from afar."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path

import pytest

from tui.clipboard import NoClipboard, copy

TMUX = """#!/bin/sh
echo "$@" > "$HOME/arguments"
cat > "$HOME/buffer"
"""


async def test_tmux_is_asked_first_and_gets_the_text_by_a_pipe(tmp_path: Path) -> None:
    """The text is never an argument, which every user of the machine could read."""
    (tmp_path / "tmux").write_text(TMUX)
    (tmp_path / "tmux").chmod(0o755)
    env = {"TMUX": "/tmp/tmux-0/default,1,0", "PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}  # noqa: S108 - as tmux sets it
    said = await copy("the text", "The id", env, lambda _: pytest.fail("not by OSC 52"))
    assert "tmux" in said
    assert (tmp_path / "buffer").read_text() == "the text"
    assert (tmp_path / "arguments").read_text().split() == ["load-buffer", "-w", "-"]


async def test_without_tmux_the_terminal_is_asked_and_success_is_not_claimed() -> None:
    """OSC 52 carries the text in base64; the sentence says `if`."""
    written: list[str] = []
    said = await copy("grüße", "The id", {"TERM": "xterm-256color"}, written.append)
    found = re.fullmatch("\x1b\\]52;c;(.*)\x07", written[0])
    assert found is not None
    assert base64.b64decode(found[1]).decode() == "grüße"
    assert "if your terminal allows" in said


def test_without_a_clipboard_the_text_goes_to_a_private_file() -> None:
    """The Linux console has no clipboard: the sentence names the file."""
    said = asyncio.run(copy("the text", "The id", {"TERM": "linux"}, lambda _: None))
    found = re.search(r"(/\S+relayd-copy-\S+)", said)
    assert found is not None
    path = Path(found[1])
    assert path.read_text() == "the text"
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()


async def test_a_secret_never_goes_to_a_file_by_itself() -> None:
    """Then the sentence says which key saves it."""
    with pytest.raises(NoClipboard, match="could not be sent") as refused:
        await copy("rly_x_y", "The key", {"TERM": "linux"}, lambda _: None, may_use_file=False)
    assert "rly_x_y" not in str(refused.value)
