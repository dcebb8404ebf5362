"""What a row is: a function that attacks, and says what it saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Seen:
    """The figures in words, and whether the bound held."""

    words: str
    held: bool


class Row(Protocol):
    """One attack, in an empty directory, at a share of its full size."""

    __name__: str

    async def __call__(self, home: Path, size: float) -> Seen:
        """Attack and measure."""
        ...
