"""The sources of values. Each is read into a layer: dotted key to value, and where it was set."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import tomli
from dotenv.parser import parse_stream
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from relayd.config.errors import did_you_mean, looks_secret
from relayd.config.schema import KEYS, Key, Origin, OriginKind, route_credential
from relayd.config.toml import KeyPath, key_lines, toml_key
from relayd.config.values import ModelName
from relayd.findings import Finding, Severity
from relayd.printable import printable

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
    PREFIX + name.upper().replace(".", "__"): name
    for name, key in KEYS.items()
    if key.in_file and not key.is_table
}
"""Every environment variable that relayd reads, with its dotted key."""
SECRET_FILES = {"openai_api_key_file": "openai_api_key", "state.url_file": "state.url"}
"""The keys that name a file, and the secret that is in it."""
SECRETS = [name for name, key in KEYS.items() if key.secret]

_MAX_FILE_BYTES = 1024 * 1024
_IN_FILE = [key for key in KEYS.values() if key.in_file]
_BY_PATH = {tuple(key.name.split(".")): key for key in _IN_FILE}
_SECTIONS = list(dict.fromkeys(key.section for key in _IN_FILE if key.section))
_TABLES = [key.name for key in _IN_FILE if key.is_table and not key.section]
_MODEL_NAME = FieldInfo.from_annotation(ModelName)
_OURS = re.compile(rf"\b(?:{PREFIX}|{'|'.join(KEPT_NAMES)})")


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of one source, where it was set, and whether numbers and booleans may be text there.

    The value of a table is a dict or a tuple of rows, down to the entries in them.
    """

    key: Key
    value: Any = field(repr=False)
    origin: Origin
    from_text: bool = False


Layer = dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable as found: `place` is `environment` or `.env:3`."""

    text: str = field(repr=False)
    place: str


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a key of relayd.toml and what it holds stand; as text, `relayd.toml:12`."""

    file: str
    lines: Mapping[KeyPath, int]
    path: KeyPath

    def inner(self, *names: str | int) -> _Places:
        return replace(self, path=(*self.path, *names))

    @property
    def origin(self) -> Origin:
        return Origin(OriginKind.FILE, str(self))

    def __str__(self) -> str:
        path = self.path
        while path and path not in self.lines:
            # In an inline list of tables, all stand where the list begins.
            path = path[:-1]
        return f"{self.file}:{self.lines.get(path, 1)}"


