"""Reads every source, checks every value, and merges them into `Settings`.

Sources, weakest first: defaults, systemd credentials, relayd.toml, `.env`, environment, command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from relayd.config.checks import cautions, conflicts
from relayd.config.errors import ConfigError, did_you_mean, shown
from relayd.config.schema import KEYS, Key, Origin, OriginKind, Settings
from relayd.config.sources import SECRETS, SYSTEM_CONFIG, Entry, Layer, SourceReader, Variable, nested
from relayd.findings import Finding, Severity
from relayd.paths import default_state_dir, home_dir


def load(
    *,
    config_path: Path | None,
    cli: Mapping[str, object],
    env: Mapping[str, str],
    cwd: Path,
    system_config: Path = SYSTEM_CONFIG,
) -> Settings:
    """Read, check and merge every source.

    Only these arguments, the files that they name, and the machine's users and groups are looked at.

    Args:
        config_path: `--config`.
        cli: overrides by dotted key (`{"server.port": 0}`); None is not given.
        env: the environment.
        cwd: where `.env`, relayd.toml and relative paths are looked for.
        system_config: read if there is no other relayd.toml.

    Raises:
        ConfigError: the configuration cannot be used; it lists every problem.
    """
    reader = SourceReader(cwd.absolute(), home_dir(env))
    environ = {name: Variable(text, "environment") for name, text in env.items()}
    dotenv = reader.dotenv()
    path = reader.find_toml(config_path, dotenv | environ, system_config)
    layers = [
        reader.command_line(cli),
        reader.variables(environ, OriginKind.ENVIRONMENT),
        reader.variables(dotenv, OriginKind.DOTENV),
        reader.toml(path) if path else {},
        reader.credentials(env),
    ]
    reader.add_key_file(layers)
    warnings = [*reader.warnings, *_unused_secrets(layers)]
    # Each source is checked by itself: a wrong value is a problem even if a stronger source hides it.
    faults = [fault for layer in reversed(layers) for fault in _remove_faulty(layer)]
    layers.append(_derived(layers, env))
    settings = _merge(layers, path)
    problems = [*reader.problems, *faults, *conflicts(settings, {fault.key for fault in faults})]
    if problems:
        raise ConfigError(problems)
    settings._warnings = (*warnings, *cautions(settings))  # noqa: SLF001 - as in _merge
    return settings


def _merge(layers: Sequence[Layer], path: Path | None) -> Settings:
    """Merge layers, strongest first."""
    merged: Layer = {}
    for layer in reversed(layers):
        merged |= layer
    settings = Settings.model_validate(nested((name, entry.value) for name, entry in merged.items()))
    default = Origin(OriginKind.DEFAULT, "default")
    settings._origins = {name: merged[name].origin if name in merged else default for name in KEYS}  # noqa: SLF001 - set once, here
    settings._config_file = path  # noqa: SLF001 - as above
    return settings


def _derived(layers: Sequence[Layer], env: Mapping[str, str]) -> Layer:
    """Return the defaults that depend on the machine: the state directory, and the socket in it."""
    default, variable = default_state_dir(env)
    kind = OriginKind.DEFAULT if variable == "HOME" else OriginKind.ENVIRONMENT
    layer = {"state_dir": Entry(default, None, Origin(kind, "environment", variable))}
    state_dir = next(found["state_dir"].value for found in (*layers, layer) if "state_dir" in found)
    layer["admin.socket"] = Entry(state_dir / "admin.sock", None, Origin(OriginKind.DEFAULT, "default"))
    return layer


def _unused_secrets(layers: Sequence[Layer]) -> Iterator[str]:
    """Yield a warning for each secret that is set twice: the unused one may be the one that was intended."""
    for name in SECRETS:
        places = [str(layer[name].origin) for layer in layers if name in layer]
        if len(places) > 1:
            yield f"{name} comes from {places[0]}; the one from {' and '.join(places[1:])} is not used."


def _remove_faulty(layer: Layer) -> Iterator[Finding]:
    """Check each value, yield the problems, and remove those values from the layer."""
    for name, entry in list(layer.items()):
        try:
            KEYS[name].check(entry.value)
        except ValidationError as error:
            del layer[name]
            for detail in error.errors(include_url=False, include_input=False):
                yield _problem(KEYS[name], entry, detail)


def _problem(key: Key, entry: Entry, detail: Mapping[str, Any]) -> Finding:
    """Say where a value was set, what it is and what it must be."""
    # In a list, the last part of the place is the item's number.
    index = detail["loc"][-1] if detail["loc"] else None
    subject = key.name if index is None else f"{key.name}[{index}]"
    if entry.origin.variable:
        subject = f"{entry.origin.variable} ({subject})"
    value = None if key.secret else shown(entry.raw if index is None else entry.value[index])
    said = f"{subject} must be" if value is None else f"{subject} is {value}, but must be"
    allowed = key.allowed.text if index is None else key.allowed.item
    hint = _hint(key, detail, entry.raw)
    end = "" if hint.endswith("?") else "."
    message = f"{said} {allowed}{hint and '; '}{hint}{end}"
    return Finding(Severity.ERROR, entry.origin.place, message, key=key.name)


def _hint(key: Key, detail: Mapping[str, Any], raw: object) -> str:
    """Return what the value's own check adds, or the allowed word nearest to the one given."""
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if detail["type"] == "literal_error" and isinstance(raw, str):
        meant = did_you_mean(raw.lower(), get_args(key.field.annotation))
        return f'did you mean "{meant}"?' if meant else ""
    return ""
