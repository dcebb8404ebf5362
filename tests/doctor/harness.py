"""A relay behind a proxy with one planted fault, or none, and what the doctor finds."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relayd.doctor.command import examine, parse_url
from relayd.doctor.http_client import Site
from relayd.doctor.stream_checks import Target
from relayd.findings import Finding, Severity
from tests.doctor.fault_proxy import fault_proxy
from tests.e2e.daemon import KEY
from tests.wire import HOST

NAME = "relay.test"
SETTINGS = {"chat.heartbeat_s": 2.0}

Tls = tuple[ssl.SSLContext, ssl.SSLContext]
"""The proxy's context, and that of a doctor that trusts it."""


def site_at(port: int, tls: ssl.SSLContext | None = None) -> Site:
    """Return a port of this machine under a name that could be anywhere."""
    return Site(parse_url(f"{'https' if tls else 'http'}://{NAME}:{port}"), HOST, tls)


@asynccontextmanager
async def target_behind(fault: str, port: int, tls: Tls | None, *, key: str = KEY) -> AsyncIterator[Target]:
    """Run a proxy with this fault before the relay at `port`; without `tls` over plain HTTP."""
    async with fault_proxy(port, fault, tls[0] if tls else None) as proxy_port:
        yield Target(site_at(proxy_port, tls[1] if tls else None), key)


async def examined(target: Target, origin: str | None = None) -> list[Finding]:
    """Return every finding."""
    return [finding async for finding in examine(target, origin=origin)]


def errors(findings: list[Finding]) -> set[str]:
    """Return the checks that found an error."""
    return {finding.where for finding in findings if finding.severity is Severity.ERROR}