class SourceReader:
    """Reads sources into layers, and collects problems and warnings.

    Args:
        cwd: where relative paths begin.
        home: what `~/` stands for.
        credential: the file of a systemd credential, by its name; it need not exist.
    """

    def __init__(
        self, cwd: Path, home: Path, credential: Callable[[str], Path | SecretStr | None] = lambda _name: None
    ) -> None:
        self.problems: list[Finding] = []
        self.warnings: list[str] = []
        self._cwd = cwd
        self._home = home
        self._credential = credential
        # What a user may not enter (sudo -u from /root) holds no configuration of theirs.
        self._may_enter = os.access(cwd, os.X_OK, effective_ids=True)

    def command_line(self, cli: Mapping[str, object]) -> Layer:
        """Read overrides by dotted key; None is not given."""
        origin = Origin(OriginKind.COMMAND_LINE, "command line")
        return {
            name: self._entry(KEYS[name], value, origin, from_text=True)
            for name, value in cli.items()
            if value is not None
        }

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
        # A directory of this name is somebody's Python environment. `Path.is_dir` raises if it may not look.
        if not self._may_enter or not _is_present(path) or os.path.isdir(path):  # noqa: PTH112 - as said
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
        return found

    def find_toml(
        self, config_path: Path | None, variables: Mapping[str, Variable], system_config: Path
    ) -> Path | None:
        """Return the file to read: `--config`, else $RELAYD_CONFIG, else ./relayd.toml, else the system's.

        A file that was named must exist; the other two need not.
        """
        named = variables.get(CONFIG_VARIABLE, Variable("", ""))
        if config_path is not None:
            return self._cwd / config_path
        if named.text:
            return Path(self._path(named.text))
        local = [self._cwd / "relayd.toml"] if self._may_enter else []
        return next((path for path in (*local, system_config) if _is_present(path)), None)

    def toml(self, path: Path) -> Layer:
        """Read relayd.toml; wrong syntax, unknown keys and misplaced secrets are problems."""
        name = self._name(path)
        text = self._read(path, name) or ""
        try:
            document, lines = tomli.loads(text), key_lines(text)
        except tomli.TOMLDecodeError as fault:
            message = printable(fault.msg[0].lower() + fault.msg[1:])
            self._problem(f"{name}:{fault.lineno}:{fault.colno}", f"this is not TOML: {message}.")
            return {}
        except (ValueError, RecursionError):
            # Python's own limits, without a place: a number of thousands of digits, hundreds of brackets.
            self._problem(name, "a number in it is too long, or its brackets are nested too deep.")
            return {}
        paths: list[tuple[tuple[str, ...], Any]] = []
        for top, value in document.items():
            if top in _SECTIONS and isinstance(value, dict):
                paths += [((top, leaf), inner) for leaf, inner in value.items()]
            else:
                paths.append(((top,), value))
        layer: Layer = {}
        for parts, value in paths:
            places = _Places(name, lines, parts)
            key = _BY_PATH.get(parts)
            if key is None:
                self._problem(str(places), _unknown_key(parts, value), ".".join(parts))
            elif key.is_table:
                layer[key.name] = Entry(key, self._table(key, value, places), places.origin)
            else:
                layer[key.name] = self._entry(key, value, places.origin)
        return layer

    def _table(self, key: Key, value: Any, places: _Places) -> Any:
        """Return the rows of a table, or of a list of tables, down to the entries in them."""
        if key.is_list:
            if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
                self._problem(
                    str(places), f"{key.name} must be tables, each written [[{key.name}]].", key.name
                )
                return ()
            self._require_unique(key, [row.get("name") for row in value], places)
            return tuple(
                self._row(key, f"{key.name}[{number}]", row, places.inner(number))
                for number, row in enumerate(value)
            )
        if not isinstance(value, dict):
            self._problem(str(places), f"{key.name} must be a table, written [{key.name}].", key.name)
            return {}
        rows: dict[str, Any] = {}
        for model, row in value.items():
            name, where = f"{key.name}.{toml_key(model)}", places.inner(model)
            inner = Key(name, _MODEL_NAME)
            try:
                inner.check(model, from_text=False)
            except ValidationError:
                self._problem(
                    str(where), f"{_hidden(name)} must name a model: {inner.allowed.text}.", key.name
                )
                continue
            if key.row is None:
                rows[model] = self._entry(inner, row, where.origin)
            elif isinstance(row, dict):
                rows[model] = self._row(key, name, row, where)
            else:
                self._problem(str(where), f"{_hidden(name)} must be a table, written [{name}].", key.name)
        return rows

    def _require_unique(self, key: Key, names: list[Any], places: _Places) -> None:
        for number, name in enumerate(names):
            first = names.index(name)
            if name is not None and first != number:
                message = f"{key.name}[{number}].name is that of {key.name}[{first}], but names must differ."
                self._problem(str(places.inner(number, "name")), message, key.name)

    def _row(self, key: Key, name: str, row: Mapping[str, Any], places: _Places) -> Layer:
        """Return the entries of one table, with the key that its key file or a credential holds."""
        entries: Layer = {}
        for leaf, value in row.items():
            where = places.inner(leaf)
            inner = key.row_keys.get(leaf)
            if inner is None or not inner.in_file:
                self._problem(str(where), _unknown_row_key(key, name, leaf), key.name)
            else:
                entries[leaf] = self._entry(replace(inner, name=f"{name}.{leaf}"), value, where.origin)
        for leaf, inner in key.row_keys.items():
            if inner.field.is_required() and leaf not in row:
                message = f"{name} lacks {leaf}, which must be {inner.allowed.text}."
                self._problem(str(places), message, key.name)
        secret = key.row_keys.get("openai_api_key")
        if secret is not None:
            entries |= self._route_key(replace(secret, name=f"{name}.openai_api_key"), entries)
        return entries

    def _route_key(self, secret: Key, route: Layer) -> Layer:
        found = self._key_file(secret, route.get("openai_api_key_file"))
        name = route.get("name")
        if not found and name is not None and isinstance(name.value, str) and "/" not in name.value:
            found = self._credential_entry(secret, route_credential(name.value))
        return {} if found is None else {"openai_api_key": found}

    def credentials(self) -> Layer:
        """Read the secrets that systemd passed as credentials, by their keys' names."""
        layer: Layer = {}
        for name in SECRETS:
            found = self._credential_entry(KEYS[name], name)
            layer |= {} if found is None else {name: found}
        return layer

    def _credential_entry(self, key: Key, name: str) -> Entry | None:
        """Return the secret of a credential; None if it is not passed."""
        found = self._credential(name)
        if isinstance(found, SecretStr):
            return Entry(key, found, Origin(OriginKind.CREDENTIAL, "systemd"))
        if found is None or not _is_present(found):
            return None
        return self._secret_file(key, found, self._name(found), OriginKind.CREDENTIAL)

    def key_file(self, name: str, named: Entry | None) -> Layer:
        """Read the file that contains only this secret."""
        found = self._key_file(KEYS[name], named)
        return {} if found is None else {name: found}

    def _key_file(self, key: Key, named: Entry | None) -> Entry | None:
        if named is None or not isinstance(named.value, Path):
            return None
        # The place to change is where the file was named.
        return self._secret_file(key, named.value, named.origin.place, OriginKind.KEY_FILE)

    def _secret_file(self, key: Key, path: Path, place: str, kind: OriginKind) -> Entry | None:
        text = self._read(path, place, key.name)
        return (
            None
            if text is None
            else Entry(key, SecretStr(text.rstrip("\r\n")), Origin(kind, self._name(path)))
        )

    def _entry(self, key: Key, value: Any, origin: Origin, *, from_text: bool = False) -> Entry:
        """Convert the written value to the form that the key's check expects."""
        if isinstance(value, str):
            if key.secret:
                value = SecretStr(value)
            elif key.is_path:
                value = self._path(value) if value or key.field.is_required() else None
            elif key.is_list and from_text:
                value = _list_from_text(value.strip())
        if key.is_list and isinstance(value, list):
            value = tuple(value)
        return Entry(key, value, origin, from_text and not key.is_path)

    def _path(self, text: str) -> Path | str:
        """Return the absolute path of a text, or the text itself if it is not a path."""
        if not text or "\0" in text or (text.startswith("~") and text[1:2] not in {"", "/"}):
            return text
        return self._home / text[1:].lstrip("/") if text.startswith("~") else self._cwd / text

    def _name(self, path: Path) -> str:
        """Return a path as messages show it: short if it is under the working directory."""
        is_near = path.is_relative_to(self._cwd) and self._cwd != Path("/")
        return printable(str(path.relative_to(self._cwd) if is_near else path))

    def _read(self, path: Path, place: str, key: str = "") -> str | None:
        """Return the text of a small regular file; None, and a problem, if it cannot be read or trusted."""
        try:
            # What is opened is what is judged. A pipe does not block the open.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    # A pipe could block the daemon, and is empty when SIGHUP reads it again.
                    reason = "is not a regular file"
                elif status.st_size > _MAX_FILE_BYTES:
                    reason = f"is larger than {_MAX_FILE_BYTES} bytes"
                elif (distrust := _distrust(path, status)) is not None:
                    reason = distrust
                else:
                    with open(descriptor, encoding="utf-8-sig", closefd=False) as file:
                        return file.read()
            finally:
                os.close(descriptor)
        except UnicodeDecodeError:
            reason = "is not UTF-8 text"
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
        name = self._name(path)
        self._problem(place, f"{'this file' if name == place else name} {reason}.", key)
        return None

    def _problem(self, where: str, message: str, key: str = "") -> None:
        self.problems.append(Finding(Severity.ERROR, where, message, key=key))


