"""Whose address counts behind proxies, and which addresses count as one client."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.public.client_address import TrustedProxies, network_of

_proxies = TrustedProxies(["127.0.0.1", "::1", "10.0.0.0/8"])
_untrusted = st.ip_addresses(v=4, network="203.0.113.0/24").map(str) | st.ip_addresses(
    v=6, network="2001:db8::/32"
).map(str)
_trusted = st.ip_addresses(v=4, network="10.0.0.0/8").map(str)
_claim = _untrusted | _trusted | st.text("abc:[]. 0123456789", max_size=20)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["1.2.3.4"], "203.0.113.9"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("127.0.0.1", ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        ("127.0.0.1", ["6.6.6.6", "1.2.3.4, 10.1.1.1"], "1.2.3.4"),
        ("127.0.0.1", ["10.9.9.9"], "10.9.9.9"),
        ("127.0.0.1", ["unknown"], "127.0.0.1"),
        ("127.0.0.1", ["1.2.3.4, rubbish, 10.1.1.1"], "10.1.1.1"),
        ("::1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("::1", ["2001:DB8:0:0::1"], "2001:db8::1"),
        ("127.0.0.1", ["1.2.3.4:80"], "1.2.3.4"),
        ("::ffff:127.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("::ffff:203.0.113.9", ["1.2.3.4"], "203.0.113.9"),
        ("127.0.0.1", [" , "], "127.0.0.1"),
        ("", ["1.2.3.4"], "1.2.3.4"),
        ("", [], ""),
        ("no address", ["1.2.3.4"], "no address"),
    ],
)
def test_the_last_untrusted_hop_is_the_client(peer: str, forwarded: list[str], client: str) -> None:
    """A trusted proxy is believed about the hop before it, and nobody is believed about more."""
    assert _proxies.client_address(peer, forwarded) == client


@given(_untrusted, st.lists(_claim, max_size=4), st.lists(_trusted, max_size=3))
def test_no_claim_of_a_client_changes_its_address(client: str, claims: list[str], chain: list[str]) -> None:
    """Whatever stands left of the client's own address, behind any number of trusted proxies."""
    hops = [*claims, client, *chain]
    assert _proxies.client_address("127.0.0.1", [",".join(hops)]) == client
    assert _proxies.client_address("127.0.0.1", hops) == client
    assert _proxies.client_address(client, hops) == client


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("127.0.0.1", True),
        ("::ffff:127.0.0.1", True),
        ("::1", True),
        ("10.255.0.1", True),
        ("", True),
        ("127.0.0.2", False),
        ("11.0.0.1", False),
        ("no address", False),
    ],
)
def test_a_proxy_is_trusted_by_its_network(peer: str, trusted: bool) -> None:  # noqa: FBT001 - the example
    """By address or CIDR; a Unix socket's other end is on this machine, and trusted."""
    assert (peer in _proxies) is trusted


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("no address", "no address"),
    ],
)
def test_an_ipv6_site_is_one_client(address: str, network: str) -> None:
    """A /64 is what one site gets (RFC 6177); an IPv4 address stands for itself."""
    assert network_of(address) == network
