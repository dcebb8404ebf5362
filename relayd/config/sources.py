"""The sources of values. Each is read into a layer: dotted key to value, and where it was set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import tomli
from dotenv.parser import parse_stream
from pydantic import SecretStr, TypeAdapter, ValidationError

from relayd.config.errors import did_you_mean, looks_secret
from relayd.config.files import FileError, is_present, is_world_readable, read_text
from relayd.config.schema import KEYS, Key, Kind, Origin, OriginKind
from relayd.config.toml import KeyPath, key_lines
from relayd.findings import Finding, Severity
from relayd.printable import printable

FILE_NAME = "relayd.toml"
SYSTEM_CONFIG = Path("/etc/relayd/relayd.toml")
PREFIX = "RELAYD_"
CONFIG_VARIABLE = "RELAYD_CONFIG"
KEPT_NAMES = {
    "OPENAI_API_KEY": "openai_api_key",
    "AUTHORIZATION_KEY": "authorization_key",
    "SERVER_PORT": "server.port",
}
"""Variables kept from the system that relayd replaces."""
VARIABLES: Mapping[str, str] = KEPT_NAMES | {
    PREFIX + name.upper().replace(".", "__"): name for name, key in KEYS.items() if not key.secret
}
"""Every environment variable that relayd reads, with its dotted key."""
SECRETS = [name for name, key in KEYS.items() if key.secret]

_SECTIONS = list(dict.fromkeys(key.section for key in KEYS.values() if key.section))
_OURS = re.compile(rf"\b(?:{PREFIX}|{'|'.join(KEPT_NAMES)})")
_FROM_TEXT: Mapping[Kind, TypeAdapter[Any]] = {
    "int": TypeAdapter(int),
    "float": TypeAdapter(float),
    "bool": TypeAdapter(bool),
}
# tomli's three most frequent messages, as what was done wrong.
_TOMLI_MESSAGES = {
    "Cannot declare": "this table stands twice",
    "Cannot overwrite a value": "this key or table stands twice",
    "Invalid value": "a value is missing or misspelt (text needs quotes)",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of one source: as the settings take it, as it was written, and where."""

    value: Any = field(repr=False)
    raw: Any = field(repr=False)
    origin: Origin


