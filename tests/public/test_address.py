"""Whose address counts behind proxies."""

from __future__ import annotations

import pytest

from relayd.public.address import ClientAddress

_address = ClientAddress(["127.0.0.1", "::1", "10.0.0.0/8"])


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
        ("127.0.0.1", ["1.2.3.4:80"], "1.2.3.4"),
        ("::ffff:127.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("::ffff:203.0.113.9", ["1.2.3.4"], "203.0.113.9"),
        ("127.0.0.1", [" , "], "127.0.0.1"),
    ],
)
def test_the_last_untrusted_hop_is_the_client(peer: str, forwarded: list[str], client: str) -> None:
    """A trusted proxy is believed about the hop before it, and nobody is believed about more."""
    assert _address.of(peer, forwarded) == client
