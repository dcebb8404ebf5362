"""The systemd service that reads a relayd.toml: the environment and credentials that it gives its daemon."""

from __future__ import annotations

import re
import shlex
import stat
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from dotenv import dotenv_values
from pydantic import SecretStr

from relayd.config.sources import SECRETS

_SHOWN = (
    *("ExecStart", "Environment", "EnvironmentFiles", "StateDirectory", "WorkingDirectory"),
    *("TriggeredBy", "Listen"),
)
_LISTEN = re.compile(r"\[?([^]]*)\]?:(\d+) \(Stream\)")
_TIMEOUT_S = 10.0
_CREDENTIAL_LINE = re.compile(
    r"(?:(Load|Set)Credential(Encrypted)?|(Import)Credential)\s*=\s*([^:]*)(?::(.*))?"
)
# Where a name without an absolute path is looked for.
_STORES = ("/etc/credstore", "/run/credstore", "/usr/lib/credstore")
# systemd.syntax(7): \n, \x41, \101 and their like.
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|([0-7]{3})|(.))")
_CONTROL = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}


@dataclass(frozen=True, slots=True)
class InstalledService:
    """What systemd gives the daemon of a unit.

    Attributes:
        unit: `relayd.service`.
        env: its environment, as far as it concerns the configuration.
        cwd: its working directory.
        credentials: where its credentials come from, by their names.
        listening: addresses of the sockets that systemd opens for it.
        hidden: its files of environment variables that this user may not read; `env` is without them.
    """

    unit: str
    env: Mapping[str, str]
    cwd: Path
    credentials: Mapping[str, Credential]
    listening: Sequence[tuple[str, int]]
    hidden: Sequence[Path]


def installed_service(config: Path) -> InstalledService | None:
    """Return the service that reads this file; None if none is installed, or systemd does not run.

    `/etc/relayd/relayd.toml` belongs to relayd.service, `/etc/relayd/team.toml` to relayd@team.service.
    """
    unit = "relayd.service" if config.stem == "relayd" else f"relayd@{config.stem}.service"
    shown = _properties(unit)
    if f" --config {config} " not in "".join(shown["ExecStart"]):
        return None
    env: dict[str, str] = {}
    for name in "".join(shown["StateDirectory"]).split()[:1]:
        env["STATE_DIRECTORY"] = f"/var/lib/{name}"
    for assignment in shlex.split(" ".join(shown["Environment"])):
        name, _, value = assignment.partition("=")
        env[name] = value
    hidden = []
    for file in shown["EnvironmentFiles"]:
        path = Path(file.rpartition(" (")[0])
        try:
            env |= _environment_file(path)
        except PermissionError:
            hidden.append(path)
    sockets = [name for name in "".join(shown["TriggeredBy"]).split() if name.endswith(".socket")]
    return InstalledService(
        unit,
        env,
        Path("".join(shown["WorkingDirectory"]) or "/"),
        unit_credentials(_systemctl("cat", unit), unit.partition("@")[2].removesuffix(".service"), SECRETS),
        [
            (address[1], int(address[2]))
            for name in sockets
            for listen in _properties(name)["Listen"]
            if (address := _LISTEN.fullmatch(listen))
        ],
        hidden,
    )


def _environment_file(path: Path) -> dict[str, str]:
    """Return the variables in a file; none if it is not there. Raises PermissionError."""
    try:
        # Path.is_file() in a directory that is closed to this user: an error in Python 3.11, False in 3.14.
        if not stat.S_ISREG(path.stat().st_mode):
            return {}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found = dotenv_values(path, interpolate=False)
    return {name: value for name, value in found.items() if value is not None}


def _properties(unit: str) -> Mapping[str, list[str]]:
    """Return the values of each property of a unit; empty if it is not there."""
    values = defaultdict[str, list[str]](list)
    for line in _systemctl("show", unit, f"--property={','.join(_SHOWN)}"):
        name, _, value = line.partition("=")
        values[name].append(value)
    return values


