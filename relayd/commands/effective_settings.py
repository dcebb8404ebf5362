"""The settings that the daemon of this machine has: those of its service, if one is installed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from relayd.commands.installed_service import DecryptionError, InstalledService, installed_service
from relayd.config import ConfigError, Settings, find_config, load
from relayd.config.schema import route_credential
from relayd.config.sources import SECRETS, SYSTEM_CONFIG
from relayd.findings import Finding, Severity
from relayd.printable import printable
from relayd.state.errors import StateError


@dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """Settings, the service that they are of, and the credentials that are not in them.

    Attributes:
        settings: what the daemon would have.
        service: whose they are, if one is installed.
        hidden: the credentials that this user may not read, by name.
        unknown: lines of the unit for credentials whose value cannot be told.
    """

    settings: Settings
    service: InstalledService | None
    hidden: Mapping[str, Path]
    unknown: Sequence[str] = ()

    @property
    def hidden_files(self) -> Sequence[Path]:
        """The credentials and files of environment variables that this user may not read."""
        return [*self.hidden.values(), *(self.service.hidden if self.service else ())]


def load_effective(config: Path | None, socket: str | None = None) -> EffectiveSettings:
    """Load the settings as the daemon would.

    If the file is that of an installed service, the settings are those of the service: its environment and
    credentials.

    Args:
        config: `--config`.
        socket: `--socket`.

    Raises:
        ConfigError: they can't be used.
    """
    overrides = {} if socket is None else {"admin.socket": socket}
    cwd = Path.cwd()
    path = find_config(config, os.environ, cwd)
    service = installed_service(path) if path is not None and path.parent == SYSTEM_CONFIG.parent else None
    if service is None:
        return EffectiveSettings(load(config_path=config, cli=overrides, env=os.environ, cwd=cwd), None, {})
    found = _credentials(service)
    try:
        settings = load(
            config_path=path,
            cli=overrides,
            env=service.env,
            cwd=service.cwd,
            listening=service.listening,
            credentials=found.readable,
        )
    except ConfigError as error:
        raise ConfigError([*found.problems, *error.problems]) from error
    if found.problems:
        raise ConfigError(found.problems)
    return EffectiveSettings(settings, service, found.hidden, found.unknown)


@dataclass(slots=True)
class _Credentials:
    """The credentials of a service, as far as this user may see them."""

    readable: dict[str, Path | SecretStr] = field(default_factory=dict)
    hidden: dict[str, Path] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    """Lines of the unit whose value cannot be told."""
    problems: list[Finding] = field(default_factory=list)


def _credentials(service: InstalledService) -> _Credentials:
    found = _Credentials()
    for name, credential in service.credentials.items():
        if credential.is_missing and credential.file is not None:
            found.problems.append(_missing(service.unit, name, credential.file))
        elif name not in SECRETS and not _is_route_key(name):  # the daemon reads no others
            continue
        elif credential.file is None:
            found.unknown.append(credential.line)
        elif credential.is_encrypted and os.geteuid() != 0:
            found.hidden[name] = credential.file
        elif credential.is_encrypted:
            try:
                found.readable[name] = credential.decrypt(name)
            except DecryptionError as error:
                where = printable(str(credential.file))
                message = f"{name} in {where} cannot be decrypted: {printable(str(error))}"
                found.problems.append(Finding(Severity.ERROR, service.unit, message, key=name))
        elif credential.text is not None:
            found.readable[name] = credential.text
        elif _is_hidden(credential.file):
            found.hidden[name] = credential.file
        else:
            found.readable[name] = credential.file
    return found


def _missing(unit: str, name: str, file: Path) -> Finding:
    """Return the problem that the file of a credential is not there."""
    remedy = ", or run sudo relayd init --system" if name == "openai_api_key" else ""
    message = f"{printable(str(file))} is missing; the service cannot start: make it{remedy}."
    return Finding(Severity.ERROR, unit, message, key=name)


def _is_hidden(file: Path) -> bool:
    """Return whether this user has no permission to read a file; any other fault is for `load` to report."""
    try:
        file.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(file, os.R_OK, effective_ids=True)


def _is_route_key(credential: str) -> bool:
    """Return whether a credential is the provider's key of a route."""
    return credential.startswith(route_credential(""))


def check_database(effective: EffectiveSettings) -> list[Finding]:
    """Look at the database that several machines share; nothing is found if there is none. Blocks."""
    url = effective.settings.state.url.get_secret_value()
    if not url:
        return []
    # psycopg takes memory and time, and few need it.
    from relayd.commands.check_engine import check_engine  # noqa: PLC0415 - as said
    from relayd.state.postgres import Postgres  # noqa: PLC0415 - as said

    try:
        with closing(Postgres(url)) as engine:
            return list(check_engine(engine))
    except StateError as fault:
        return [Finding(Severity.ERROR, "database", str(fault), key="state.url")]
