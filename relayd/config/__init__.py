"""The configuration: `load` gives checked `Settings`, or a `ConfigError` that says everything that is wrong.

Sources, weakest first: defaults, systemd credentials, relayd.toml, `.env`, environment, command line.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from relayd.config.checks import cautions, misfits
from relayd.config.errors import ConfigError, Findings, Problem, did_you_mean, in_order, shown
from relayd.config.files import Here
from relayd.config.live import LiveDiff, live_changes
from relayd.config.secrets import credentials, fill_from_key_file, warn_of_hidden_keys
from relayd.config.sections import (
    AdminSettings,
    ChatSettings,
    CorsSettings,
    Key,
    KeysSettings,
    LogSettings,
    ServerSettings,
    TlsSettings,
    UpstreamSettings,
)
from relayd.config.settings import KEYS, Settings
from relayd.config.sources import (
    Entry,
    Layer,
    Origin,
    OriginKind,
    dotenv,
    environment,
    layer_of_command_line,
    layer_of_variables,
)
from relayd.config.toml import SYSTEM_CONFIG, find_config, read_toml

__all__ = [
    "KEYS",
    "AdminSettings",
    "ChatSettings",
    "ConfigError",
    "CorsSettings",
    "Key",
    "KeysSettings",
    "LiveDiff",
    "LogSettings",
    "Origin",
    "OriginKind",
    "Problem",
    "ServerSettings",
    "Settings",
    "TlsSettings",
    "UpstreamSettings",
    "live_changes",
    "load",
]

# What a layer must have beside it to be checked alone: keys without a fixed default.
_STAND_IN = {
    name: Entry(Path("/"), None, Origin(OriginKind.DEFAULT, "")) for name in ("state_dir", "admin.socket")
}


def load(
    *,
    config_path: Path | None,
    cli: Mapping[str, object],
    env: Mapping[str, str],
    cwd: Path,
    system_config: Path = SYSTEM_CONFIG,
) -> Settings:
    """Read, merge and check every source.

    `config_path` is `--config`; `cli` holds overrides by dotted key (`{"server.port": 0}`), None: not given.
    Nothing but these arguments, the files they lead to and the machine's users and groups is looked at.

    Raises:
        ConfigError: the configuration cannot be used; it lists every problem.
    """
    findings = Findings()
    here = Here(cwd.absolute(), _home(env))
    environ, dotenv_file = environment(env), dotenv(here, findings)
    path = find_config(config_path, dotenv_file | environ, here, system_config, findings)
    file = read_toml(path, KEYS, here, findings) if path else {}
    layers = [
        layer_of_command_line(cli, KEYS, here, findings),
        layer_of_variables(environ, OriginKind.ENVIRONMENT, KEYS, here, findings),
        layer_of_variables(dotenv_file, OriginKind.DOTENV, KEYS, here, findings),
        file,
        credentials(env, here, findings),
    ]
    fill_from_key_file(layers, here, findings)
    warn_of_hidden_keys(layers, findings)
    faulty = [name for layer in reversed(layers) for name in _drop_faulty(layer, findings)]
    layers.append(_worked_out(layers, env, here))
    settings = Settings(layers)
    findings.problems.extend(misfits(settings, faulty))
    if findings.problems:
        raise ConfigError(in_order(findings.problems))
    return Settings(layers, path, (*findings.warnings, *cautions(settings)))


def _home(env: Mapping[str, str]) -> Path:
    named = Path(env.get("HOME", ""))
    if named.is_absolute():
        return named
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path("/")


def _drop_faulty(layer: Layer, findings: Findings) -> Iterator[str]:
    """Check a layer by itself, so that a wrong value is told even where a stronger source hides it.

    Faulty values leave the layer, that the rest can be checked as a whole; their names are yielded.
    """
    try:
        Settings([layer, _STAND_IN])
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    else:
        return
    for detail in details:
        name, index = _place(detail["loc"])
        findings.problems.append(_problem(KEYS[name], layer[name], index, _hint(detail, layer[name].raw)))
    for name in dict.fromkeys(_place(detail["loc"])[0] for detail in details):
        del layer[name]
        yield name


def _place(loc: Sequence[int | str]) -> tuple[str, int | None]:
    """The dotted key and, inside a list, the item."""
    index = loc[-1] if isinstance(loc[-1], int) else None
    return ".".join(part for part in loc if isinstance(part, str)), index


def _hint(detail: Mapping[str, Any], raw: object) -> str:
    """What a value's own check adds, or the allowed word nearest to the one given."""
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if detail["type"] == "literal_error" and isinstance(raw, str):
        meant = did_you_mean(raw.lower(), re.findall(r"'(\w+)'", detail["ctx"]["expected"]))
        return f'did you mean "{meant}"?' if meant else ""
    return ""


def _problem(key: Key, entry: Entry, index: int | None, hint: str) -> Problem:
    subject = key.name if index is None else f"{key.name}[{index}]"
    if entry.origin.variable:
        subject = f"{entry.origin.variable} ({subject})"
    value = None if key.secret else shown(entry.raw if index is None else entry.value[index])
    said = f"{subject} must be" if value is None else f"{subject} is {value}, but must be"
    allowed = key.allowed if index is None else key.allowed_item
    end = "" if hint.endswith("?") else "."
    return Problem(entry.origin.place, f"{said} {allowed}{hint and '; '}{hint}{end}", key.name)


def _worked_out(layers: Sequence[Layer], env: Mapping[str, str], here: Here) -> Layer:
    """The defaults that depend on the machine: where state is kept, and the socket in it."""
    layer = {"state_dir": _default_state_dir(env, here)}
    chosen = next(found["state_dir"].value for found in (*layers, layer) if "state_dir" in found)
    layer["admin.socket"] = Entry(chosen / "admin.sock", None, Origin(OriginKind.DEFAULT, "default"))
    return layer


def _default_state_dir(env: Mapping[str, str], here: Here) -> Entry:
    # systemd's variable may list several directories: the first is the service's own.
    # A relative XDG_STATE_HOME is to be ignored, says its specification.
    for variable, text, inside in (
        ("STATE_DIRECTORY", env.get("STATE_DIRECTORY", "").split(":")[0], ""),
        ("XDG_STATE_HOME", env.get("XDG_STATE_HOME", ""), "relayd"),
    ):
        if Path(text).is_absolute():
            return Entry(Path(text) / inside, None, Origin(OriginKind.ENVIRONMENT, "environment", variable))
    home = here.home / ".local/state/relayd"
    return Entry(home, None, Origin(OriginKind.DEFAULT, "environment", "HOME"))
