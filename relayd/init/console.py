"""Where `init` asks and answers, and the questions that it asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from relayd.config import ConfigError, Settings

Values = dict[str, object]
"""Configuration by dotted key."""


class InitError(Exception):
    """`init` cannot go on; nothing was changed unless the text says so."""


@dataclass(frozen=True, slots=True)
class Console:
    """Where `init` reads and writes.

    Attributes:
        env: the environment.
        cwd: where relayd.toml goes.
        out: where messages go.
        ask: asks a question and returns the answer; None if there is no person to answer.
        ask_secret: the same, without showing what is typed.
        read_stdin: returns all of stdin, for `--key-file -`.
    """

    env: Mapping[str, str]
    cwd: Path
    out: TextIO
    ask: Callable[[str], str] | None
    ask_secret: Callable[[str], str]
    read_stdin: Callable[[], str]

    def say(self, line: str = "") -> None:
        """Write a line to the person."""
        self.out.write(line + "\n")


def ask_settings(
    known: Mapping[str, object], console: Console, check: Callable[[Values], Settings]
) -> Values:
    """Ask for what flags left open; Enter keeps the default, an unusable answer is asked again.

    Args:
        known: what flags said.
        console: where to ask; without a person there, nothing is asked.
        check: returns the settings with these values, or raises ConfigError.

    Raises:
        EOFError: an answer is missing.
    """
    defaults = check({})
    found: Values = {}
    if console.ask is None:
        return found
    if "upstream.base_url" not in known:
        question = f"The provider's address [{defaults.upstream.base_url}]: "
        found |= _ask(console, console.ask, question, _parse_base_url, check)
    if "server.port" not in known and "server.host" not in known:
        question = f"Listen on [{defaults.server.host}:{defaults.server.port}]: "
        found |= _ask(console, console.ask, question, _parse_listen, check)
    return found


def _ask(
    console: Console,
    ask: Callable[[str], str],
    question: str,
    parse: Callable[[str], Values],
    check: Callable[[Values], Settings],
) -> Values:
    while True:
        values = parse(ask(question).strip())
        try:
            check(values)
        except ConfigError as error:
            console.say(f"That cannot be used: {error.problems[0].message}")
        else:
            return values


def _parse_base_url(answer: str) -> Values:
    return {"upstream.base_url": answer} if answer else {}


def _parse_listen(answer: str) -> Values:
    """Read an address, a port, or both: `::1` and `0.0.0.0` are addresses, `8080` is a port."""
    if not answer:
        return {}
    if answer.isdecimal():
        return {"server.port": int(answer)}
    host, colon, port = answer.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        return {"server.host": answer.strip("[]")}
    values: Values = {"server.port": int(port) if port.isdecimal() else port}
    return ({"server.host": host.strip("[]")} if host else {}) | values
