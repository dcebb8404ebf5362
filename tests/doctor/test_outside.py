"""`relayd.doctor.outside`: what is seen without a key."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from relayd.doctor.finding import Level
from relayd.doctor.outside import judge_clock
from relayd.doctor.streams import Patient
from tests.doctor.faultproxy import fault_proxy
from tests.doctor.room import NAME, SETUP, Tls, examined, faults, found_and_no_other, patient, site_at
from tests.public.room import KEY, Setup, public_room
from tests.support.certificate import certificate
from tests.wire import HOST


@pytest.mark.parametrize(
    ("planted", "checks", "says", "todo"),
    [
        ("cors_twice", {"CORS", "errors"}, "comes 2 times", "add_header"),
        ("cors_star", {"CORS", "errors"}, "'*', and was not set by relayd", "remove it"),
        ("preflight_refused", {"CORS"}, "preflight is answered 405", "pass OPTIONS on"),
        ("clock", {"clock"}, " s behind this one", "set-ntp"),
        ("errors_replaced", {"errors"}, "its own page", "proxy_intercept_errors"),
        ("password", {"errors", "key"}, "a password of its own", "auth_basic"),
        ("wrong_backend", {"relay"}, "/healthz answers 502", "does not reach it"),
    ],
)
async def test_each_planted_fault_is_found_and_no_other(
    planted: str, checks: set[str], says: str, todo: str, tls: Tls
) -> None:
    """The check that concerns it says what is wrong and what to change; the others stay good."""
    await found_and_no_other(planted, checks, says, todo, tls)


@pytest.mark.parametrize(
    ("now_s", "level", "says"),
    [
        (1e9, Level.GOOD, "agree"),
        (1e9 + 30, Level.GOOD, "agree"),
        (1e9 + 600, Level.FAULT, "is 600 s behind"),
        (1e9 - 45, Level.FAULT, "is 45 s ahead of"),
    ],
)
def test_clocks_may_differ_by_half_a_minute(now_s: float, level: Level, says: str) -> None:
    """More is a fault, that says which of them is behind."""
    found = judge_clock("Sun, 09 Sep 2001 01:46:40 GMT", now_s)
    assert found.level is level
    assert says in found.said


def test_an_answer_without_a_date_says_nothing_of_the_clock() -> None:
    """It is not taken for a fault."""
    assert judge_clock("", 1e9).level is Level.SKIPPED


async def test_missing_tls_is_found() -> None:
    """Plain HTTP at a name that others can reach is a fault; everything else is still looked at."""
    async with patient("", None) as who:
        found = await examined(who)
    assert faults(found) == {"TLS"}
    assert "Plain HTTP" in found[0].said
    assert len(found) == 12


async def test_an_untrusted_certificate_ends_the_look(tls: Tls) -> None:
    """Nothing is sent where the certificate is not good, a key least of all."""
    async with patient("", (tls[0], ssl.create_default_context())) as who:
        found = await examined(who)
    assert [finding.check for finding in found] == ["TLS"]
    assert faults(found) == {"TLS"}


async def test_a_certificate_that_ends_soon_is_doubtful(tmp_path: Path) -> None:
    """Its days are counted."""
    async with patient("", certificate(tmp_path, f"DNS:{NAME}", days=5), key="") as who:
        found = await examined(who)
    assert found[0].level is Level.DOUBT
    assert "ends in 5 days" in found[0].said


@pytest.mark.parametrize(
    ("origin", "level"),
    [(None, Level.DOUBT), ("https://mine.example", Level.GOOD), ("https://x.example", Level.FAULT)],
)
async def test_a_list_of_origins_is_judged_by_the_page_that_is_named(
    origin: str | None, level: Level, tls: Tls
) -> None:
    """Restricted origins may be meant; for a page that should be able to call they are right or wrong."""
    async with patient("", tls, setup=Setup(origins=("https://mine.example",)), key="") as who:
        found = await examined(who, origin)
    assert next(finding.level for finding in found if finding.check == "CORS") is level


async def test_a_relay_that_takes_no_work_is_doubtful(tls: Tls) -> None:
    """Paused by its operator: the reason comes through."""
    async with public_room(SETUP) as room, fault_proxy(room.port, "", tls[0]) as port:
        room.intake.pause()
        found = await examined(Patient(site_at(port, tls[1]), ""))
    assert next(finding.level for finding in found if finding.check == "intake") is Level.DOUBT


async def test_a_port_that_nobody_listens_on_is_named() -> None:
    """No traceback: the address, the port, the system's word."""
    async with fault_proxy(1) as port:
        pass
    found = await examined(Patient(site_at(port), KEY))
    assert [finding.said for finding in found] == [f"{NAME} ({HOST}) port {port}: Connection refused."]


async def test_something_that_speaks_no_http_is_told() -> None:
    """As when the port is another service's."""

    async def other(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-other\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(other, HOST, 0)
    async with server:
        found = await examined(Patient(site_at(server.sockets[0].getsockname()[1]), KEY))
    assert found[-1].said == "GET /healthz is not answered in HTTP."