def _systemctl(*words: str) -> list[str]:
    """Return the lines of systemctl's answer; none if it has none."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed words, and a unit's name
            ["systemctl", "--no-pager", *words],  # noqa: S607 - found as the person's shell finds it
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines()


class DecryptionError(Exception):
    """An encrypted credential cannot be decrypted; the text has the reason."""


@dataclass(frozen=True, slots=True)
class Credential:
    """Where one credential comes from.

    Attributes:
        line: the line of the unit without its value, such as `LoadCredential=openai_api_key`.
        file: its file, or that of the unit if the unit has its text; None if it cannot be told.
        text: what the unit has of it; None if it is in `file`.
        is_encrypted: whether it must be decrypted, which only root can.
    """

    line: str
    file: Path | None
    text: SecretStr | None = None
    is_encrypted: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether its file is not there."""
        try:
            if self.file is not None and self.text is None:
                self.file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            pass
        return False

    def decrypt(self, name: str) -> SecretStr:
        """Return what is encrypted; needs root. Raises DecryptionError."""
        try:
            done = subprocess.run(  # noqa: S603 - fixed words, a name and a path
                ["systemd-creds", "decrypt", f"--name={name}", "-" if self.text else str(self.file), "-"],  # noqa: S607 - found like systemctl
                input=self.text.get_secret_value() if self.text else "",
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise DecryptionError(f"systemd-creds: {error}") from error
        if done.returncode:
            reason = " ".join(done.stderr.split())
            raise DecryptionError(reason or f"systemd-creds ended with status {done.returncode}")
        return SecretStr(done.stdout.rstrip("\r\n"))


@dataclass(slots=True)
class _Unit:
    """What the lines read so far name."""

    instance: str
    loaded: dict[str, Credential] = field(default_factory=dict)
    texts: dict[str, Credential] = field(default_factory=dict)

    def add(self, file: Path, line: re.Match[str], known: Sequence[str]) -> None:
        kind, encrypted, imports, name, value = line.groups()
        of_kind = self.texts if kind == "Set" else self.loaded
        name = name.strip()
        if imports:
            matched = (known_name for known_name in known if fnmatchcase(known_name, name))
            self.loaded |= {one: Credential(f"ImportCredential={name}", None) for one in matched}
        elif not name:
            of_kind.clear()  # an empty assignment resets the list
        else:
            shown = f"{kind}Credential{encrypted or ''}={name}"
            self._add(Credential(shown, file, None, encrypted is not None), name, value or "", of_kind)

    def _add(self, source: Credential, name: str, value: str, of_kind: dict[str, Credential]) -> None:
        is_encrypted = source.is_encrypted
        expanded = value if of_kind is self.texts and is_encrypted else self._expanded(value)
        if expanded is None:
            of_kind[name] = Credential(source.line, None, None, is_encrypted)
        elif of_kind is self.texts:
            text = "".join(value.split()) if is_encrypted else _unescaped(expanded)
            of_kind[name] = Credential(source.line, source.file, SecretStr(text), is_encrypted)
        elif expanded.startswith("/"):
            of_kind[name] = Credential(source.line, Path(expanded), None, is_encrypted)
        else:
            # It may be in none: then there is no such credential, and the service starts.
            of_kind.pop(name, None)
            for path in (Path(store, expanded or name) for store in _stores(encrypted=is_encrypted)):
                found = Credential(source.line, path, None, path.parent.suffix != "")
                if not found.is_missing:
                    of_kind[name] = found

    def _expanded(self, value: str) -> str | None:
        """Return a value with `%i` and `%%` replaced; None if it has another specifier (systemd.unit(5))."""
        parts = re.split(r"%(.)", value)
        known = {"i": self.instance, "%": "%"}
        if any(specifier not in known for specifier in parts[1::2]):
            return None
        return "".join(known[part] if odd % 2 else part for odd, part in enumerate(parts))


def unit_credentials(lines: Iterable[str], instance: str, known: Sequence[str]) -> Mapping[str, Credential]:
    """Return a unit's credentials by name, from what `systemctl cat` prints.

    Args:
        lines: `systemctl show` cannot print credentials (systemd 252).
        instance: what `%i` stands for.
        known: the names that `ImportCredential=` may bring.
    """
    unit = _Unit(instance)
    for file, line in _joined(lines):
        if found := _CREDENTIAL_LINE.fullmatch(line):
            unit.add(file, found, known)
    # A text in the unit is the default for a file that is not there.
    unit.loaded = {
        name: one for name, one in unit.loaded.items() if not (name in unit.texts and one.is_missing)
    }
    return unit.texts | unit.loaded


def _joined(lines: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Yield the lines with the file of each; one that ends with a single backslash goes on."""
    file, line = Path("/"), ""
    for piece in lines:
        if piece.startswith(("#", ";")):  # also between the parts of a line
            file = Path(piece[2:]) if piece.startswith("# /") else file
            continue
        line += piece.strip()
        if (len(line) - len(line.rstrip("\\"))) % 2:
            line = line[:-1] + " "
        else:
            yield file, line.strip()
            line = ""


def _stores(*, encrypted: bool) -> Iterator[str]:
    """Yield where to look, the place that wins last."""
    yield from reversed(_STORES)
    yield from (f"{store}.encrypted" for store in reversed(_STORES) if encrypted)


def _unescaped(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        if found[3]:
            return _CONTROL.get(found[3], found[3])
        return chr(int(found[1], 16) if found[1] else int(found[2], 8))

    return _ESCAPE.sub(character, text)
