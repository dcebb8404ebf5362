"""The command itself: its arguments, and how findings are shown."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import ssl
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from relayd.doctor import outside, streams
from relayd.doctor.finding import Finding, Level, skipped
from relayd.doctor.streams import Patient
from relayd.doctor.wire import Site

_MARKS = {Level.GOOD: "good", Level.DOUBT: "DOUBT", Level.FAULT: "FAULT", Level.SKIPPED: "-"}
_MARK_COLUMNS = 6
_CHECK_COLUMNS = 14


class DoctorError(Exception):
    """What was given can't be used; the text says why."""


def run(args: Namespace) -> int:
    """Look at the deployment; returns 0 where no fault was found."""
    try:
        url = parse_url(args.url)
        return asyncio.run(_run(args, url, _tls(url, args.ca), _key(args, os.environ)))
    except DoctorError as error:
        sys.stderr.write(f"relayd: {error}\n")
    except OSError as error:
        sys.stderr.write(f"relayd: {error.filename or args.url}: {error.strerror or error}\n")
    return 1


async def _run(args: Namespace, url: SplitResult, tls: ssl.SSLContext | None, key: str) -> int:
    site = Site(url, args.address or await _address(url), tls)
    found = []
    async for finding in examine(Patient(site, key), origin=args.origin):
        found.append(finding)
        if not args.json:
            _show(finding)
    faults = sum(finding.level is Level.FAULT for finding in found)
    if args.json:
        document = {"url": url.geturl(), "faults": faults, "findings": [_facts(finding) for finding in found]}
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        sys.stdout.write(f"\n{_verdict(faults, found)}\n")
    return 1 if faults else 0


async def examine(patient: Patient, *, origin: str | None = None) -> AsyncIterator[Finding]:
    """Every check, in the order in which a person would mend; each finding as it is made.

    Args:
        patient: the deployment; without a key, what needs one is left out.
        origin: of a page that should be able to call; None looks with one that does not exist.
    """
    async for finding in outside.look(patient.site, origin):
        yield finding
        if finding.ends:
            return
    if not patient.key:
        yield skipped(
            "streams", "Not looked at: that needs a client's key (--key-file, or AUTHORIZATION_KEY)."
        )
        return
    async for finding in streams.look(patient):
        yield finding


def parse_url(text: str) -> SplitResult:
    """The deployment's address; without a scheme HTTPS is meant.

    Raises:
        DoctorError: it is none.
    """
    url = urlsplit(text if "://" in text else f"https://{text}")
    try:
        usable = url.scheme in {"http", "https"} and url.hostname and (url.port or True)
    except ValueError:
        usable = False
    if not usable or url.username or url.query or url.fragment:
        raise DoctorError(
            f"{text!r} is no address; say https://relay.example.com, with the path that leads to it."
        )
    return url._replace(path=url.path.rstrip("/").removesuffix("/chat"))


def _tls(url: SplitResult, authority: Path | None) -> ssl.SSLContext | None:
    """How the site's certificate is judged."""
    if url.scheme != "https" or authority is None:
        return ssl.create_default_context() if url.scheme == "https" else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        # Read here, so that a file that can't be read is named.
        context.load_verify_locations(cadata=authority.read_text(encoding="ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise DoctorError(f"--ca {authority} holds no certificate in PEM.") from error
    return context


async def _address(url: SplitResult) -> str:
    host = url.hostname or ""
    try:
        return await outside.resolved(host, url.port or 0)
    except OSError as error:
        raise DoctorError(
            f"{host} has no address: {error.strerror or error}; is it spelled right?"
        ) from error


def _key(args: Namespace, env: Mapping[str, str]) -> str:
    if args.key_file == "-":
        return sys.stdin.read().strip()
    if args.key_file is not None:
        return Path(args.key_file).read_text(encoding="utf-8").strip()
    if "AUTHORIZATION_KEY" in env:
        return env["AUTHORIZATION_KEY"]
    if sys.stdin.isatty() and not args.json:
        return getpass.getpass("A client's key (not shown; empty: look without): ").strip()
    return ""


def _facts(finding: Finding) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(finding).items() if name != "ends"}


def _show(finding: Finding) -> None:
    mark = f"{_MARKS[finding.level]:<{_MARK_COLUMNS}}"
    sys.stdout.write(f"{mark}{finding.check:<{_CHECK_COLUMNS}}{finding.said}\n")
    if finding.todo:
        sys.stdout.write(f"{'':<{_MARK_COLUMNS + _CHECK_COLUMNS}}-> {finding.todo}\n")
    sys.stdout.flush()


def _verdict(faults: int, found: list[Finding]) -> str:
    doubts = sum(finding.level is Level.DOUBT for finding in found)
    beside = f", {doubts} doubtful" if doubts else ""
    if not faults:
        return f"No fault found{beside}."
    return f"{faults} fault{'s' * (faults > 1)} found{beside}."
