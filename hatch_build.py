"""Adds man pages and shell completions to the wheel, made from the parsers that also print the help."""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import shtab
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PARSERS = {"relayd": "relayd.cli", "relayd-tui": "tui.__main__"}
_COMPLETIONS = {
    "bash": "share/bash-completion/completions/{}",
    "zsh": "share/zsh/site-functions/_{}",
    "fish": "share/fish/vendor_completions.d/{}.fish",
}
"""Where each shell finds them, below the prefix."""


def files() -> Iterator[tuple[str, str]]:
    """Yield each file's path below the prefix, and its text."""
    for program, module in _PARSERS.items():
        parser: ArgumentParser = importlib.import_module(module).parser()
        yield f"share/man/man1/{program}.1", _man_page(parser)
        for shell, path in _COMPLETIONS.items():
            yield path.format(program), shtab.complete(parser, shell=shell)


def _man_page(parser: ArgumentParser) -> str:
    commands = list(_commands(parser))
    name = f".TH {parser.prog} 1\n.SH NAME\n{parser.prog} \\- {parser.description}\n"
    sections = (f".SH {command.prog}\n.EX\n{_verbatim(command.format_help())}.EE\n" for command in commands)
    return name + "".join(sections)


def _commands(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    yield parser
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to list them
        if isinstance(action, _SubParsersAction):
            for command in action.choices.values():
                yield from _commands(command)


def _verbatim(text: str) -> str:
    """Escape for roff: backslashes, and dots and quotes at the start of a line; hyphens stay ASCII."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "".join(f"\\&{line}" for line in escaped.splitlines(keepends=True))


class ManPagesAndCompletions(BuildHookInterface[Any]):
    """The hook of hatchling."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's
        """Write the files for the build and name them to it."""
        sys.path.insert(0, self.root)
        self._directory = TemporaryDirectory(prefix="relayd-build-")
        for path, text in files():
            file = Path(self._directory.name, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            build_data["shared_data"][str(file)] = path

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove them."""
        self._directory.cleanup()
