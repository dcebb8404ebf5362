"""What a single value may be: ranges, names, addresses, URLs, keys. A check says in words what is wrong."""

from __future__ import annotations

import grp
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Le
from pydantic import AfterValidator, SecretStr

WEEK_S = 7 * 86400
YEAR_S = 366 * 86400
MIN_AUTHORIZATION_KEY_CHARS = 16
MAX_KEY_CHARS = 4096
"""A header of 16 KiB has room for this with ease."""

_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_PORT_AT_END = re.compile(r":[0-9]{1,5}$")
_MAX_NAME_CHARS = 200
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a key may be, as the end of the sentence "… must be"; `item` says it of one item of a list."""

    text: str
    item: str = ""


@dataclass(frozen=True, slots=True)
class Whole(GroupedMetadata):
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int
    of: str = ""

    def __iter__(self) -> Iterator[BaseMetadata]:
        yield Ge(self.low)
        yield Le(self.high)

    @property
    def text(self) -> str:
        """What is allowed, in words."""
        return f"a whole number{self.of and f' of {self.of}'} from {self.low} to {self.high}"


@dataclass(frozen=True, slots=True)
class Span(GroupedMetadata):
    """Seconds up to `high`, never infinite; 0 only where `zero` says so."""

    high: int
    zero: bool = False

    def __iter__(self) -> Iterator[BaseMetadata]:
        yield Ge(0) if self.zero else Gt(0)
        yield Le(self.high)

    @property
    def text(self) -> str:
        """What is allowed, in words."""
        low = "from 0 to" if self.zero else "above 0, at most"
        return f"a number of seconds {low} {self.high}"


def _is_host(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        # Digits and dots alone are an address with a slip in it, not a name.
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
        raise ValueError(_network_meant(text)) from None
    return text


def _network_meant(text: str) -> str:
    try:
        return f'did you mean "{ipaddress.ip_network(text, strict=False)}"?'
    except ValueError:
        return ""


def _split(url: str) -> SplitResult | None:
    """The parts of a URL with a host and a sound port, else None. urlsplit's own errors repeat the URL."""
    try:
        parts = urlsplit(url)
        sound = parts.port is None or parts.port > 0
    except ValueError:
        return None
    # urlsplit drops tabs and line breaks without a word; geturl() shows it.
    clean = url.isascii() and url.isprintable() and " " not in url
    return parts if sound and clean and parts.hostname and _is_host(parts.hostname) else None


def check_base_url(url: str) -> str:
    """Accept http or https with a host; no user, query or fragment. A slash at the end is dropped."""
    parts = _split(url)
    if parts is None or parts.scheme not in _DEFAULT_PORTS:
        raise ValueError("")
    if parts.username is not None:
        raise ValueError("it carries a user name or password; the key belongs in OPENAI_API_KEY")
    if parts.query or parts.fragment or url[-1] in "?#":
        raise ValueError("it carries a query or fragment")
    return url.rstrip("/")


def check_origin(origin: str) -> str:
    """Accept `*`, or an origin exactly as browsers send it (RFC 6454 section 6.2), else it never matches."""
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
    """Accept "" or a Unix group that this machine knows."""
    try:
        if name:
            grp.getgrnam(name)
    except (KeyError, ValueError):
        raise ValueError("this machine has no such group") from None
    return name


def check_authorization_key(secret: SecretStr | None) -> SecretStr | None:
    """Accept a client's key that survives an Authorization header. The message never repeats it."""
    if secret is None:
        return None
    text = secret.get_secret_value()
    if len(text) < MIN_AUTHORIZATION_KEY_CHARS:
        raise ValueError(f"it has {len(text)}")
    if len(text) > MAX_KEY_CHARS:
        raise ValueError(f"it has more than {MAX_KEY_CHARS}")
    if not (text.isascii() and text.isprintable()):
        raise ValueError("it has others")
    if text != text.strip(" "):
        raise ValueError("it begins or ends with a space")
    if text.lower().startswith("bearer "):
        raise ValueError('it begins with "Bearer ", which belongs to the header')
    return secret


def check_provider_key(secret: SecretStr | None) -> SecretStr | None:
    """Accept a provider's key that can stand in a header. The message never repeats it."""
    if secret is None:
        return None
    text = secret.get_secret_value()
    if not text:
        raise ValueError("it is empty")
    if len(text) > MAX_KEY_CHARS:
        raise ValueError(f"it has more than {MAX_KEY_CHARS}")
    if any(char.isspace() for char in text):
        raise ValueError("it has a space or a line break in it")
    if not (text.isascii() and text.isprintable()):
        raise ValueError("it has others")
    if text[0] in "\"'":
        raise ValueError("it is wrapped in quotes")
    return secret


Seconds = Annotated[float, Span(WEEK_S)]
Host = Annotated[str, AfterValidator(check_host), Allowed("an IP address or a host name, without a port")]
Network = Annotated[str, AfterValidator(check_network)]
WebOrigin = Annotated[str, AfterValidator(check_origin)]
Model = Annotated[str, AfterValidator(check_name)]
BaseUrl = Annotated[
    str,
    AfterValidator(check_base_url),
    Allowed("an http:// or https:// URL with a host, no credentials and no query"),
]
Group = Annotated[str, AfterValidator(check_group), Allowed('a Unix group of this machine, or "" for none')]
AuthorizationKey = Annotated[
    SecretStr | None,
    AfterValidator(check_authorization_key),
    Allowed(f"at least {MIN_AUTHORIZATION_KEY_CHARS} printable ASCII characters"),
]
ProviderKey = Annotated[
    SecretStr | None, AfterValidator(check_provider_key), Allowed("printable ASCII characters without spaces")
]
