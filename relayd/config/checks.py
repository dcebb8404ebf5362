"""What no key shows alone: values that do not fit together, and what is allowed but unwise."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from relayd.config.errors import Problem
from relayd.config.files import file_fault, world_readable
from relayd.config.sources import OriginKind
from relayd.printable import printable

if TYPE_CHECKING:
    from relayd.config import Settings

MAX_SOCKET_PATH_BYTES = 107
"""sun_path of unix(7) is 108 bytes with its closing NUL."""

PROXY_PATIENCE_S = 60
"""After this silence nginx and most load balancers give up, unless told otherwise."""


def misfits(settings: Settings, faulty: Collection[str]) -> Iterator[Problem]:
    """Problems between keys, and with files they name; keys in `faulty` are refused already."""
    tls = settings.tls
    files = {"tls.cert": tls.cert, "tls.key": tls.key}
    for (name, path), other in zip(files.items(), reversed(files), strict=True):
        if path and not files[other] and other not in faulty:
            yield _problem(
                settings, name, f"{name} is set but {other} is not; TLS needs both, plain HTTP neither."
            )
        wrong = file_fault(path) if path else None
        if wrong:
            yield _problem(settings, name, f"{name} names {printable(str(path))}, which {wrong}.")
    length = len(os.fsencode(settings.admin.socket))
    if length > MAX_SOCKET_PATH_BYTES and not {"state_dir", "admin.socket"} & set(faulty):
        given = settings.origins["admin.socket"].kind is not OriginKind.DEFAULT
        cause = "admin.socket" if given else "state_dir"
        limit = f"is {length} bytes long, but must be at most {MAX_SOCKET_PATH_BYTES}"
        yield _problem(settings, cause, f"the path of admin.socket {limit}; set a shorter {cause}.")


def _problem(settings: Settings, key: str, message: str) -> Problem:
    return Problem(settings.origins[key].place, message, key)


def cautions(settings: Settings) -> Iterator[str]:
    """Sentences about what works but is seldom meant."""
    yield from _open_secrets(settings)
    yield from _odd_times(settings)
    chat = settings.chat
    if chat.allowed_models and chat.default_model not in chat.allowed_models:
        yield (
            f'chat.default_model "{chat.default_model}" is not in chat.allowed_models;'
            " requests that name no model are refused."
        )


def _open_secrets(settings: Settings) -> Iterator[str]:
    tls, server, base_url = settings.tls, settings.server, urlsplit(settings.upstream.base_url)
    if tls.key and world_readable(tls.key):
        yield f"{printable(str(tls.key))}: every user of this machine can read this TLS key; chmod 600 it."
    if not tls.cert and not _is_loopback(server.host):
        yield (
            f"server.host {server.host} is open to the network without TLS: keys and texts can be read"
            " on the way; set tls.cert and tls.key, or listen on 127.0.0.1 behind a proxy."
        )
    if base_url.scheme == "http" and not _is_loopback(base_url.hostname or ""):
        plain = settings.upstream.base_url
        yield f"upstream.base_url {plain} is plain HTTP: the provider's key can be read on the way."


def _odd_times(settings: Settings) -> Iterator[str]:
    heartbeat, up = settings.chat.heartbeat_s, settings.upstream
    longest = max(up.first_token_timeout_s, up.idle_timeout_s)
    if heartbeat >= longest:
        yield f"chat.heartbeat_s {heartbeat:g} never comes: the upstream is given up after {longest:g} s."
    elif heartbeat >= PROXY_PATIENCE_S:
        yield f"chat.heartbeat_s {heartbeat:g} is long: many proxies give up after {PROXY_PATIENCE_S} s."
    for name in ("connect_timeout_s", "first_token_timeout_s", "idle_timeout_s"):
        limit, total = getattr(up, name), up.total_timeout_s
        if limit > total:
            yield f"upstream.{name} {limit:g} never comes: upstream.total_timeout_s is {total:g}."


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
