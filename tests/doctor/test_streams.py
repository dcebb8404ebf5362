"""`relayd.doctor.streams`: what becomes of a stream on its way."""

from __future__ import annotations

import pytest

from relayd.doctor.finding import Level
from relayd.doctor.streams import judge_address
from tests.doctor.room import Tls, examined, faults, found_and_no_other, patient


async def test_where_nothing_is_wrong_nothing_is_found(tls: Tls) -> None:
    """Every check is made, and every one is good."""
    async with patient("", tls) as who:
        found = await examined(who)
    assert {finding.level for finding in found} == {Level.GOOD}, found
    assert {finding.check for finding in found} == {
        "TLS",
        "relay",
        "clock",
        "intake",
        "CORS",
        "errors",
        "key",
        "address",
        "streaming",
        "large bodies",
        "disconnects",
        "heartbeats",
    }


@pytest.mark.parametrize(
    ("planted", "checks", "says", "todo"),
    [
        ("buffering", {"streaming", "disconnects", "heartbeats"}, "held back", "proxy_buffering off"),
        ("compressed", {"streaming", "disconnects", "heartbeats"}, "compressed (gzip)", "gzip off"),
        ("heartbeats_lost", {"heartbeats"}, "no heartbeat came", "proxy_buffering off"),
        ("idle_cut", {"heartbeats"}, "is cut after", "proxy_read_timeout"),
        ("swallowed_disconnects", {"disconnects"}, "relayd does not know", "abortonclose"),
        ("body_limit", {"large bodies"}, "is answered 413 on its way", "client_max_body_size"),
        ("authorization_dropped", {"key"}, "The key is refused", "pass Authorization on"),
    ],
)
async def test_each_planted_fault_is_found_and_no_other(
    planted: str, checks: set[str], says: str, todo: str, tls: Tls
) -> None:
    """The check that concerns it says what is wrong and what to change; the others stay good."""
    await found_and_no_other(planted, checks, says, todo, tls)


async def test_without_a_key_the_rest_is_looked_at(tls: Tls) -> None:
    """What needs a key is named as not looked at."""
    async with patient("", tls, key="") as who:
        found = await examined(who)
    assert faults(found) == set()
    assert found[-1].level is Level.SKIPPED
    assert "needs a client's key" in found[-1].said


@pytest.mark.parametrize(
    ("seen", "address", "level"),
    [
        ("127.0.0.1", "127.0.0.1", Level.GOOD),
        ("192.0.43.8", "8.8.8.8", Level.GOOD),
        ("10.0.0.7", "10.0.0.1", Level.GOOD),
        ("127.0.0.1", "8.8.8.8", Level.FAULT),
        ("172.18.0.2", "2606:4700::1111", Level.FAULT),
        ("", "8.8.8.8", Level.GOOD),
    ],
)
def test_clients_that_all_look_like_the_proxy_are_found(seen: str, address: str, level: Level) -> None:
    """Who reaches a public address and is seen as a private one is seen as the proxy."""
    assert judge_address(seen, address).level is level
