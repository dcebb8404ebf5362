"""A Dockerfile as a list of stages: enough of its language for the one in docs/deploy, strictly."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

_WORDS = re.compile(r"(?P<word>[A-Z]+)\s+(?P<rest>.*)", re.DOTALL)
_KNOWN = frozenset(
    {"CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "USER", "VOLUME", "WORKDIR"}
)


class NotUnderstood(Exception):
    """An instruction that is none, or that is not used here; the text names it."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One of them: `RUN`, and what follows it."""

    word: str
    rest: str

    @property
    def words(self) -> list[str]:
        """What follows, as an exec form's list or as words."""
        if self.rest.startswith("["):
            return [str(word) for word in json.loads(self.rest)]
        return self.rest.split()


@dataclass(slots=True)
class Stage:
    """One image of the file."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, word: str) -> Instruction | None:
        """The one that counts, where a later one replaces an earlier."""
        return next((step for step in reversed(self.instructions) if step.word == word), None)

    def environment(self) -> dict[str, str]:
        """All of its ENV."""
        pairs = [pair for step in self.instructions if step.word == "ENV" for pair in step.words]
        return dict(pair.split("=", 1) for pair in pairs)


def parse(text: str) -> list[Stage]:
    """The stages, in order.

    Raises:
        NotUnderstood: something that this does not know.
    """
    stages: list[Stage] = []
    for line in _logical_lines(text):
        found = _WORDS.fullmatch(line)
        if found is None or found["word"] not in _KNOWN:
            raise NotUnderstood(line)
        step = Instruction(found["word"], found["rest"].strip())
        if step.word == "FROM":
            base, *named = step.words
            if named and named[0] != "AS":
                raise NotUnderstood(line)
            stages.append(Stage(base, named[1] if named else ""))
        elif not stages:
            raise NotUnderstood(f"{line}: before any FROM")
        else:
            stages[-1].instructions.append(step)
    return stages


def _logical_lines(text: str) -> list[str]:
    kept = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [line.strip() for line in "\n".join(kept).replace("\\\n", " ").splitlines() if line.strip()]


def ignores(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """A .dockerignore of the kind that shuts out everything and lets some in: those, and what stays out."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    if lines[0] != "*":
        raise NotUnderstood("the first line must shut out everything")
    return (
        frozenset(line[1:] for line in lines if line.startswith("!")),
        frozenset(line for line in lines[1:] if not line.startswith("!")),
    )


def dockerfile(top: Path) -> Path:
    """Where it is."""
    return top / "docs" / "deploy" / "Dockerfile"