def _is_present(path: Path) -> bool:
    """Return whether the path exists or may exist; reading it shows what is wrong with it."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def _distrust(path: Path, status: os.stat_result) -> str | None:
    """Return why a file is not trusted with the provider's key, and what to do; None if it is trusted.

    As ssh asks of its own (ssh_config(5)): it belongs to root or to this user, and only its owner writes it.
    """
    shown = printable(str(path))
    if status.st_uid not in {0, os.geteuid()}:
        return (
            f"belongs to another user (uid {status.st_uid}), who could redirect the provider's key; "
            f"check what it says, then sudo chown {os.geteuid()} {shown}"
        )
    group_writes = status.st_mode & stat.S_IWGRP and not _is_private_group(status.st_uid, status.st_gid)
    if status.st_mode & stat.S_IWOTH or group_writes:
        return (
            f"may be written by other users (mode {stat.S_IMODE(status.st_mode):04o}), who could redirect "
            f"the provider's key; check what it says, then chmod go-w {shown}"
        )
    return None


def _is_private_group(uid: int, gid: int) -> bool:
    """Return whether a group is its owner's alone: Debian and Fedora let it write its owner's files."""
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and user.pw_gid == gid and not set(group.gr_mem) - {user.pw_name}


def is_world_readable(path: Path) -> bool:
    """Return whether the file's mode lets every user of the machine read it."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _list_from_text(text: str) -> Any:
    if not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _unknown_variable(name: str) -> str:
    secret = name.removeprefix(PREFIX)
    meant = secret if secret in KEPT_NAMES else did_you_mean(name, [*VARIABLES, CONFIG_VARIABLE])
    names = "the names are RELAYD_<SECTION>__<KEY> and RELAYD_<KEY>."
    return f"unknown variable {printable(name)}; {f'did you mean {meant}?' if meant else names}"