Layer = dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable as found: `place` is `environment` or `.env:3`."""

    text: str = field(repr=False)
    place: str


class SourceReader:
    """Reads sources into layers, and collects what is wrong or doubtful on the way.

    Args:
        cwd: where relative paths begin.
        home: what `~/` stands for.
    """

    def __init__(self, cwd: Path, home: Path) -> None:
        self.problems: list[Finding] = []
        self.warnings: list[str] = []
        self._cwd = cwd
        self._home = home

    def command_line(self, cli: Mapping[str, object]) -> Layer:
        """Read overrides by dotted key; None is not given. Secrets are refused: arguments are public."""
        layer: Layer = {}
        origin = Origin(OriginKind.COMMAND_LINE, "command line")
        for name, value in cli.items():
            key = KEYS.get(name)
            if key is None or key.secret:
                self._problem("command line", f"{printable(name)} cannot be set here.", name)
            elif value is not None:
                raw = str(value) if isinstance(value, Path) else value
                layer[name] = self._entry(key, raw, origin, from_text=True)
        return layer

    def variables(self, found: Mapping[str, Variable], kind: OriginKind) -> Layer:
        """Read variables into a layer. An unknown RELAYD_ name is a problem; other names are not ours.

        An empty kept name counts as unset: compose files and unit files pass such names on. In the same
        source, RELAYD_SERVER__PORT beats SERVER_PORT.
        """
        layer: Layer = {}
        for name, variable in sorted(found.items(), key=lambda item: item[0].startswith(PREFIX)):
            dotted = VARIABLES.get(name)
            if dotted is None:
                if name.startswith(PREFIX) and name != CONFIG_VARIABLE:
                    self._problem(variable.place, _unknown_variable(name))
            elif variable.text or name not in KEPT_NAMES:
                origin = Origin(kind, variable.place, name)
                layer[dotted] = self._entry(KEYS[dotted], variable.text, origin, from_text=True)
        return layer

    def dotenv(self) -> dict[str, Variable]:
        """Return the variables of `.env` in the working directory. `$NAME` in a value stays as it is.

        An unreadable line is a problem if it is about relayd, else a warning: the file may be shared.
        """
        path = self._cwd / ".env"
        if not path.is_file():
            return {}
        found: dict[str, Variable] = {}
        for binding in parse_stream(StringIO(self._read(path, ".env") or "")):
            # The parser counts from the blank lines before the binding.
            text = binding.original.string
            blank = text[: len(text) - len(text.lstrip())]
            place = f".env:{binding.original.line + blank.count(chr(10))}"
            if binding.error and _OURS.search(text):
                self._problem(place, "this line cannot be read; write NAME=value, with quotes closed.")
            elif binding.error:
                self.warnings.append(f"{place}: this line cannot be read and was ignored.")
            elif binding.key is not None and binding.value is not None:
                found[binding.key] = Variable(binding.value, place)
        secret = next((name for name in KEPT_NAMES if KEPT_NAMES[name] in SECRETS and name in found), None)
        if secret and found[secret].text and is_world_readable(path):
            self.warnings.append(
                f"{found[secret].place}: every user of this machine can read {secret}; chmod 600 .env."
            )
        return found

    def find_toml(
        self, config_path: Path | None, variables: Mapping[str, Variable], system_config: Path
    ) -> Path | None:
        """Return the file to read: `--config`, else $RELAYD_CONFIG, else ./relayd.toml, else the system's.

        A file that was named must exist; the other two need not.
        """
        variable = variables.get(CONFIG_VARIABLE)
        if config_path is not None:
            path, place, named_by = self._cwd / config_path, "command line", "--config"
        elif variable is not None and variable.text:
            path = Path(self._path(variable.text) or variable.text)
            place, named_by = variable.place, CONFIG_VARIABLE
        else:
            return next((path for path in (self._cwd / FILE_NAME, system_config) if is_present(path)), None)
        if is_present(path):
            return path
        self._problem(place, f"{named_by} names {self._name(path)}, which does not exist.")
        return None

    def toml(self, path: Path) -> Layer:
        """Read relayd.toml; wrong syntax, unknown keys and misplaced secrets are problems."""
        name = self._name(path)
        text = self._read(path, name)
        document = self._parse_toml((text or "").replace("\r\n", "\n"), name)
        return {} if document is None else self._toml_layer(*document, name)

    def _parse_toml(self, text: str, name: str) -> tuple[dict[str, Any], dict[KeyPath, int]] | None:
        try:
            return tomli.loads(text), key_lines(text)
        except tomli.TOMLDecodeError as fault:
            said = next(
                (ours for begin, ours in _TOMLI_MESSAGES.items() if fault.msg.startswith(begin)), None
            )
            message = said or printable(fault.msg[0].lower() + fault.msg[1:])
            self._problem(f"{name}:{fault.lineno}:{fault.colno}", f"this is not TOML: {message}.")
        except (ValueError, RecursionError):
            # Python's own limits, without a place: a number of thousands of digits, hundreds of brackets.
            self._problem(name, "a number in it is too long, or its brackets are nested too deep.")
        return None

    def _toml_layer(self, document: dict[str, Any], lines: Mapping[KeyPath, int], name: str) -> Layer:
        layer: Layer = {}
        paths: list[tuple[KeyPath, Any]] = []
        for top, value in document.items():
            if top not in _SECTIONS:
                paths.append(((top,), value))
            elif isinstance(value, dict):
                paths += [((top, leaf), inner) for leaf, inner in value.items()]
            else:
                self._problem(
                    f"{name}:{lines.get((top,), 1)}", f"{top} must be a table, written [{top}].", top
                )
        for path, value in paths:
            place = f"{name}:{lines.get(path, 1)}"
            key = None if any("." in part for part in path) else KEYS.get(".".join(path))
            kept = path[-1].upper()
            if KEPT_NAMES.get(kept) in SECRETS:
                self._problem(place, _misplaced_secret(kept), ".".join(path))
            elif key is None:
                self._problem(place, _unknown_key(path, value), ".".join(path))
            else:
                layer[key.name] = self._entry(key, value, Origin(OriginKind.FILE, place))
        return layer

    def credentials(self, env: Mapping[str, str]) -> Layer:
        """Read the secrets that systemd passes (systemd.exec(5), LoadCredential=), each by its key's name."""
        layer: Layer = {}
        directory = env.get("CREDENTIALS_DIRECTORY", "")
        for name in SECRETS if directory else ():
            path = self._cwd / directory / name
            if is_present(path):
                text = self._read(path, self._name(path), name)
                if text is not None:
                    layer[name] = _secret(text, Origin(OriginKind.CREDENTIAL, self._name(path)))
        return layer

    def add_key_file(self, layers: Sequence[Layer]) -> None:
        """Read the file that the strongest `openai_api_key_file` names into its layer.

        So the key ranks with the source that named the file; OPENAI_API_KEY in the same source beats it.

        Args:
            layers: strongest first.
        """
        layer = next((layer for layer in layers if "openai_api_key_file" in layer), {})
        named = layer.get("openai_api_key_file")
        if named is None or not isinstance(named.value, Path):
            return
        name = self._name(named.value)
        try:
            text = read_text(named.value)
        except FileError as fault:
            # The place to change is where the file was named.
            self._problem(named.origin.place, f"openai_api_key_file {name} {fault}.", "openai_api_key_file")
            return
        if is_world_readable(named.value):
            self.warnings.append(f"{name}: every user of this machine can read this key; chmod 600 it.")
        if "openai_api_key" in layer:
            used = layer["openai_api_key"].origin
            self.warnings.append(f"openai_api_key comes from {used}; openai_api_key_file is not used.")
        else:
            layer["openai_api_key"] = _secret(text, Origin(OriginKind.KEY_FILE, name))

    def _entry(self, key: Key, raw: Any, origin: Origin, *, from_text: bool = False) -> Entry:
        """Convert what was written to what the settings take; what cannot be converted stays as it is.

        Args:
            key: the key.
            raw: its value as the source has it.
            origin: where it was set.
            from_text: numbers, booleans and lists may come as text.
        """
        value: Any = raw
        if not isinstance(raw, str):
            value = tuple(raw) if key.kind == "list" and isinstance(raw, list) else raw
        elif key.kind == "path":
            value = self._path(raw)
        elif key.secret:
            return Entry(SecretStr(raw), None, origin)
        elif from_text:
            value = _from_text(key.kind, raw)
            raw = value if key.kind in {"int", "float"} else raw
        return Entry(value, raw, origin)

    def _path(self, text: str) -> Path | str | None:
        """Return the absolute path that a text means, None for "", or the text itself if it is no path."""
        if not text:
            return None
        if "\0" in text or (text.startswith("~") and text[1:2] not in {"", "/"}):
            return text
        return self._home / text[1:].lstrip("/") if text.startswith("~") else self._cwd / text

    def _name(self, path: Path) -> str:
        """Return a path as messages show it: short if it is under the working directory."""
        return printable(str(path.relative_to(self._cwd) if path.is_relative_to(self._cwd) else path))

    def _read(self, path: Path, name: str, key: str = "") -> str | None:
        try:
            return read_text(path)
        except FileError as fault:
            self._problem(name, f"this file {fault}.", key)
            return None

    def _problem(self, where: str, message: str, key: str = "") -> None:
        self.problems.append(Finding(Severity.ERROR, where, message, key=key))


