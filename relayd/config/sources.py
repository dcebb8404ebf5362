"""Where values come from. Each source is read into a layer: dotted key to value, and where it stood."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream
from pydantic import SecretStr

from relayd.config.errors import Findings, Problem, did_you_mean
from relayd.config.files import Here, is_regular, read_text, world_readable
from relayd.config.sections import Key, Kind
from relayd.printable import printable

PREFIX = "RELAYD_"
CONFIG_VARIABLE = "RELAYD_CONFIG"
KEPT_NAMES = {
    "OPENAI_API_KEY": "openai_api_key",
    "AUTHORIZATION_KEY": "authorization_key",
    "SERVER_PORT": "server.port",
}
"""Variables kept from the system that relayd replaces."""

_WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_INT = re.compile(r"[+-]?[0-9]{1,18}")
_FLOAT = re.compile(r"[+-]?(?:[0-9]{1,18}\.?[0-9]{0,18}|\.[0-9]{1,18})")
_OURS = re.compile(rf"\b(?:{PREFIX}|{'|'.join(KEPT_NAMES)})")


class OriginKind(StrEnum):
    """Which kind of source a value has, weakest first."""

    DEFAULT = "default"
    CREDENTIAL = "systemd credential"
    KEY_FILE = "key file"
    FILE = "file"
    DOTENV = ".env"
    ENVIRONMENT = "environment"
    COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value stood: `place` is a file and line or a source's name, `variable` an environment name."""

    kind: OriginKind
    place: str
    variable: str = ""

    def __str__(self) -> str:
        return f"{self.place} {self.variable}".rstrip()


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of one source: as the settings take it, and as it was written."""

    value: Any = field(repr=False)
    raw: Any = field(repr=False)
    origin: Origin


Layer = dict[str, Entry]


def entry(key: Key, raw: object, origin: Origin, here: Here, *, text: bool) -> Entry:
    """Turn what was written into what the settings take. `text`: numbers and lists may come as strings.

    What cannot be turned stays as it is, for the check of the value to refuse.
    """
    value: Any = raw
    if key.kind == "path" and isinstance(raw, str):
        value = here.path(raw)
    elif key.kind == "list" and isinstance(raw, list):
        value = tuple(raw)
    elif key.secret and isinstance(raw, str):
        return Entry(SecretStr(raw), None, origin)
    elif text and isinstance(raw, str):
        value = _from_text(key.kind, raw)
        if key.kind in {"int", "float"}:
            raw = value  # a number is shown as one, not as the text it came in
    return Entry(value, raw, origin)


def _from_text(kind: Kind, text: str) -> Any:
    word = text.strip()
    if kind in {"int", "float"} and _INT.fullmatch(word):
        return int(word)
    if kind == "float" and _FLOAT.fullmatch(word):
        return float(word)
    if kind == "bool":
        return _WORDS.get(word.lower(), text)
    if kind == "list":
        return _list_from_text(word)
    return text


def _list_from_text(text: str) -> Any:
    if not text.startswith("["):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return tuple(items)


def variables_of(keys: Mapping[str, Key]) -> dict[str, str]:
    """Every environment variable that relayd reads, by name, with its dotted key."""
    ours = {PREFIX + name.upper().replace(".", "__"): name for name, key in keys.items() if not key.secret}
    return KEPT_NAMES | ours


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable as found: `place` is `environment` or `.env:3`."""

    text: str = field(repr=False)
    place: str


def layer_of_variables(
    found: Mapping[str, Variable], kind: OriginKind, keys: Mapping[str, Key], here: Here, findings: Findings
) -> Layer:
    """Read variables into a layer. An unknown RELAYD_ name is a problem; other unknown names are not ours.

    An empty kept name is as good as unset: compose files and unit files pass such names on. Beside
    RELAYD_SERVER__PORT in the same source, SERVER_PORT does not count.
    """
    known = variables_of(keys)
    layer: Layer = {}
    for name, variable in sorted(found.items(), key=lambda item: item[0].startswith(PREFIX)):
        dotted = known.get(name)
        if dotted is None:
            if name.startswith(PREFIX) and name != CONFIG_VARIABLE:
                findings.problems.append(Problem(variable.place, _unknown_variable(name, known)))
        elif variable.text or name not in KEPT_NAMES:
            origin = Origin(kind, variable.place, name)
            layer[dotted] = entry(keys[dotted], variable.text, origin, here, text=True)
    return layer


def _unknown_variable(name: str, known: Mapping[str, str]) -> str:
    secret = next((kept for kept in KEPT_NAMES if name == PREFIX + kept), None)
    meant = secret or did_you_mean(name, [*known, CONFIG_VARIABLE])
    hint = (
        f"did you mean {meant}?"
        if meant
        else "the names are RELAYD_<SECTION>__<KEY>, or RELAYD_<KEY> at the top."
    )
    return f"unknown variable {printable(name)}; {hint}"


def environment(env: Mapping[str, str]) -> dict[str, Variable]:
    """The process's environment, in the shape that `.env` has."""
    return {name: Variable(text, "environment") for name, text in env.items()}


def dotenv(here: Here, findings: Findings) -> dict[str, Variable]:
    """The variables of `.env` in the working directory, if there is one. `$NAME` in a value stays as it is.

    A line that cannot be read is a problem when it is about relayd, else a warning: the file may be shared.
    """
    path = here.cwd / ".env"
    text = read_text(path, ".env", findings) if is_regular(path) else None
    found: dict[str, Variable] = {}
    for binding in parse_stream(StringIO(text or "")):
        # The parser counts from the blank lines before the binding.
        lead = binding.original.string
        place = f".env:{binding.original.line + lead[: len(lead) - len(lead.lstrip())].count(chr(10))}"
        if binding.error and _OURS.search(binding.original.string):
            findings.problems.append(
                Problem(place, "this line cannot be read; write NAME=value, with quotes closed.")
            )
        elif binding.error:
            findings.warnings.append(f"{place}: this line cannot be read and was ignored.")
        elif binding.key is not None and binding.value is not None:
            found[binding.key] = Variable(binding.value, place)
    _warn_of_open_secrets(path, found, findings)
    return found


def _warn_of_open_secrets(path: Path, found: Mapping[str, Variable], findings: Findings) -> None:
    secrets = [name for name in ("OPENAI_API_KEY", "AUTHORIZATION_KEY") if name in found and found[name].text]
    if secrets and world_readable(path):
        place, name = found[secrets[0]].place, secrets[0]
        findings.warnings.append(f"{place}: every user of this machine can read {name}; chmod 600 .env.")


def layer_of_command_line(
    cli: Mapping[str, object], keys: Mapping[str, Key], here: Here, findings: Findings
) -> Layer:
    """Read overrides given as dotted keys; None is not given. Secrets are refused: arguments are public."""
    layer: Layer = {}
    origin = Origin(OriginKind.COMMAND_LINE, "command line")
    for name, value in cli.items():
        key = keys.get(name)
        if key is None or key.secret:
            findings.problems.append(Problem("command line", f"{printable(name)} cannot be set here.", name))
        elif value is not None:
            raw = (
                str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            )
            layer[name] = entry(key, raw, origin, here, text=True)
    return layer


def nested(layers: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Dotted keys to the nested tables that pydantic-settings merges."""
    tree: dict[str, Any] = {}
    for name, value in layers:
        section, _, key = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[key] = value
    return tree
