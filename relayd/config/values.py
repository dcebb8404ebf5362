"""What a single value may be: hosts, origins, URLs, names, keys.

A check raises ValueError with what to add to the error message, or an empty text.
"""

from __future__ import annotations

import grp
import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, SecretStr

from relayd.state.keys import MIN_GIVEN_CHARS

MAX_KEY_CHARS = 4096
"""Fits with room to spare into the 16 KiB of a request's headers."""

_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_PORT_AT_END = re.compile(r":[0-9]{1,5}$")
_MAX_NAME_CHARS = 200
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a key may be, as the end of "... must be"; `item` describes one item of a list."""

    text: str
    item: str = ""


def _is_host(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        # Only digits and dots: a mistyped address, not a name.
        return bool(_HOST.fullmatch(name)) and not re.fullmatch(r"[0-9.]+", name)
    return True


def check_host(host: str) -> str:
    """Accept an address or a name to listen on, without a port."""
    if not _is_host(host):
        raise ValueError("the port has its own key, server.port" if _PORT_AT_END.search(host) else "")
    return host


def check_network(text: str) -> str:
    """Accept an address or a CIDR network, as `ipaddress.ip_network` reads it."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(_network_hint(text)) from None
    return text


def _network_hint(text: str) -> str:
    try:
        return f'did you mean "{ipaddress.ip_network(text, strict=False)}"?'
    except ValueError:
        return ""


def _split(url: str) -> SplitResult | None:
    """Return the parts of a URL with a valid host and port, else None. urlsplit's errors repeat the URL."""
    try:
        parts = urlsplit(url)
        has_valid_port = parts.port is None or parts.port > 0
    except ValueError:
        return None
    # urlsplit silently drops tabs and line breaks.
    is_clean = url.isascii() and url.isprintable() and " " not in url
    return parts if has_valid_port and is_clean and parts.hostname and _is_host(parts.hostname) else None


def check_base_url(url: str) -> str:
    """Accept http or https with a host, without user, query or fragment. A final slash is dropped."""
    parts = _split(url)
    if parts is None or parts.scheme not in _DEFAULT_PORTS:
        raise ValueError("")
    if parts.username is not None:
        raise ValueError("it carries a user name or password; the key belongs in OPENAI_API_KEY")
    if parts.query or parts.fragment or url[-1] in "?#":
        raise ValueError("it carries a query or fragment")
    return url.rstrip("/")


def check_origin(origin: str) -> str:
    """Accept `*`, or an origin as browsers send it (RFC 6454, section 6.2): another never matches."""
    if origin == "*":
        return origin
    parts = _split(origin)
    if parts is None or not parts.scheme or parts.username is not None:
        raise ValueError("")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port in {None, _DEFAULT_PORTS.get(parts.scheme)} else f":{parts.port}"
    sent = f"{parts.scheme}://{host}{port}"
    if origin != sent:
        raise ValueError(f'browsers send "{sent}"')
    return origin


def check_name(name: str) -> str:
    """Accept the name of a model: visible characters without spaces."""
    if not 0 < len(name) <= _MAX_NAME_CHARS or not name.isprintable() or " " in name:
        raise ValueError("")
    return name


def check_group(name: str) -> str:
    """Accept "" or a Unix group of this machine."""
    try:
        if name:
            grp.getgrnam(name)
    except (KeyError, ValueError):
        raise ValueError("this machine has no such group") from None
    return name


def check_authorization_key(secret: SecretStr) -> SecretStr:
    """Accept a client key that can stand in an Authorization header. The error never repeats it."""
    text = secret.get_secret_value()
    if len(text) < MIN_GIVEN_CHARS:
        raise ValueError(f"it has {len(text)}")
    _check_header_value(text)
    if text != text.strip(" "):
        raise ValueError("it begins or ends with a space")
    if text.lower().startswith("bearer "):
        raise ValueError('it begins with "Bearer ", which belongs to the header')
    return secret


def check_provider_key(secret: SecretStr) -> SecretStr:
    """Accept a provider key that can stand in a header. The error never repeats it."""
    text = secret.get_secret_value()
    if not text:
        raise ValueError("it is empty")
    if any(char.isspace() for char in text):
        raise ValueError("it contains a space or a line break")
    _check_header_value(text)
    if text[0] in "\"'":
        raise ValueError("it is wrapped in quotes")
    return secret


def _check_header_value(text: str) -> None:
    if len(text) > MAX_KEY_CHARS:
        raise ValueError(f"it has more than {MAX_KEY_CHARS}")
    if not (text.isascii() and text.isprintable()):
        raise ValueError("it contains other characters")


Host = Annotated[str, AfterValidator(check_host), Allowed("an IP address or a host name, without a port")]
Networks = Annotated[
    tuple[Annotated[str, AfterValidator(check_network)], ...],
    Allowed("a list of addresses or CIDR networks", 'an IP address or a CIDR network like "10.0.0.0/8"'),
]
WebOrigins = Annotated[
    tuple[Annotated[str, AfterValidator(check_origin)], ...],
    Allowed(
        'a list of "*" or origins like "https://app.example:8443"',
        '"*" or scheme://host[:port], without a path',
    ),
]
_MODEL_NAME = Allowed("the name of a model, without spaces")
ModelName = Annotated[str, AfterValidator(check_name), _MODEL_NAME]
ModelNames = Annotated[
    tuple[Annotated[str, AfterValidator(check_name)], ...],
    Allowed("a list of models' names", _MODEL_NAME.text),
]
BaseUrl = Annotated[
    str,
    AfterValidator(check_base_url),
    Allowed("an http:// or https:// URL with a host, no credentials and no query"),
]
Group = Annotated[str, AfterValidator(check_group), Allowed('a Unix group of this machine, or "" for none')]
# None is only ever the default, which pydantic does not check.
AuthorizationKey = Annotated[
    SecretStr | None,
    AfterValidator(check_authorization_key),
    Allowed(f"at least {MIN_GIVEN_CHARS} printable ASCII characters"),
]
ProviderKey = Annotated[
    SecretStr | None,
    AfterValidator(check_provider_key),
    Allowed("printable ASCII characters without spaces"),
]
