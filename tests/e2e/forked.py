"""Real daemons that start quickly: each is forked from a process that has imported relayd already."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from relayd.cli import main


def launch(
    home: Path, env: Mapping[str, str], before: Callable[[], None] | None, *words: str
) -> ForkServerProcess:
    """Start `relayd WORDS` with this environment and this working directory; stderr goes to `home/stderr`.

    Args:
        home: the working directory.
        env: all of the environment.
        before: called in the process first; a function of a module.
        words: the command line.
    """
    process = _context().Process(target=_run, args=(home, dict(env), before, words))
    process.start()
    return process


def leave_working_directory() -> None:
    """Go to a directory and delete it."""
    Path("gone").mkdir()
    os.chdir("gone")
    Path("../gone").rmdir()


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.e2e.forked", "relayd.commands.serve"])
    return context


def _run(home: Path, env: dict[str, str], before: Callable[[], None] | None, words: tuple[str, ...]) -> None:
    stderr = os.open(home / "stderr", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(stderr, 2)
    os.close(stderr)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(home)
    if before is not None:
        before()
    sys.exit(main(words))
