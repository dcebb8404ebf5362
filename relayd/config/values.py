"""The types of single values: hosts, networks, origins, URLs, names, keys.

A check raises ValueError with what to add to the error message, or an empty text.
"""

from __future__ import annotations

import grp
import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import AfterValidator, SecretStr, StringConstraints

from relayd.state.bounds import is_glob
from relayd.state.keys import MAX_GIVEN_CHARS, MIN_GIVEN_CHARS

MAX_KEY_CHARS = MAX_GIVEN_CHARS
"""Of a provider's key, too."""

_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_ENDPOINT = re.compile(r"(?:[A-Z]+|\*) /v1/[!-~]+")
_PROXY_SCHEMES = frozenset({"http", "https", "socks5"})
_MAX_PROXY_CREDENTIAL_CHARS = 255
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a key may be, as the end of "... must be"; `item` describes one item of a list."""

    text: str
    item: str = ""


def _check_host(host: str) -> str:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # Only digits and dots: a mistyped address, not a name.
        if not _HOST.fullmatch(host) or re.fullmatch(r"[0-9.]+", host):
            raise ValueError from None
    return host


def _check_network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError from None  # without the value that ipaddress repeats
    return text


def _split(url: str, *, credentials: bool = False) -> SplitResult:
    """Return the parts of a URL with a valid host and port, and with a user only if `credentials`.

    Raises:
        ValueError: without the URL.
    """
    # urlsplit silently drops tabs and line breaks.
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError from None  # without the URL that urlsplit repeats
    _check_host(parts.hostname or "")
    if not parts.scheme or (parts.username is not None and not credentials) or port == 0:
        raise ValueError
    return parts


def _check_base_url(url: str) -> str:
    """Accept http or https with a host, without user, query or fragment. A final slash is dropped."""
    if _split(url).scheme not in _DEFAULT_PORTS or "?" in url or "#" in url:
        raise ValueError
    return url.rstrip("/")


def _check_proxy_url(secret: SecretStr) -> SecretStr:
    """Accept the URL of a proxy, or an empty text for none."""
    url = secret.get_secret_value()
    if not url:
        return secret
    parts = _split(url, credentials=True)
    if parts.scheme not in _PROXY_SCHEMES or parts.path not in {"", "/"} or "?" in url or "#" in url:
        raise ValueError
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if bool(user) != bool(password):
        raise ValueError("user and password belong together")
    # RFC 1929 and RFC 7617.
    if ":" in user or any(
        len(text) > _MAX_PROXY_CREDENTIAL_CHARS or not text.isascii() or (text and not text.isprintable())
        for text in (user, password)
    ):
        raise ValueError("its user or password has characters that a proxy cannot be sent, or too many")
    return secret


def _check_database_url(secret: SecretStr) -> SecretStr:
    """Accept the URL of a PostgreSQL database, or an empty text for none; libpq reads it."""
    url = secret.get_secret_value()
    if url and (not url.startswith(("postgresql://", "postgres://")) or not url.isprintable()):
        raise ValueError
    return secret


def _check_origin(origin: str) -> str:
    """Accept `*`, or an origin as browsers send it (RFC 6454, section 6.2): another never matches."""
    if origin == "*":
        return origin
    parts = _split(origin)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port in {None, _DEFAULT_PORTS.get(parts.scheme)} else f":{parts.port}"
    sent = f"{parts.scheme}://{host}{port}"
    if origin != sent:
        raise ValueError(f'browsers send "{sent}"')
    return origin


def _check_endpoint(endpoint: str) -> str:
    if not _ENDPOINT.fullmatch(endpoint) or "?" in endpoint or "#" in endpoint:
        raise ValueError
    return endpoint


def _check_argument(argument: str) -> str:
    if not argument or "\0" in argument:
        raise ValueError
    return argument


def _check_glob(pattern: str) -> str:
    if not is_glob(pattern):
        raise ValueError
    return pattern


def _check_group(name: str) -> str:
    try:
        if name:
            grp.getgrnam(name)
    except KeyError:
        raise ValueError from None
    return name


def _check_authorization_key(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if len(text) < MIN_GIVEN_CHARS:
        raise ValueError(f"it has {len(text)}")
    _check_header_value(text)
    if text.lower().startswith("bearer "):
        raise ValueError('it begins with "Bearer ", which belongs to the header')
    return secret


def _check_provider_key(secret: SecretStr) -> SecretStr:
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
    if text != text.strip(" "):
        raise ValueError("it begins or ends with a space")


Host = Annotated[str, AfterValidator(_check_host), Allowed("an IP address or a host name, without a port")]
Networks = Annotated[
    tuple[Annotated[str, AfterValidator(_check_network)], ...],
    Allowed("a list of addresses or CIDR networks", 'an IP address or a CIDR network like "10.0.0.0/8"'),
]
WebOrigins = Annotated[
    tuple[Annotated[str, AfterValidator(_check_origin)], ...],
    Allowed(
        'a list of "*" or origins like "https://app.example:8443"',
        '"*" or scheme://host[:port], without a path',
    ),
]
_MODEL_NAME = Allowed("the name of a model, without spaces")
# \p{C} is every character that is not shown.
ModelName = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\s\p{C}]+$"), _MODEL_NAME]
ModelNames = Annotated[tuple[ModelName, ...], Allowed("a list of models' names", _MODEL_NAME.text)]
ModelPatterns = Annotated[
    tuple[Annotated[ModelName, AfterValidator(_check_glob)], ...],
    Allowed(
        'a list of models\' names or patterns like "gpt-*"',
        "a model's name or pattern, without spaces, its brackets closed",
    ),
]
CommandLine = Annotated[
    tuple[Annotated[str, AfterValidator(_check_argument)], ...],
    Allowed(
        'a list: a program and its arguments, such as ["/usr/bin/curl", "-sS"]', "a text that is not empty"
    ),
]
EndpointPatterns = Annotated[
    tuple[Annotated[str, AfterValidator(_check_endpoint)], ...],
    Allowed(
        'a list of methods and paths like "GET /v1/files/*"',
        'a method (or "*"), a space, and a path that begins with /v1/ and may hold "*", without a query',
    ),
]
RouteName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$"),
    Allowed('a short name of a-z, 0-9, "-" and "_"'),
]
_BASE_URL = Allowed("an http:// or https:// URL with a host, no credentials and no query")
BaseUrl = Annotated[
    str,
    AfterValidator(_check_base_url),
    _BASE_URL,
]
RouteUrl = Annotated[str | None, AfterValidator(_check_base_url), _BASE_URL]
ProxyUrl = Annotated[
    SecretStr,
    AfterValidator(_check_proxy_url),
    Allowed(
        "an http://, https:// or socks5:// URL with a host and, if need be, user:password@ before it "
        '(percent-encoded), or "" for none'
    ),
]
DatabaseUrl = Annotated[
    SecretStr,
    AfterValidator(_check_database_url),
    Allowed('the URL of a PostgreSQL database, as postgresql://user@host/database, or "" for none'),
]
Group = Annotated[str, AfterValidator(_check_group), Allowed('a Unix group of this machine, or "" for none')]
# None, here and in RouteUrl, is only ever the default, which pydantic does not check.
AuthorizationKey = Annotated[
    SecretStr | None,
    AfterValidator(_check_authorization_key),
    Allowed(f"at least {MIN_GIVEN_CHARS} printable ASCII characters"),
]
ProviderKey = Annotated[
    SecretStr | None,
    AfterValidator(_check_provider_key),
    Allowed("printable ASCII characters without spaces"),
]
