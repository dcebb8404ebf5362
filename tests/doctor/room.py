"""A relay behind a proxy with one planted fault, or none, and what the doctor finds of it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relayd.doctor.command import examine, parse_url
from relayd.doctor.finding import Finding, Level
from relayd.doctor.streams import Patient
from relayd.doctor.wire import Site
from relayd.relay.stream import StreamLimits
from tests.doctor.faultproxy import fault_proxy
from tests.public.room import KEY, Setup, public_room
from tests.wire import HOST

NAME = "relay.test"
SETUP = Setup(limits=StreamLimits(heartbeat_s=1.0), max_body_bytes=2 << 20)

Tls = tuple[ssl.SSLContext, ssl.SSLContext]
"""The proxy's context, and that of a doctor who trusts it."""


def site_at(port: int, tls: ssl.SSLContext | None = None) -> Site:
    """A port of this machine under a name that could be anywhere."""
    return Site(parse_url(f"{'https' if tls else 'http'}://{NAME}:{port}"), HOST, tls)


@asynccontextmanager
async def patient(
    fault: str, tls: Tls | None, *, setup: Setup = SETUP, key: str = KEY
) -> AsyncIterator[Patient]:
    """A relay behind a proxy with this fault; without `tls` over plain HTTP."""
    async with public_room(setup) as room, fault_proxy(room.port, fault, tls[0] if tls else None) as port:
        yield Patient(site_at(port, tls[1] if tls else None), key, interval_ms=50)


async def examined(who: Patient, origin: str | None = None) -> list[Finding]:
    """Every finding."""
    return [finding async for finding in examine(who, origin=origin)]


def faults(found: list[Finding]) -> set[str]:
    """The checks that found one."""
    return {finding.check for finding in found if finding.level is Level.FAULT}


async def found_and_no_other(planted: str, checks: set[str], says: str, todo: str, tls: Tls) -> None:
    """A planted fault is told with its remedy, and only by the checks that it concerns."""
    async with patient(planted, tls) as who:
        found = await examined(who)
    assert faults(found) <= checks, found
    told = [finding for finding in found if finding.level is Level.FAULT and says in finding.said]
    assert told, found
    assert todo in told[0].todo