def _hidden(name: str) -> str:
    """Return a name as messages show it."""
    return "(hidden)" if looks_secret(name) else printable(name[:100])


def _unknown_row_key(key: Key, row: str, leaf: str) -> str:
    """Return what is wrong with a key that a row of a table cannot have, and which one was meant."""
    if leaf in key.row_keys or leaf.lower() in key.row_keys:
        return (
            f"{leaf.lower()} does not belong in this file; name a file that contains it: openai_api_key_file."
        )
    known = [name for name, inner in key.row_keys.items() if inner.in_file]
    near = did_you_mean(leaf, known)
    hint = f"did you mean {near}?" if near else f"it has {', '.join(known)}."
    return f"unknown key {_hidden(f'{row}.{leaf}')}; {hint}"


def _unknown_key(path: Sequence[str], value: object) -> str:
    """Return what is wrong with a key that relayd.toml cannot have, and which one was meant."""
    section, name = path[0] if len(path) > 1 else "", path[-1]
    said = _hidden(".".join(path))
    if KEPT_NAMES.get(name.upper()) in SECRETS:
        return f"{name.lower()} does not belong in this file; put {name.upper()} in the environment or .env."
    if name in _SECTIONS and not section:
        return f"{name} must be a table, written [{name}]."
    if not section and isinstance(value, dict):
        tables = [*_SECTIONS, *_TABLES]
        near = did_you_mean(name, tables)
        hint = f"did you mean [{near}]?" if near else f"there are [{'], ['.join(tables)}]."
        return f"unknown section {said}; {hint}"
    # The same name elsewhere, or one spelt nearly so in this section.
    own = {key.leaf: key.name for key in _IN_FILE if key.section == section}
    elsewhere = {key.leaf: key.name for key in _IN_FILE} | KEPT_NAMES
    near = did_you_mean(name, own)
    meant = own[near] if near else elsewhere.get(name)
    if meant:
        return f"unknown key {said}; did you mean {meant}?"
    known = f"[{section}] has {', '.join(own)}"
    if not section:
        known = (
            f"there are {', '.join([*(leaf for leaf in own if leaf not in _TABLES), *_SECTIONS, *_TABLES])}"
        )
    return f"unknown key {said}; {known}."
