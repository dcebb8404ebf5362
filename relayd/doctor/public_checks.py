"""Checks that need no key: what anyone on the network sees of this relay."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from relayd.doctor.http_client import ANSWER_TIMEOUT_S, PORTS, Answer, NoAnswer, Site, connect
from relayd.findings import CheckFailed, Finding, Severity, error, ok, skipped, warning

_MAX_SKEW_S = 30.0
_UNKNOWN_ORIGIN = "https://page.example"


async def check_public(site: Site, origin: str | None) -> AsyncIterator[Finding]:
    """Yield a finding for each check that needs no key.

    Args:
        site: the deployment.
        origin: of a web page that should be able to use the relay; None tries a made-up one.

    Raises:
        CheckFailed: the relay cannot be reached.
    """
    try:
        connection = connect(site.host, site.port, site.tls, timeout_s=ANSWER_TIMEOUT_S, address=site.address)
        async for finding in connection:
            yield finding
        if site.tls is None:
            yield _judge_plain_http(site)
        health = await site.ask("GET", "/healthz")
        yield _judge_health(health)
        yield judge_clock(health.header("Date"), time.time())
        if site.tls is not None and site.port == PORTS["https"]:
            yield await _check_port_80(site)
        yield await _check_readiness(site)
        yield await _check_preflight(site, origin)
        yield await _check_refusal(site, origin)
    except NoAnswer as fault:
        raise CheckFailed(
            "relay", f"{fault}.", "does the proxy forward to relayd's address, and does relayd run?"
        ) from fault


def _judge_plain_http(site: Site) -> Finding:
    if _is_loopback(site.host):
        return ok("TLS", "Plain HTTP, but only to this machine.")
    return error(
        "TLS",
        "Plain HTTP: keys and texts can be read in transit.",
        "put a proxy with a certificate in front, and listen on 127.0.0.1 behind it: docs/deploy.md",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _judge_health(health: Answer) -> Finding:
    if health.status == HTTPStatus.OK and health.event(0).get("status") == "ok":
        behind = health.header("Server") or health.header("Via")
        return ok("relay", f"relayd answers{f', behind {behind}' if behind else ''}.")
    raise CheckFailed(
        "relay",
        f"/healthz answers {health.status}, and not as relayd does.",
        "does the URL lead to relayd, with its path? 502 and 503 mean that the proxy does not reach it.",
    )


def judge_clock(date: str, now_s: float) -> Finding:
    """Compare the server's clock with this one.

    Args:
        date: the Date header of an answer, or empty.
        now_s: this machine's time, in seconds since the epoch.
    """
    try:
        server_s = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return skipped("clock", "The answer has no Date header.")
    skew_s = server_s - now_s
    if abs(skew_s) <= _MAX_SKEW_S:
        return ok("clock", "The server's clock and this one agree.")
    return error(
        "clock",
        f"The server's clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} this one:"
        " the expiry of keys and the times in the log are wrong.",
        "on the machine that is wrong: timedatectl set-ntp true",
    )


async def _check_port_80(site: Site) -> Finding:
    """Check that a client that asks for http:// does not send its key in the clear."""
    plain = Site(site.url._replace(scheme="http", netloc=site.host), site.address, None)
    try:
        answer = await plain.ask("GET", "/healthz")
    except NoAnswer:
        return ok("plain HTTP", "Port 80 does not answer.")
    if answer.status in range(300, 400):
        return ok("plain HTTP", f"Port 80 redirects to {answer.header('Location')}.")
    if answer.status == HTTPStatus.OK:
        return error(
            "plain HTTP",
            "http:// works too: a client that uses it sends its key unencrypted.",
            "answer port 80 with a redirect (308) only, as in docs/deploy",
        )
    return ok("plain HTTP", f"Port 80 answers {answer.status}.")


async def _check_readiness(site: Site) -> Finding:
    answer = await site.ask("GET", "/readyz")
    if answer.status == HTTPStatus.OK:
        return ok("intake", "New requests are accepted.")
    reason = answer.event(0).get("reason") or f"/readyz answers {answer.status}"
    remedy = "relayd status says more"
    if answer.event(0).get("status") == "paused":
        remedy += "; relayd resume accepts requests again"
    return warning("intake", str(reason), remedy)


async def _check_preflight(site: Site, origin: str | None) -> Finding:
    asked = origin or _UNKNOWN_ORIGIN
    answer = await site.ask(
        "OPTIONS",
        "/chat",
        {
            "Origin": asked,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        },
    )
    if answer.status not in range(200, 300):
        return error(
            "CORS",
            f"A browser's preflight gets {answer.status}, so no web page can use this relay.",
            "forward OPTIONS to relayd, without asking for a password or key",
        )
    wrong_origin = _judge_origin(answer, asked, is_named=origin is not None)
    if wrong_origin:
        return wrong_origin
    allowed = answer.header("Access-Control-Allow-Headers").lower()
    if "authorization" not in allowed or "content-type" not in allowed:
        return error(
            "CORS",
            "The preflight does not allow the Authorization header.",
            "let only relayd answer OPTIONS; the proxy should set no Access-Control- header",
        )
    return ok("CORS", f"Web pages of {asked} may use this relay.")


def _judge_origin(answer: Answer, asked: str, *, is_named: bool) -> Finding | None:
    """Return what is wrong with Access-Control-Allow-Origin, or None."""
    values = answer.values("Access-Control-Allow-Origin")
    if values == [asked]:
        return None
    if len(values) > 1:
        return error(
            "CORS",
            f"Access-Control-Allow-Origin is set {len(values)} times, so browsers refuse every answer.",
            "the proxy adds its own; remove that; "
            + answer.advice(nginx="add_header", Caddy="header", HAProxy="set-header"),
        )
    if values:
        return error(
            "CORS",
            f"Access-Control-Allow-Origin is {values[0]!r}, and was not set by relayd.",
            "remove it from the proxy; relayd answers with each origin in cors.allow_origins",
        )
    if is_named:
        return error(
            "CORS", f"Web pages of {asked} may not use this relay.", f'add "{asked}" to cors.allow_origins'
        )
    return warning(
        "CORS",
        "Not every web page may use this relay, which may be intended.",
        "run again with --origin and the address of a page that should be able to use it",
    )


async def _check_refusal(site: Site, origin: str | None) -> Finding:
    """Check that the refusal of a request without a key comes through as relayd wrote it."""
    asked = origin or _UNKNOWN_ORIGIN
    answer = await site.ask("POST", "/chat", {"Origin": asked}, json.dumps({"messages": []}).encode())
    # A relay that takes no requests refuses with another code than `unauthorized`.
    if answer.header("X-Relayd-Error") and answer.event(0).get("error") is True:
        wrong_origin = _judge_origin(answer, asked, is_named=origin is not None)
        # A mere warning was given for the preflight already.
        if wrong_origin and wrong_origin.severity is Severity.ERROR:
            return wrong_origin
        return ok("errors", "Errors arrive as relayd sends them.")
    if "basic" in answer.header("WWW-Authenticate").lower():
        return error(
            "errors",
            "The proxy asks for a password of its own, in the header that holds a client's key.",
            "remove it, relayd checks its own keys; "
            + answer.advice(nginx="auth_basic", Caddy="basic_auth", HAProxy="http-request auth"),
        )
    return error(
        "errors",
        f"An error arrives as {answer.status} with {answer.header('Content-Type') or 'no type'}: "
        "the proxy replaces relayd's response with its own page.",
        "pass errors on; "
        + answer.advice(
            nginx="proxy_intercept_errors off", Caddy="no handle_response", HAProxy="no http-error"
        ),
    )
