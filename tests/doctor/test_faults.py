"""`relayd doctor` before a relay and a proxy with one planted fault, or none."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relayd.doctor.command import examine, parse_url
from relayd.doctor.finding import Finding, Level
from relayd.doctor.streams import Patient, judge_address
from relayd.doctor.wire import Site
from relayd.relay.stream import StreamLimits
from tests.doctor.faultproxy import fault_proxy
from tests.public.room import KEY, Setup, public_room
from tests.support.certificate import certificate
from tests.wire import HOST

_NAME = "relay.test"
_SETUP = Setup(limits=StreamLimits(heartbeat_s=0.4), max_body_bytes=2 << 20)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The proxy's context, and that of a doctor who trusts it."""
    return certificate(tmp_path_factory.mktemp("tls"), f"DNS:{_NAME}", days=90)


@asynccontextmanager
async def _patient(
    fault: str, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None, setup: Setup = _SETUP, key: str = KEY
) -> AsyncIterator[Patient]:
    """A relay behind a proxy with this fault."""
    async with public_room(setup) as room, fault_proxy(room.port, fault, tls[0] if tls else None) as port:
        url = parse_url(f"{'https' if tls else 'http'}://{_NAME}:{port}")
        yield Patient(Site(url, HOST, tls[1] if tls else None), key, interval_ms=25, notice_s=1.0)


async def _examined(patient: Patient, origin: str | None = None) -> list[Finding]:
    return [finding async for finding in examine(patient, origin=origin)]


def _faults(found: list[Finding]) -> set[str]:
    return {finding.check for finding in found if finding.level is Level.FAULT}


async def test_where_nothing_is_wrong_nothing_is_found(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Every check is made, and every one is good."""
    async with _patient("", tls) as patient:
        found = await _examined(patient)
    assert {finding.level for finding in found} == {Level.GOOD}
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
        ("heartbeats_lost", {"heartbeats"}, "no heartbeat came", "proxy_buffering off"),
        ("idle_cut", {"heartbeats"}, "is cut after", "proxy_read_timeout"),
        ("swallowed_disconnects", {"disconnects"}, "relayd does not know", "abortonclose"),
        ("cors_twice", {"CORS", "errors"}, "comes 2 times", "add_header"),
        ("cors_star", {"CORS", "errors"}, "'*', and was not set by relayd", "remove it"),
        ("preflight_refused", {"CORS"}, "preflight is answered 405", "pass OPTIONS on"),
        ("clock", {"clock"}, "600 s behind", "set-ntp"),
        ("body_limit", {"large bodies"}, "is answered 413 on its way", "client_max_body_size"),
        ("errors_replaced", {"errors"}, "its own page", "proxy_intercept_errors"),
        ("authorization_dropped", {"key"}, "The key is refused", "pass Authorization on"),
        ("password", {"errors", "key"}, "a password of its own", "auth_basic"),
        ("compressed", {"streaming", "disconnects", "heartbeats"}, "compressed (gzip)", "gzip off"),
        ("wrong_backend", {"relay"}, "/healthz answers 502", "does not reach it"),
    ],
)
async def test_each_planted_fault_is_found_and_no_other(
    planted: str, checks: set[str], says: str, todo: str, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """The check that concerns it says what is wrong and what to change; the others stay good."""
    async with _patient(planted, tls) as patient:
        found = await _examined(patient)
    assert _faults(found) <= checks
    told = [finding for finding in found if finding.level is Level.FAULT and says in finding.said]
    assert told, found
    assert todo in told[0].todo


async def test_missing_tls_is_found() -> None:
    """Plain HTTP at a name that others can reach is a fault; everything else is still looked at."""
    async with _patient("", None) as patient:
        found = await _examined(patient)
    assert _faults(found) == {"TLS"}
    assert "Plain HTTP" in found[0].said
    assert len(found) == 12


async def test_an_untrusted_certificate_ends_the_look(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Nothing is sent where the certificate is not good, a key least of all."""
    async with _patient("", (tls[0], ssl.create_default_context())) as patient:
        found = await _examined(patient)
    assert [finding.check for finding in found] == ["TLS"]
    assert _faults(found) == {"TLS"}


async def test_a_certificate_that_ends_soon_is_doubtful(tmp_path: Path) -> None:
    """Its days are counted."""
    async with _patient("", certificate(tmp_path, f"DNS:{_NAME}", days=5), key="") as patient:
        found = await _examined(patient)
    assert found[0].level is Level.DOUBT
    assert "ends in 5 days" in found[0].said


async def test_without_a_key_the_rest_is_looked_at(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """What needs a key is named as not looked at."""
    async with _patient("", tls, key="") as patient:
        found = await _examined(patient)
    assert _faults(found) == set()
    assert found[-1].level is Level.SKIPPED
    assert "needs a client's key" in found[-1].said


@pytest.mark.parametrize(
    ("origin", "level"),
    [(None, Level.DOUBT), ("https://mine.example", Level.GOOD), ("https://x.example", Level.FAULT)],
)
async def test_a_list_of_origins_is_judged_by_the_page_that_is_named(
    origin: str | None, level: Level, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """Restricted origins may be meant; for a page that should be able to call they are right or wrong."""
    setup = Setup(origins=("https://mine.example",))
    async with _patient("", tls, setup, key="") as patient:
        found = await _examined(patient, origin)
    assert next(finding.level for finding in found if finding.check == "CORS") is level


async def test_a_relay_that_takes_no_work_is_doubtful(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Paused by its operator: the reason comes through."""
    async with public_room(_SETUP) as room, fault_proxy(room.port, "", tls[0]) as port:
        room.intake.pause()
        site = Site(parse_url(f"https://{_NAME}:{port}"), HOST, tls[1])
        found = await _examined(Patient(site, ""))
    assert next(finding.level for finding in found if finding.check == "intake") is Level.DOUBT


async def test_a_port_that_nobody_listens_on_is_named() -> None:
    """No traceback: the address, the port, the system's word."""
    async with fault_proxy(1) as port:
        pass
    found = await _examined(Patient(Site(parse_url(f"http://{_NAME}:{port}"), HOST, None), KEY))
    assert [finding.said for finding in found] == [f"{_NAME} ({HOST}) port {port}: Connection refused."]


async def test_something_that_speaks_no_http_is_told() -> None:
    """As when the port is another service's."""

    async def other(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-other\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(other, HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await _examined(Patient(Site(parse_url(f"http://{_NAME}:{port}"), HOST, None), KEY))
    assert found[-1].said == "GET /healthz is not answered in HTTP."


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
