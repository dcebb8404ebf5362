"""The servers whose daemons the app can show: how they are named, and why one can't be reached."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

MAX_REMEMBERED = 20
_HEADER_WIDTH = 24
_HOST = re.compile(
    r"(?P<destination>(?:[^\s/]+@)?(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s@:/\[\]]+))(?::(?P<port>\d{1,5}))?"
)
_MAX_PORT = 65_535


class HostError(Exception):
    """A server's daemon can't be reached by ssh; the text is a sentence for the operator.

    Args:
        text: what happened and what to do.
        needs_person: whether only a person can mend it, so that trying again by itself is of no use.
    """

    def __init__(self, text: str, *, needs_person: bool = False) -> None:
        super().__init__(text)
        self.needs_person = needs_person


@dataclass(frozen=True, slots=True)
class Host:
    """A server as ssh is asked for it, or this machine."""

    destination: str = ""
    """`user@server`, `server`, or a name of ssh's configuration; empty: this machine."""
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the server of `[user@]server[:port]`; an IPv6 address is in brackets.

        Raises:
            ValueError: the sentence says how servers are written.
        """
        found = _HOST.fullmatch(text.strip())
        # ssh takes a name that begins with a dash for an option.
        if found is None or found["destination"].startswith("-") or not found["destination"].isprintable():
            raise ValueError(
                "Write a server as ssh takes it: [user@]server[:port], such as ada@vps1.example.org"
            )
        port = None if found["port"] is None else int(found["port"])
        if port is not None and not 1 <= port <= _MAX_PORT:
            raise ValueError(f"A port is a number from 1 to {_MAX_PORT}.")
        return cls(found["destination"], port)

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        return not self.destination

    @property
    def server(self) -> str:
        """The server's name alone, for the header."""
        return self.destination.rpartition("@")[2]

    @property
    def arguments(self) -> list[str]:
        """The server as arguments of ssh."""
        user, at, server = self.destination.rpartition("@")
        port = [] if self.port is None else ["-p", str(self.port)]
        return [*port, f"{user}{at}{server.strip('[]')}"]

    def __str__(self) -> str:
        return "this machine" if self.is_here else f"{self.destination}{f':{self.port}' if self.port else ''}"


HERE = Host()


def known_hosts(given: Iterable[Host], remembered: Iterable[str]) -> list[Host]:
    """Return this machine, the servers of the command line, then those of earlier runs, each once."""
    hosts = [HERE, *given]
    for text in remembered:
        try:
            hosts.append(Host.parse(text))
        except ValueError:
            # A person may edit the file.
            continue
    return list(dict.fromkeys(hosts))


def remembered(host: Host, before: Iterable[str]) -> list[str]:
    """Return the servers to remember, with this one first."""
    return list(dict.fromkeys([str(host), *before]))[:MAX_REMEMBERED]


def shortened(name: str) -> str:
    """Return a machine's name as the header has room for it."""
    return name if len(name) <= _HEADER_WIDTH else f"{name[: _HEADER_WIDTH - 1]}…"
