"""Checks that need no key: what anyone on the network sees of this relay."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from relayd.doctor.finding import Finding, Level, doubt, fault, good
from relayd.doctor.wire import Answer, Site, Unanswered

_EXPIRES_SOON_DAYS = 14
_DAY_S = 86400
_SKEW_S = 30.0
_HTTPS_PORT = 443


async def look(site: Site, origin: str | None) -> AsyncIterator[Finding]:
    """Everything that is seen without a key."""
    try:
        yield await _reach(site)
        health = await site.ask("GET", "/healthz")
        yield _judge_relay(health)
        yield judge_clock(health.header("Date"), time.time())
        if site.tls is not None and site.port == _HTTPS_PORT:
            yield await _plain_http(site)
        yield await _ready(site)
        yield await _preflight(site, origin)
        yield await _errors(site, origin)
    except Unanswered as error:
        yield fault(
            "relay", f"{error}.", "is the proxy's address of relayd right, and does relayd run?", ends=True
        )


async def _reach(site: Site) -> Finding:
    """Connection, and TLS where the address asks for it."""
    where = f"{site.host} ({site.address}) port {site.port}"
    try:
        async with site.connect() as connection:
            certificate = connection.certificate
    except ssl.SSLCertVerificationError as error:
        return fault(
            "TLS",
            f"The certificate of {site.host} is not trusted: {error.verify_message.rstrip('.')}.",
            "the proxy needs a certificate for this name from an authority that browsers know; "
            "Caddy gets one by itself, certbot does for nginx. Your own authority: --ca FILE.",
            ends=True,
        )
    except TimeoutError:
        return fault(
            "reach", f"{where} does not answer.", "does a firewall stop it, does the proxy run?", ends=True
        )
    except OSError as error:
        said = os.strerror(error.errno) if error.errno else str(error)
        return fault("reach", f"{where}: {said}.", "does the proxy run and listen there?", ends=True)
    if site.tls is None:
        if _is_local(site.host):
            return good("TLS", "Plain HTTP, but only to this machine.")
        return fault(
            "TLS",
            "Plain HTTP: everyone on the way can read keys and texts.",
            "put a proxy with a certificate in front, and listen on 127.0.0.1 behind it: docs/deploy.md",
        )
    return _judge_certificate(certificate)


def _judge_certificate(certificate: Mapping[str, Any]) -> Finding:
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / _DAY_S
    if days < _EXPIRES_SOON_DAYS:
        return doubt(
            "TLS", f"The certificate ends in {days:.0f} days.", "is its renewal at work? (certbot renew)"
        )
    return good("TLS", f"The certificate is trusted, and good for {days:.0f} days.")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _plain_http(site: Site) -> Finding:
    """Beside HTTPS: whether keys could still be sent in the clear."""
    plain = Site(site.url._replace(scheme="http"), site.address, None)
    try:
        answer = await plain.ask("GET", "/healthz")
    except Unanswered:
        return good("plain HTTP", "Port 80 does not answer.")
    if answer.status in range(300, 400):
        return good("plain HTTP", f"Port 80 sends to {answer.header('Location')}.")
    if answer.status == HTTPStatus.OK:
        return fault(
            "plain HTTP",
            "http:// serves as well: a client with a wrong address sends its key in the clear.",
            "answer port 80 with a redirect (308) only, as in docs/deploy",
        )
    return good("plain HTTP", f"Port 80 answers {answer.status}.")


def _judge_relay(health: Answer) -> Finding:
    if health.status == HTTPStatus.OK and health.event(0).get("status") == "ok":
        behind = health.header("Server") or health.header("Via")
        return good("relay", f"relayd answers{f', behind {behind}' if behind else ''}.")
    return fault(
        "relay",
        f"/healthz answers {health.status}, and not as relayd does.",
        "does the URL lead to relayd, with its path? 502 and 503 mean that the proxy does not reach it.",
        ends=True,
    )


def judge_clock(date: str, now_s: float) -> Finding:
    """Whether the two clocks agree.

    Args:
        date: the header of an answer, or empty.
        now_s: this machine's time, in seconds since the epoch.
    """
    try:
        theirs_s = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return Finding("clock", Level.SKIPPED, "No Date came.")
    skew_s = theirs_s - now_s
    if abs(skew_s) <= _SKEW_S:
        return good("clock", "The server's clock and this one agree.")
    which = "ahead of" if skew_s > 0 else "behind"
    return fault(
        "clock",
        f"The server's clock is {abs(skew_s):.0f} s {which} this one: expiry and times in the log are off.",
        "on the machine that is wrong: timedatectl set-ntp true",
    )


async def _ready(site: Site) -> Finding:
    answer = await site.ask("GET", "/readyz")
    if answer.status == HTTPStatus.OK:
        return good("intake", "New work is taken.")
    reason = answer.event(0).get("reason") or f"/readyz answers {answer.status}"
    return doubt("intake", str(reason), "relayd status says more; relayd resume takes work again")


async def _preflight(site: Site, origin: str | None) -> Finding:
    asked = origin or "https://page.example"
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
        return fault(
            "CORS",
            f"A browser's preflight is answered {answer.status}: no page can call.",
            "pass OPTIONS on to relayd, and ask for no password or key there",
        )
    allowed = answer.header("Access-Control-Allow-Headers").lower()
    return _judge_origin(answer, asked, named=origin is not None) or (
        good("CORS", f"Pages of {asked} may call.")
        if "authorization" in allowed and "content-type" in allowed
        else fault(
            "CORS",
            "The preflight does not allow the header Authorization.",
            "let relayd alone answer OPTIONS; the proxy should set no Access-Control- header",
        )
    )


def _judge_origin(answer: Answer, asked: str, *, named: bool) -> Finding | None:
    """What is wrong with Access-Control-Allow-Origin; None where nothing is."""
    values = answer.all("Access-Control-Allow-Origin")
    if values == [asked]:
        return None
    if len(values) > 1:
        return fault(
            "CORS",
            f"Access-Control-Allow-Origin comes {len(values)} times: browsers then refuse every answer.",
            "the proxy adds its own; remove that (nginx: add_header, HAProxy: set-header)",
        )
    if values:
        return fault(
            "CORS",
            f"Access-Control-Allow-Origin is {values[0]!r}, and was not set by relayd.",
            "remove it from the proxy; relayd echoes each origin that cors.allow_origins holds",
        )
    if named:
        return fault("CORS", f"Pages of {asked} may not call.", f'add "{asked}" to cors.allow_origins')
    return doubt(
        "CORS",
        "Not every page may call, which may be meant.",
        "look again with --origin and the address of a page that should",
    )


async def _errors(site: Site, origin: str | None) -> Finding:
    """A request without a key: its refusal must come through as relayd wrote it."""
    asked = origin or "https://page.example"
    answer = await site.ask("POST", "/chat", {"Origin": asked}, json.dumps({"messages": []}).encode())
    if answer.header("X-Relayd-Error") == "unauthorized" and answer.event(0).get("error") is True:
        wrong = _judge_origin(answer, asked, named=origin is not None)
        # Already said of the preflight where it is the same.
        return wrong if wrong and wrong.level is Level.FAULT else good("errors", "Refusals come through.")
    if "basic" in answer.header("WWW-Authenticate").lower():
        return fault(
            "errors",
            "The proxy asks for a password of its own, in the header that holds a client's key.",
            "remove it (nginx: auth_basic, Caddy: basicauth); relayd's keys do this work",
        )
    return fault(
        "errors",
        f"A refusal comes as {answer.status} with {answer.header('Content-Type') or 'no type'}: "
        "the proxy puts its own page in place of relayd's.",
        "pass errors on (nginx: proxy_intercept_errors off; Caddy: no handle_response)",
    )


async def resolved(host: str, port: int) -> str:
    """The first address of a name. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port)
    return str(found[0][4][0])
