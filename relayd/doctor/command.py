"""The command itself: its arguments, and how findings are shown."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import ssl
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from relayd.commands.effective_settings import check_database, load_effective
from relayd.config import ConfigError
from relayd.doctor.http_client import Site
from relayd.doctor.public_checks import check_public
from relayd.doctor.stream_checks import Target, check_streams
from relayd.findings import CheckFailed, Finding, Severity, collect, skipped


class DoctorError(Exception):
    """What was given cannot be used; the text says why."""


def run(args: Namespace) -> int:
    """Look at the deployment; returns 0 if no error was found."""
    try:
        url = parse_url(args.url)
        return asyncio.run(_run(args, url, _tls_context(url, args.ca), _read_key(args, os.environ)))
    except DoctorError as error:
        sys.stderr.write(f"relayd: {error}\n")
    except OSError as error:
        sys.stderr.write(f"relayd: {error.filename or args.url}: {error.strerror or error}\n")
    return 1


async def _run(args: Namespace, url: SplitResult, tls: ssl.SSLContext | None, key: str) -> int:
    target = Target(Site(url, args.address or await _resolve(url), tls), key)
    out = None if args.json else sys.stdout
    findings = await collect(examine(target, origin=args.origin), out)
    findings += await collect(_examine_database(), out)
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    if args.json:
        facts = [finding.as_json() for finding in findings]
        sys.stdout.write(json.dumps({"url": url.geturl(), "errors": errors, "findings": facts}) + "\n")
    else:
        sys.stdout.write(f"\n{_verdict(errors, findings)}\n")
    return 1 if errors else 0


async def examine(target: Target, *, origin: str | None = None) -> AsyncIterator[Finding]:
    """Make every check, in the order in which a person would correct things; yield each finding.

    Args:
        target: the deployment; without a key, the checks that need one are left out.
        origin: of a web page that should be able to use the relay; None tries a made-up one.
    """
    try:
        async for finding in check_public(target.site, origin):
            yield finding
        if not target.key:
            yield skipped(
                "streams", "Not checked: that needs a client's key (--key-file, or AUTHORIZATION_KEY)."
            )
            return
        async for finding in check_streams(target):
            yield finding
    except CheckFailed as failed:
        yield failed.finding


async def _examine_database() -> AsyncIterator[Finding]:
    """Look at the database of the relay whose configuration this machine has, if it has one."""
    try:
        effective = load_effective(None)
        for finding in await asyncio.to_thread(check_database, effective):
            yield finding
        if "state.url" in effective.hidden:
            yield skipped("database", f"Not checked: only root can read {effective.hidden['state.url']}.")
    except ConfigError:
        yield skipped("database", "Not checked: the configuration of this machine has errors (relayd check).")


def parse_url(text: str) -> SplitResult:
    """Return the deployment's address; without a scheme HTTPS is meant.

    Raises:
        DoctorError: it is not an address.
    """
    not_an_address = DoctorError(f"{text!r} is not an address; write it like https://relay.example.com/path.")
    try:
        url = urlsplit(text if "://" in text else f"https://{text}")
        is_usable = url.scheme in {"http", "https"} and url.hostname and (url.port or True)
    except ValueError:
        raise not_an_address from None
    if not is_usable or url.username or url.query or url.fragment:
        raise not_an_address
    return url._replace(path=url.path.rstrip("/").removesuffix("/chat"))


def _tls_context(url: SplitResult, authority: Path | None) -> ssl.SSLContext | None:
    """Return what judges the site's certificate; None for plain HTTP."""
    if url.scheme != "https" or authority is None:
        return ssl.create_default_context() if url.scheme == "https" else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        # Read here, so that the error names a file that cannot be read.
        context.load_verify_locations(cadata=authority.read_text(encoding="ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise DoctorError(f"--ca {authority} holds no certificate in PEM.") from error
    return context


async def _resolve(url: SplitResult) -> str:
    """Return the first address of the site's host."""
    host = url.hostname or ""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, url.port or 0)
    except OSError as error:
        raise DoctorError(
            f"{host} has no address: {error.strerror or error}; is it spelled right?"
        ) from error
    return str(found[0][4][0])


def _read_key(args: Namespace, env: Mapping[str, str]) -> str:
    if args.key_file == "-":
        return sys.stdin.read().strip()
    if args.key_file is not None:
        return Path(args.key_file).read_text(encoding="utf-8").strip()
    if "AUTHORIZATION_KEY" in env:
        return env["AUTHORIZATION_KEY"]
    if sys.stdin.isatty() and not args.json:
        return getpass.getpass("A client's key (not shown; empty: check without): ").strip()
    return ""


def _verdict(errors: int, findings: Sequence[Finding]) -> str:
    warnings = sum(finding.severity is Severity.WARNING for finding in findings)
    counts = f"{errors or 'No'} error{'' if errors == 1 else 's'} found"
    return f"{counts}, {warnings} warning{'' if warnings == 1 else 's'}." if warnings else f"{counts}."
