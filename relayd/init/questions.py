"""What a person is asked: again, until the answer can be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from relayd.config import ConfigError, Settings
from relayd.init.desk import Desk

Values = dict[str, object]
"""Configuration by dotted key."""


def asked(known: Mapping[str, object], desk: Desk, settings: Callable[[Values], Settings]) -> Values:
    """What flags left open; Enter keeps the default.

    Args:
        known: what flags said.
        desk: where to ask; without a person there, nothing is asked.
        settings: the values as the daemon would see them; raises ConfigError.

    Raises:
        EOFError: nobody answered.
    """
    usual = settings({})
    found: Values = {}
    if desk.ask is None:
        return found
    if "upstream.base_url" not in known:
        question = f"The provider's address [{usual.upstream.base_url}]: "
        found |= _usable(desk.ask, question, _base_url, desk, settings)
    if "server.port" not in known and "server.host" not in known:
        question = f"Listen on [{usual.server.host}:{usual.server.port}]: "
        found |= _usable(desk.ask, question, _listen, desk, settings)
    return found


def _usable(
    ask: Callable[[str], str],
    question: str,
    read: Callable[[str], Values],
    desk: Desk,
    settings: Callable[[Values], Settings],
) -> Values:
    while True:
        values = read(ask(question).strip())
        try:
            settings(values)
        except ConfigError as error:
            desk.say(f"That can't be used: {error.problems[0].message}")
        else:
            return values


def _base_url(answer: str) -> Values:
    return {"upstream.base_url": answer} if answer else {}


def _listen(answer: str) -> Values:
    """An address, a port, or both: `::1` and `0.0.0.0` are addresses, `8080` is a port."""
    if not answer:
        return {}
    if answer.isdecimal():
        return {"server.port": int(answer)}
    host, colon, port = answer.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        return {"server.host": answer.strip("[]")}
    values: Values = {"server.port": int(port) if port.isdecimal() else port}
    return ({"server.host": host.strip("[]")} if host else {}) | values
