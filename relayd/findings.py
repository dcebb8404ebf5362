"""What a check found: one type and one form for `relayd check`, `doctor` and `init`."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TextIO

from relayd.printable import typeable

_MARK_COLUMNS = 9
_WHERE_COLUMNS = 14


class Severity(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        severity: whether something has to be changed.
        where: what the message is about: a check (`streaming`) or a place (`relayd.toml:12`).
        message: what was seen, in one sentence. Never holds a secret.
        remedy: what to change and where; empty if nothing is wrong or the message says it.
        key: the configuration key concerned (`server.port`), or empty.
    """

    severity: Severity
    where: str
    message: str
    remedy: str = ""
    key: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"

    def as_text(self) -> str:
        """Return one line for the terminal, and a second one if there is a remedy."""
        mark = self.severity.upper() if self.severity is Severity.ERROR else self.severity
        line = f"{mark:<{_MARK_COLUMNS}}{self.where:<{_WHERE_COLUMNS}}{self.message}\n"
        if not self.remedy:
            return line
        return f"{line}{'':<{_MARK_COLUMNS + _WHERE_COLUMNS}}-> {typeable(self.remedy)}\n"

    def as_json(self) -> dict[str, str]:
        """Return the finding as programs read it."""
        return asdict(self)


def ok(where: str, message: str) -> Finding:
    """Return a finding that needs no change."""
    return Finding(Severity.OK, where, message)


def warning(where: str, message: str, remedy: str) -> Finding:
    """Return a finding that may be intended."""
    return Finding(Severity.WARNING, where, message, remedy)


def error(where: str, message: str, remedy: str) -> Finding:
    """Return a finding that has to be changed."""
    return Finding(Severity.ERROR, where, message, remedy)


def skipped(where: str, message: str) -> Finding:
    """Return a finding about a check that was not made."""
    return Finding(Severity.SKIPPED, where, message)


async def collect(findings: AsyncIterable[Finding], out: TextIO | None) -> list[Finding]:
    """Return all findings, and show each on `out` as soon as it is made."""
    found = []
    async for finding in findings:
        found.append(finding)
        if out is not None:
            out.write(finding.as_text())
            out.flush()
    return found


def has_errors(findings: Iterable[Finding]) -> bool:
    """Return whether anything has to be changed."""
    return any(finding.severity is Severity.ERROR for finding in findings)


class CheckFailed(Exception):
    """An error after which no further check can be made; `finding` is to be shown."""

    def __init__(self, where: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.finding = error(where, message, remedy)