def _secret(text: str, origin: Origin) -> Entry:
    return Entry(SecretStr(text.rstrip("\r\n")), None, origin)


def _from_text(kind: Kind, text: str) -> Any:
    if kind == "list":
        return _list_from_text(text.strip())
    try:
        return _FROM_TEXT[kind].validate_python(text) if kind in _FROM_TEXT else text
    except ValidationError:
        return text


def _list_from_text(text: str) -> Any:
    if not text.startswith("["):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return tuple(json.loads(text))
    except (ValueError, RecursionError):
        return text


def _unknown_variable(name: str) -> str:
    secret = next((kept for kept in KEPT_NAMES if name == PREFIX + kept), None)
    meant = secret or did_you_mean(name, [*VARIABLES, CONFIG_VARIABLE])
    names = "the names are RELAYD_<SECTION>__<KEY>, or RELAYD_<KEY> at the top."
    return f"unknown variable {printable(name)}; {f'did you mean {meant}?' if meant else names}"


def _misplaced_secret(variable: str) -> str:
    other = ", or the path of a file in openai_api_key_file" if variable == "OPENAI_API_KEY" else ""
    return (
        f"{variable.lower()} does not belong in this file; put {variable} in the environment or .env{other}."
    )


def _unknown_key(path: KeyPath, value: object) -> str:
    """Return the message for a key or section that does not exist, with the one that was meant."""
    section, name = path[0] if len(path) > 1 else "", path[-1]
    dotted = ".".join(path)
    said = "(hidden)" if looks_secret(dotted) else printable(dotted[:100])
    sections = [f"[{known}]" for known in _SECTIONS]
    if not section and isinstance(value, dict):
        near = did_you_mean(name, _SECTIONS)
        hint = f"did you mean [{near}]?" if near else f"there are {', '.join(sections)}."
        return f"unknown section {said}; {hint}"
    in_file = [key for key in KEYS.values() if not key.secret]
    own = {key.leaf: key.name for key in in_file if key.section == section}
    # A name spelt nearly so in this section, else in another, else a variable's name.
    by_leaf = {key.leaf: key.name for key in in_file} | own
    near = did_you_mean(name, own) or did_you_mean(name, by_leaf)
    meant = by_leaf[near] if near else KEPT_NAMES.get(name.upper())
    if meant:
        return f"unknown key {said}; did you mean {meant}?"
    known = f"[{section}] has {', '.join(own)}" if section else f"there are {', '.join([*own, *sections])}"
    return f"unknown key {said}; {known}."


def nested(flat: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Turn dotted keys into the tables that the settings are made of."""
    tree: dict[str, Any] = {}
    for name, value in flat:
        section, _, leaf = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[leaf] = value
    return tree
