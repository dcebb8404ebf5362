"""The address of the client behind proxies that the operator trusts."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_MAX_REMEMBERED = 4096
_Address = IPv4Address | IPv6Address
_SITE_BITS = 64
"""RFC 6177: the smallest network that a site is given."""


class TrustedProxies:
    """The proxies whose X-Forwarded-For is believed.

    Args:
        trusted_proxies: addresses or networks (CIDR).
    """

    def __init__(self, trusted_proxies: Iterable[str]) -> None:
        self._trusted: list[IPv4Network | IPv6Network] = [
            ip_network(entry, strict=False) for entry in trusted_proxies
        ]
        # Clients come again, and parsing addresses is a good part of admitting a request.
        self._found = lru_cache(_MAX_REMEMBERED)(self._find)

    def client_address(self, peer: str, forwarded_for: Iterable[str]) -> str:
        """Return the client's address in its normal form.

        The last hop that is not a trusted proxy is the client: everything to its left is only claimed by the
        client. A hop that is no address ends the search at the hop that reported it.

        Args:
            peer: the other end of the connection; empty for a Unix socket, which is trusted.
            forwarded_for: the X-Forwarded-For header lines, in order.
        """
        return self._found(peer, tuple(forwarded_for))

    def _find(self, peer: str, forwarded_for: tuple[str, ...]) -> str:
        client = _parsed(peer)
        if peer and (client is None or not self._is_trusted(client)):
            return peer if client is None else str(client)
        hops = [hop.strip() for line in forwarded_for for hop in line.split(",")]
        for hop in reversed(hops):
            address = _parsed(hop)
            if address is None:
                break
            client = address
            if not self._is_trusted(address):
                break
        return "" if client is None else str(client)

    def __contains__(self, peer: str) -> bool:
        """Return whether the other end of a connection is a trusted proxy, or a Unix socket."""
        address = _parsed(peer)
        return not peer or (address is not None and self._is_trusted(address))

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


def network_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 that an IPv6 site gets as a whole.

    A text that is no address is returned as it is.
    """
    parsed = _parsed(address) if ":" in address else None
    if not isinstance(parsed, IPv6Address):
        return address if parsed is None else str(parsed)
    return str(IPv6Network((int(parsed), _SITE_BITS), strict=False))


def _parsed(text: str) -> _Address | None:
    """Parse an address with or without brackets and port, IPv4 inside IPv6 unwrapped; None if it is none."""
    host = text
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        host = text.partition(":")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
