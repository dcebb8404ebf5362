"""The doctor's checks: each planted fault is found, with its remedy, and nothing else."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import httpx2
import pytest

from relayd.doctor.http_client import Answer, judge_certificate
from relayd.doctor.public_checks import judge_clock
from relayd.doctor.stream_checks import Target, is_held_back, judge_address
from relayd.findings import Severity
from tests.doctor.fault_proxy import fault_proxy
from tests.doctor.harness import NAME, SETTINGS, Tls, errors, examined, site_at, target_behind
from tests.e2e.daemon import KEY, Daemon
from tests.harness import running_relay
from tests.wire import HOST


async def test_a_good_deployment_passes_every_check(tls: Tls, daemon: Daemon) -> None:
    """Every check is made, and none finds anything."""
    async with target_behind("", daemon.port, tls) as target:
        findings = await examined(target)
    assert {finding.severity for finding in findings} == {Severity.OK}, findings
    assert {finding.where for finding in findings} == {
        "connect",
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
    ("planted", "checks", "says", "remedy"),
    [
        ("cors_twice", {"CORS", "errors"}, "is set 2 times", "add_header"),
        ("cors_star", {"CORS", "errors"}, "'*', and was not set by relayd", "remove it"),
        ("preflight_refused", {"CORS"}, "preflight gets 405", "forward OPTIONS"),
        ("clock", {"clock"}, " s behind this one", "set-ntp"),
        ("errors_replaced", {"errors"}, "its own page", "proxy_intercept_errors"),
        ("password", {"errors", "key"}, "a password of its own", "auth_basic"),
        ("wrong_backend", {"relay"}, "/healthz answers 502", "does not reach it"),
        ("buffering", {"streaming", "disconnects", "heartbeats"}, "held back", "proxy_buffering off"),
        ("compressed", {"streaming", "disconnects", "heartbeats"}, "compressed (gzip)", "gzip off"),
        ("heartbeats_lost", {"heartbeats"}, "No heartbeat arrived", "proxy_buffering off"),
        ("idle_cut", {"heartbeats"}, "is cut after", "proxy_read_timeout"),
        ("swallowed_disconnects", {"disconnects"}, "relayd did not notice", "abortonclose"),
        ("body_limit", {"large bodies"}, "gets 413 before it reaches relayd", "client_max_body_size"),
        ("authorization_dropped", {"key"}, "The key is refused", "pass Authorization on"),
    ],
)
async def test_a_planted_fault_is_found_and_no_other(
    planted: str, checks: set[str], says: str, remedy: str, tls: Tls, daemon: Daemon
) -> None:
    """The checks that it concerns say what is wrong and what to change; the others find nothing."""
    async with target_behind(planted, daemon.port, tls) as target:
        findings = await examined(target)
    assert errors(findings) <= checks, findings
    told = [f for f in findings if f.severity is Severity.ERROR and says in f.message]
    assert told, findings
    assert remedy in told[0].remedy


async def test_missing_tls_is_found(daemon: Daemon) -> None:
    """Plain HTTP at a name that others can reach is an error; everything else is still checked."""
    async with target_behind("", daemon.port, None) as target:
        findings = await examined(target)
    assert errors(findings) == {"TLS"}
    assert "Plain HTTP" in findings[1].message
    assert len(findings) == 13


async def test_an_untrusted_certificate_ends_the_checks(tls: Tls, daemon: Daemon) -> None:
    """Nothing is sent to an untrusted site, a key least of all."""
    async with target_behind("", daemon.port, (tls[0], ssl.create_default_context())) as target:
        (finding,) = await examined(target)
    assert (finding.where, finding.severity) == ("TLS", Severity.ERROR)
    assert "is not trusted" in finding.message


@pytest.mark.parametrize(
    ("lifetime_h", "left_h", "severity", "said"),
    [
        (90 * 24, 20 * 24, Severity.OK, "valid for 20d."),
        (90 * 24, 14 * 24, Severity.WARNING, "valid for 14d."),
        (160, 60, Severity.OK, "valid for 2d 12h."),  # Let's Encrypt's short-lived ones
        (160, 20, Severity.WARNING, "valid for 20h."),
        (12, 4, Severity.OK, "valid for 4h."),  # Caddy's own authority
        (12, 1, Severity.WARNING, "valid for 1h."),
    ],
)
def test_a_certificate_whose_renewal_is_late_is_a_warning(
    lifetime_h: int, left_h: int, severity: Severity, said: str
) -> None:
    """Late by the share of its own lifetime: some live for hours, others for months."""
    now_s = 1_790_000_000.0
    ends_s = now_s + left_h * 3600
    dates = {"notBefore": ends_s - lifetime_h * 3600, "notAfter": ends_s}
    form = "%b %d %H:%M:%S %Y GMT"
    found = judge_certificate(
        {name: time.strftime(form, time.gmtime(when)) for name, when in dates.items()}, now_s
    )
    assert (found.severity, found.message.endswith(said)) == (severity, True)


@pytest.mark.parametrize(
    ("headers", "advice"),
    [
        ({"Server": "nginx/1.22.1"}, "nginx: a; in any case"),
        ({"Via": "1.1 Caddy"}, "Caddy: b; in any case"),
        ({"Server": "Apache/2.4"}, "in any case"),
        ({}, "nginx: a; Caddy: b; in any case"),
    ],
)
def test_advice_is_for_the_proxy_that_was_found(headers: dict[str, str], advice: str) -> None:
    """By the name in its answers; without one, for every proxy that is known."""
    answer = Answer(httpx2.Response(502, headers=headers), 0.0)
    assert answer.advice("in any case", nginx="a", Caddy="b") == advice


async def test_without_a_key_the_rest_is_checked(tls: Tls, daemon: Daemon) -> None:
    """What needs a key is named as not checked."""
    async with target_behind("", daemon.port, tls, key="") as target:
        findings = await examined(target)
    assert errors(findings) == set()
    assert findings[-1].severity is Severity.SKIPPED
    assert "needs a client's key" in findings[-1].message


async def test_restricted_origins_are_judged_by_the_page_that_is_named(tls: Tls, tmp_path: Path) -> None:
    """They may be intended; for a page that should be able to call they are right or wrong."""
    settings = SETTINGS | {"cors.allow_origins": ["https://mine.example"]}
    with Daemon(tmp_path, settings=settings) as daemon:
        async with target_behind("", daemon.port, tls, key="") as target:
            for origin, severity in {
                None: Severity.WARNING,
                "https://mine.example": Severity.OK,
                "https://x.example": Severity.ERROR,
            }.items():
                findings = await examined(target, origin)
                assert next(f.severity for f in findings if f.where == "CORS") is severity, findings


async def test_a_paused_relay_is_a_warning(tls: Tls, daemon: Daemon) -> None:
    """The reason comes through."""
    await daemon.admin.pause()
    try:
        async with target_behind("", daemon.port, tls, key="") as target:
            findings = await examined(target)
    finally:
        await daemon.admin.resume()
    assert [f.severity for f in findings if f.where == "intake"] == [Severity.WARNING]


async def test_a_relay_without_its_database_is_no_fault_of_the_proxy(tls: Tls) -> None:
    """The errors are relayd's own, and what helps is neither `resume` nor an upgrade."""
    async with running_relay() as relay, target_behind("", relay.port, tls) as target:
        relay.state.ring.stale_after_s = 0.0
        relay.state.ring.confirm(0.0)
        findings = {finding.where: finding for finding in await examined(target)}
    assert findings["errors"].severity is Severity.OK
    assert findings["intake"].message.startswith("The database could not be asked")
    assert findings["key"].message.startswith("The relay cannot be tested: state_unavailable")
    assert {findings[name].remedy for name in ("intake", "key")} == {"relayd status says more"}


