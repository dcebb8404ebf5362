"""Reads every source, checks every value, and merges them into `Settings`.

Sources, weakest first: defaults, systemd credentials, relayd.toml, `.env`, environment, command line.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from relayd.config.errors import ConfigError, shown
from relayd.config.schema import COMMAND, KEYS, Origin, OriginKind, Settings
from relayd.config.sources import (
    SECRET_FILES,
    SECRETS,
    SYSTEM_CONFIG,
    Entry,
    Layer,
    SourceReader,
    Variable,
    is_world_readable,
)
from relayd.config.toml import nested
from relayd.files import SOCKET, default_state_dir, home_dir
from relayd.findings import Finding, Severity
from relayd.printable import printable

_MAX_SOCKET_PATH_BYTES = 107
"""sun_path of unix(7) is 108 bytes with its closing NUL."""
_PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")
_PROXY_TIMEOUT_S = 60
"""After this silence nginx and most load balancers give up, unless told otherwise."""


def load(
    *,
    config_path: Path | None,
    cli: Mapping[str, object],
    env: Mapping[str, str],
    cwd: Path,
    system_config: Path = SYSTEM_CONFIG,
    listening: Sequence[tuple[str, int]] = (),
    credentials: Mapping[str, Path | SecretStr] | None = None,
) -> Settings:
    """Read, check and merge every source.

    Only these arguments, the files that they name, and the machine's users and groups are looked at.

    Args:
        config_path: `--config`.
        cli: overrides by dotted key (`{"server.port": 0}`); None is not given.
        env: the environment.
        cwd: where `.env`, relayd.toml and relative paths are looked for.
        system_config: read if there is no other relayd.toml.
        listening: addresses of the sockets that systemd opens for the daemon, instead of `server.port`.
        credentials: files, or what is in them, by their keys' names; None: those in $CREDENTIALS_DIRECTORY.

    Raises:
        ConfigError: the configuration cannot be used; it lists every problem.
    """
    cwd = cwd.absolute()
    credential = _credentials(env, cwd) if credentials is None else credentials.get
    reader = SourceReader(cwd, home_dir(env), credential)
    environ = {name: Variable(text, "environment") for name, text in env.items()}
    dotenv = reader.dotenv()
    path = reader.find_toml(config_path, dotenv | environ, system_config)
    weakest_first = [
        reader.credentials(),
        reader.toml(path) if path else {},
        reader.variables(dotenv, OriginKind.DOTENV),
        reader.variables(environ, OriginKind.ENVIRONMENT),
        reader.command_line(cli),
    ]
    layers = _with_key_files(weakest_first, reader)
    # Each source is checked by itself: a wrong value is a problem even if a stronger source hides it.
    checked = [_checked(layer, reader.problems) for layer in layers]
    if reader.problems:
        raise ConfigError(reader.problems)
    settings = _merge([_derived(checked, env), *checked], path)
    if conflicts := list(_conflicts(settings)):
        raise ConfigError(conflicts)
    cautions = (
        *_cautions(settings, cwd, listening),
        *_upstream_cautions(settings),
        *_ignored_proxies(settings, dotenv | environ),
    )
    settings._warnings = (*reader.warnings, *_unused_secrets(layers), *cautions)  # noqa: SLF001 - as in _merge
    return settings


def find_config(config_path: Path | None, env: Mapping[str, str], cwd: Path) -> Path | None:
    """Return the relayd.toml that `load` would read, or None."""
    reader = SourceReader(cwd, home_dir(env))
    environ = {name: Variable(text, "environment") for name, text in env.items()}
    return reader.find_toml(config_path, reader.dotenv() | environ, SYSTEM_CONFIG)


def _credentials(env: Mapping[str, str], cwd: Path) -> Callable[[str], Path | SecretStr | None]:
    """Return where systemd puts what it passes (systemd.exec(5), LoadCredential=), by name."""
    directory = env.get("CREDENTIALS_DIRECTORY")
    return lambda name: cwd / directory / name if directory else None


def _with_key_files(layers: Sequence[Layer], reader: SourceReader) -> list[Layer]:
    """Add the secret of the strongest key that names its file, just below the layer that does."""
    result = list(layers)
    for file_key, secret in SECRET_FILES.items():
        for number, layer in reversed(list(enumerate(result))):
            if file_key in layer:
                result.insert(number, reader.key_file(secret, layer[file_key]))
                break
    return result


def _derived(layers: Sequence[Layer], env: Mapping[str, str]) -> Layer:
    """Return the defaults that depend on the machine: the state directory, and the socket in it."""
    default, variable = default_state_dir(env)
    kind = OriginKind.DEFAULT if variable == "HOME" else OriginKind.ENVIRONMENT
    layer = {"state_dir": Entry(KEYS["state_dir"], default, Origin(kind, "environment", variable))}
    state_dir = next(found["state_dir"].value for found in (*reversed(layers), layer) if "state_dir" in found)
    socket = KEYS["admin.socket"]
    layer[socket.name] = Entry(socket, state_dir / SOCKET, Origin(OriginKind.DEFAULT, "default"))
    return layer


def _checked(layer: Layer, problems: list[Finding]) -> Layer:
    """Return the layer with its values as the settings hold them; add what is wrong to `problems`."""
    return {name: replace(entry, value=_check(entry, problems)) for name, entry in layer.items()}


def _check(node: Any, problems: list[Finding]) -> Any:
    """Return a value, or the rows of a table, checked; None for what is wrong."""
    match node:
        case dict():
            return {name: _check(inner, problems) for name, inner in node.items()}
        case tuple():
            return tuple(_check(inner, problems) for inner in node)
    if node.key.is_table:
        return _check(node.value, problems)
    try:
        return node.key.check(node.value, from_text=node.from_text)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        problems += [_problem(node, detail) for detail in details]
        return None


def _problem(entry: Entry, detail: Mapping[str, Any]) -> Finding:
    """Say where a value was set, what it is and what it must be."""
    key = entry.key
    # In a list, the last part of the place is the item's number.
    index = detail["loc"][-1] if detail["loc"] else None
    subject = key.name if index is None else f"{key.name}[{index}]"
    if entry.origin.variable:
        subject = f"{entry.origin.variable} ({subject})"
    is_hidden = key.secret or key.name == COMMAND
    value = None if is_hidden else shown(entry.value if index is None else entry.value[index])
    said = f"{subject} must be" if value is None else f"{subject} is {value}, but must be"
    allowed = key.allowed.text if index is None else key.allowed.item
    hint = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else ""
    return _error(entry.origin, key.name, f"{said} {allowed}{hint and '; '}{hint}.")


def _error(origin: Origin, key: str, message: str) -> Finding:
    return Finding(Severity.ERROR, origin.place, message, key=key)


def _merge(layers: Sequence[Layer], path: Path | None) -> Settings:
    """Merge checked layers, weakest first."""
    merged: Layer = {}
    for layer in layers:
        merged |= layer
    settings = Settings.model_validate(nested((name, entry.value) for name, entry in merged.items()))
    default = Origin(OriginKind.DEFAULT, "default")
    settings._origins = {name: merged[name].origin if name in merged else default for name in KEYS}  # noqa: SLF001 - set once, here
    settings._config_file = path  # noqa: SLF001 - as above
    return settings


def _conflicts(settings: Settings) -> Iterator[Finding]:
    """Yield what is wrong between keys."""
    origins, tls = settings.origins, settings.tls
    if (tls.cert is None) != (tls.key is None):
        name, other = ("tls.key", "tls.cert") if tls.cert is None else ("tls.cert", "tls.key")
        message = f"{name} is set but {other} is not; TLS needs both, plain HTTP neither."
        yield _error(origins[name], name, message)
    length = len(os.fsencode(settings.admin.socket))
    if length > _MAX_SOCKET_PATH_BYTES:
        is_set = origins["admin.socket"].kind is not OriginKind.DEFAULT
        cause = "admin.socket" if is_set else "state_dir"
        limit = f"is {length} bytes long, but must be at most {_MAX_SOCKET_PATH_BYTES}"
        yield _error(origins[cause], cause, f"the path of admin.socket {limit}; set a shorter {cause}.")


def _has_password(url: SecretStr) -> bool:
    text = url.get_secret_value()
    return ":" in text.partition("://")[2].rpartition("@")[0] or "password=" in text


def _unused_secrets(layers: Sequence[Layer]) -> Iterator[str]:
    """Yield a warning for each secret that is set twice: perhaps the unused one was intended."""
    for name in SECRETS:
        places = [str(layer[name].origin) for layer in reversed(layers) if name in layer]
        if len(places) > 1:
            yield f"{name} comes from {places[0]}; the one from {' and '.join(places[1:])} is not used."


def _cautions(settings: Settings, cwd: Path, listening: Sequence[tuple[str, int]]) -> Iterator[str]:
    """Yield sentences about what works but is probably not intended."""
    server, upstream, chat = settings.server, settings.upstream, settings.chat
    hosts = [host for host, _ in listening] or [server.host]
    if listening:
        yield from _unused_address(settings, listening)
    in_dotenv = any(settings.origins[name].kind is OriginKind.DOTENV for name in SECRETS)
    route_files = [route.openai_api_key_file for route in upstream.route]
    named = (settings.tls.key, settings.openai_api_key_file, settings.state.url_file)
    secret_files = (*named, cwd / ".env" if in_dotenv else None)
    for path in (*secret_files, *route_files):
        if path is not None and is_world_readable(path):
            yield f"{printable(str(path))}: every user of this machine can read this key; chmod 600 it."
    path = settings.config_file
    for name, whose in (("upstream.proxy", "the proxy's"), ("state.url", "the database's")):
        is_in_file = settings.origins[name].kind is OriginKind.FILE
        if is_in_file and _has_password(settings.value(name)) and path and is_world_readable(path):
            yield (
                f"{printable(str(path))}: every user of this machine can read {whose} password;"
                f" close it to others, or set RELAYD_{name.upper().replace('.', '__')} instead."
            )
    for host in () if settings.tls.cert else hosts:
        if not _is_loopback(host):
            name = "ListenStream=" if listening else "server.host "
            yield (
                f"{name}{host} is open to the network without TLS:"
                " keys and texts can be read in transit; set tls.cert and tls.key, or listen on 127.0.0.1"
                " behind a proxy."
            )
    if chat.heartbeat_s >= _PROXY_TIMEOUT_S:
        yield (
            f"chat.heartbeat_s {chat.heartbeat_s:g} is long:"
            f" many proxies give up after {_PROXY_TIMEOUT_S} s; set a shorter one."
        )
    if chat.allowed_models and chat.default_model not in chat.allowed_models:
        yield (
            f'chat.default_model "{chat.default_model}" is not in chat.allowed_models;'
            " requests that name no model are refused."
        )


def _upstream_cautions(settings: Settings) -> Iterator[str]:
    """Yield sentences about the ways to the provider."""
    upstream, chat = settings.upstream, settings.chat
    urls = {f"the base_url of route {route.name},": settings.route_url(route) for route in upstream.route}
    for name, url in (urls or {"upstream.base_url": upstream.base_url}).items():
        base_url = urlsplit(url)
        if base_url.scheme == "http" and not _is_loopback(base_url.hostname or ""):
            yield (f"{name} {url} is plain HTTP: the provider's key can be read in transit; use https://.")
    model = settings.aliases.get(chat.default_model, chat.default_model)
    if upstream.route and not any(route.serves(model) for route in upstream.route):
        yield f'no route serves chat.default_model "{model}"; requests that name no model are refused.'


def _unused_address(settings: Settings, listening: Sequence[tuple[str, int]]) -> Iterator[str]:
    """Yield a sentence for server.host and server.port if they are set, and systemd listens elsewhere."""
    places = ", ".join(f"{host} port {port}" for host, port in listening)
    used: dict[str, set[str | int]] = {
        "server.host": {host for host, _ in listening},
        "server.port": {port for _, port in listening},
    }
    for name, values in used.items():
        origin, value = settings.origins[name], settings.value(name)
        if origin.kind is not OriginKind.DEFAULT and value not in values and value != "localhost":
            yield (
                f"{name} {value} ({origin}) is not in force: systemd listens for relayd, at {places}."
                " Have its unit follow relayd.toml: sudo relayd init --system"
                " (or set ListenStream= yourself: sudo systemctl edit relayd.socket)."
            )


def _ignored_proxies(settings: Settings, variables: Mapping[str, Variable]) -> Iterator[str]:
    """Yield a warning if a variable names a proxy that other programs would use."""
    if settings.upstream.proxy:
        return
    for name in _PROXY_VARIABLES:
        if name in variables and variables[name].text:
            yield (
                f"{variables[name].place}: {name} is not used; to reach the provider through that proxy,"
                " set upstream.proxy or RELAYD_UPSTREAM__PROXY to it."
            )
            return


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
