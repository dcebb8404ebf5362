"""What no key shows alone: values that do not fit together, and what is allowed but unwise."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Collection, Iterator
from urllib.parse import urlsplit

from relayd.config.files import FileError, check_file, is_world_readable
from relayd.config.schema import OriginKind, Settings
from relayd.findings import Finding, Severity
from relayd.printable import printable

MAX_SOCKET_PATH_BYTES = 107
"""sun_path of unix(7) is 108 bytes with its closing NUL."""
PROXY_TIMEOUT_S = 60
"""After this silence nginx and most load balancers give up, unless told otherwise."""


def conflicts(settings: Settings, faulty: Collection[str]) -> Iterator[Finding]:
    """Yield problems between keys, and with the files that they name; keys in `faulty` are skipped."""
    tls = settings.tls
    for name, path, other, other_path in (
        ("tls.cert", tls.cert, "tls.key", tls.key),
        ("tls.key", tls.key, "tls.cert", tls.cert),
    ):
        if path is None:
            continue
        if other_path is None and other not in faulty:
            yield _problem(
                settings, name, f"{name} is set but {other} is not; TLS needs both, plain HTTP neither."
            )
        try:
            check_file(path)
        except FileError as fault:
            yield _problem(settings, name, f"{name} names {printable(str(path))}, which {fault}.")
    length = len(os.fsencode(settings.admin.socket))
    if length > MAX_SOCKET_PATH_BYTES and not {"state_dir", "admin.socket"} & set(faulty):
        is_set = settings.origins["admin.socket"].kind is not OriginKind.DEFAULT
        cause = "admin.socket" if is_set else "state_dir"
        limit = f"is {length} bytes long, but must be at most {MAX_SOCKET_PATH_BYTES}"
        yield _problem(settings, cause, f"the path of admin.socket {limit}; set a shorter {cause}.")


def _problem(settings: Settings, key: str, message: str) -> Finding:
    return Finding(Severity.ERROR, settings.origins[key].place, message, key=key)


def cautions(settings: Settings) -> Iterator[str]:
    """Yield sentences about what works but is seldom intended."""
    tls, server, upstream, chat = settings.tls, settings.server, settings.upstream, settings.chat
    if tls.key and is_world_readable(tls.key):
        yield f"{printable(str(tls.key))}: every user of this machine can read this TLS key; chmod 600 it."
    if not tls.cert and not _is_loopback(server.host):
        yield (
            f"server.host {server.host} is open to the network without TLS: keys and texts can be read"
            " on the way; set tls.cert and tls.key, or listen on 127.0.0.1 behind a proxy."
        )
    base_url = urlsplit(upstream.base_url)
    if base_url.scheme == "http" and not _is_loopback(base_url.hostname or ""):
        yield (
            f"upstream.base_url {upstream.base_url} is plain HTTP:"
            " the provider's key can be read on the way; use https://."
        )
    longest_s = max(upstream.first_token_timeout_s, upstream.idle_timeout_s)
    if chat.heartbeat_s >= longest_s:
        yield (
            f"chat.heartbeat_s {chat.heartbeat_s:g} never comes:"
            f" the upstream is given up after {longest_s:g} s; set a shorter one."
        )
    elif chat.heartbeat_s >= PROXY_TIMEOUT_S:
        yield (
            f"chat.heartbeat_s {chat.heartbeat_s:g} is long: many proxies give up after {PROXY_TIMEOUT_S} s."
        )
    for name in ("connect_timeout_s", "first_token_timeout_s", "idle_timeout_s"):
        limit_s = getattr(upstream, name)
        if limit_s > upstream.total_timeout_s:
            yield (
                f"upstream.{name} {limit_s:g} never comes:"
                f" upstream.total_timeout_s is {upstream.total_timeout_s:g}."
            )
    if chat.allowed_models and chat.default_model not in chat.allowed_models:
        yield (
            f'chat.default_model "{chat.default_model}" is not in chat.allowed_models;'
            " requests that name no model are refused."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