async def test_a_closed_port_is_named() -> None:
    """The message has the address, the port and the system's word."""
    async with fault_proxy(1) as port:
        pass
    findings = await examined(Target(site_at(port), KEY))
    assert [f.message for f in findings] == [f"{NAME} ({HOST}) port {port}: Connection refused."]


async def test_a_service_that_speaks_no_http_is_told() -> None:
    """As when the port is another service's."""

    async def other(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-other\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(other, HOST, 0)
    async with server:
        findings = await examined(Target(site_at(server.sockets[0].getsockname()[1]), KEY))
    assert findings[-1].message == "GET /healthz is not answered in HTTP."


@pytest.mark.parametrize(
    ("date", "now_s", "severity", "says"),
    [
        ("Sun, 09 Sep 2001 01:46:40 GMT", 1e9, Severity.OK, "agree"),
        ("Sun, 09 Sep 2001 01:46:40 GMT", 1e9 + 30, Severity.OK, "agree"),
        ("Sun, 09 Sep 2001 01:46:40 GMT", 1e9 + 600, Severity.ERROR, "is 600 s behind"),
        ("Sun, 09 Sep 2001 01:46:40 GMT", 1e9 - 45, Severity.ERROR, "is 45 s ahead of"),
        ("", 1e9, Severity.SKIPPED, "no Date"),
    ],
)
def test_clocks_may_differ_by_half_a_minute(date: str, now_s: float, severity: Severity, says: str) -> None:
    """More is an error that says which clock is behind; a missing date is not."""
    finding = judge_clock(date, now_s)
    assert finding.severity is severity
    assert says in finding.message


@pytest.mark.parametrize(
    ("seen", "address", "severity"),
    [
        ("127.0.0.1", "127.0.0.1", Severity.OK),
        ("192.0.43.8", "8.8.8.8", Severity.OK),
        ("10.0.0.7", "10.0.0.1", Severity.OK),
        ("127.0.0.1", "8.8.8.8", Severity.ERROR),
        ("172.18.0.2", "2606:4700::1111", Severity.ERROR),
        ("", "8.8.8.8", Severity.OK),
    ],
)
def test_clients_that_all_look_like_the_proxy_are_found(seen: str, address: str, severity: Severity) -> None:
    """A client of a public address that is seen as a private one is seen as the proxy."""
    assert judge_address(seen, address).severity is severity


_INTERVAL_S = 0.1
_SENT = [number * _INTERVAL_S for number in range(21)]


@pytest.mark.parametrize(
    ("times", "held_back"),
    [
        (_SENT, False),
        ([when + 1.5 for when in _SENT], False),  # a line of 1.5 s, steady
        ([max(when, 0.9) for when in _SENT], False),  # a machine that did nothing for 0.9 s
        ([0.0, *(when + 0.9 for when in _SENT[1:])], False),
        ([2.0] * 21, True),
        ([2.0 + when / 2 for when in _SENT], True),  # all of it at the end, read by a busy machine
        ([0.0] + [2.0] * 20, True),
        ([0.0] * 11 + _SENT[11:], True),
        ([0.5 * (when // 0.5) for when in _SENT], False),  # four lumps: late, but it flows
    ],
)
def test_only_a_lump_was_held_back(times: list[float], *, held_back: bool) -> None:
    """Nothing comes before it was sent: that tells a buffering proxy from a slow machine."""
    assert is_held_back(0.0, times, _INTERVAL_S) is held_back
