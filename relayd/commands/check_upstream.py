"""`relayd check --upstream`: the way to the provider, step by step: name, connection, TLS, key, models.

It does what the daemon does first, with the same settings. An error ends the check. It costs no tokens.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx2
import openai

from relayd.config import Settings
from relayd.config.errors import did_you_mean
from relayd.doctor.http_client import PORTS, judge_certificate
from relayd.findings import CheckFailed, Finding, ok, warning
from relayd.relay.redact import Redactor

_ANSWER_TIMEOUT_S = 20.0
_MAX_LISTED = 3


@dataclass(frozen=True, slots=True)
class Provider:
    """The provider to ask, the key to ask with, and the models that are wanted."""

    base_url: str
    key: str = field(repr=False)
    models: tuple[str, ...]
    connect_timeout_s: float = 5.0
    ssl_context: ssl.SSLContext | None = None
    """None: the system's authorities are trusted."""

    @classmethod
    def of(cls, settings: Settings) -> Provider:
        """Return the provider that is configured."""
        key = settings.openai_api_key
        return cls(
            settings.upstream.base_url,
            key.get_secret_value() if key is not None else "",
            tuple(dict.fromkeys((settings.chat.default_model, *settings.chat.allowed_models))),
            settings.upstream.connect_timeout_s,
        )


async def check(provider: Provider) -> AsyncIterator[Finding]:
    """Go the way to the provider; yield a finding for each step, the last one after an error."""
    url = urlsplit(provider.base_url)
    host, port = url.hostname or "", url.port or PORTS[url.scheme]
    context = provider.ssl_context or ssl.create_default_context()
    try:
        addresses = await _resolve(host, port)
        yield ok("name", f"{host} is {_listed(addresses)}")
        address, took_s = await _connect(addresses, port, provider.connect_timeout_s)
        yield ok("connect", f"{address} port {port} answers after {took_s * 1000:.0f} ms")
        if url.scheme == "https":
            yield await _handshake(address, host, port, context, provider.connect_timeout_s)
        else:
            yield warning("TLS", "none: upstream.base_url is plain HTTP", "use https:// if you can")
        offered = await _models(provider, context)
        yield ok("key", "accepted")
        yield _judge_models(provider.models, offered)
    except CheckFailed as failed:
        yield failed.finding


async def _resolve(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as fault:
        raise CheckFailed(
            "name",
            f"{host} has no address: {fault.strerror or fault}",
            "is upstream.base_url spelled right, and does this machine's DNS work?",
        ) from fault
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def _connect(addresses: Sequence[str], port: int, timeout_s: float) -> tuple[str, float]:
    """Return the first address that answers, and after how many seconds."""
    messages, is_refused = [], True
    for address in addresses:
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                _, writer = await asyncio.open_connection(address, port)
        except TimeoutError:
            messages.append(f"{address} port {port} does not answer within {timeout_s:g} s")
            is_refused = False
        except OSError as fault:
            reason = os.strerror(fault.errno) if fault.errno else str(fault)
            messages.append(f"{address} port {port}: {reason}")
            is_refused = is_refused and isinstance(fault, ConnectionRefusedError)
        else:
            writer.transport.abort()
            return address, time.monotonic() - began
    raise CheckFailed(
        "connect",
        "; ".join(messages),
        "nothing listens there: is upstream.base_url right?"
        if is_refused
        else "does a firewall of this machine or its network block it?",
    )


async def _handshake(
    address: str, host: str, port: int, context: ssl.SSLContext, timeout_s: float
) -> Finding:
    try:
        async with asyncio.timeout(timeout_s * 2):
            _, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=host)
    except ssl.SSLCertVerificationError as fault:
        raise CheckFailed(
            "TLS",
            f"the certificate of {host} is not trusted: {fault.verify_message.rstrip('.')}",
            "is this machine's clock right, are ca-certificates installed, does a proxy intercept TLS? "
            "A private authority can be named in $SSL_CERT_FILE.",
        ) from fault
    except (OSError, TimeoutError) as fault:
        raise CheckFailed(
            "TLS", f"{host} does not speak TLS at port {port}: {fault}", "is the port right?"
        ) from fault
    certificate, version = writer.get_extra_info("peercert"), writer.get_extra_info("ssl_object").version()
    writer.transport.abort()
    return judge_certificate(certificate, f"{version}, the certificate of {host}")


async def _models(provider: Provider, context: ssl.SSLContext) -> list[str]:
    """Return the names of the provider's models; that the list comes shows that the key is accepted."""
    if not provider.key:
        raise CheckFailed(
            "key", "there is none", "set OPENAI_API_KEY or openai_api_key_file, or run: relayd init"
        )
    redact = Redactor(provider.key)
    client = openai.AsyncOpenAI(
        api_key=provider.key,
        base_url=provider.base_url,
        timeout=_ANSWER_TIMEOUT_S,
        max_retries=0,
        http_client=httpx2.AsyncClient(verify=context, follow_redirects=False, trust_env=False),
    )
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S), client:
            response = await client.get("/models", cast_to=httpx2.Response)
    except openai.APIStatusError as fault:
        body = fault.body if isinstance(fault.body, dict) else {}
        message = f"{fault.status_code} {redact(str(body.get('message') or ''))}".rstrip()
        raise _status_failure(fault.status_code, message) from fault
    except (openai.APIConnectionError, TimeoutError) as fault:
        reason = redact(str(fault.__cause__ or "")) or f"no answer within {_ANSWER_TIMEOUT_S:g} s"
        raise CheckFailed(
            "key", f"asking for the models failed: {reason}", "try again; the provider may be down"
        ) from fault
    try:
        return [str(model["id"]) for model in json.loads(response.content)["data"]]
    except (ValueError, LookupError, TypeError) as fault:
        raise CheckFailed(
            "models",
            f"{provider.base_url}/models answers, but not with a list of models",
            "does upstream.base_url end in /v1?",
        ) from fault


def _status_failure(status: int, message: str) -> CheckFailed:
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return CheckFailed("key", f"refused: {message}", "make a new key at the provider, and use that one")
    if status == HTTPStatus.NOT_FOUND:
        return CheckFailed(
            "models", f"there is no list of models: {message}", "does upstream.base_url end in /v1?"
        )
    if status in range(300, 400):
        return CheckFailed(
            "models", f"a redirect: {message}", "set upstream.base_url to the address that it leads to"
        )
    return CheckFailed(
        "models", f"the provider failed: {message}", "try again later, or see the provider's status page"
    )


def _judge_models(wanted: Sequence[str], offered: Sequence[str]) -> Finding:
    missing = [name for name in wanted if name not in offered]
    if not missing:
        return ok("models", f"{len(offered)} are offered, {_listed(wanted)} among them")
    hints = [f"{name} (did you mean {near}?)" for name in missing if (near := did_you_mean(name, offered))]
    return warning(
        "models",
        f"{len(offered)} are offered, but not {_listed(hints or missing)}",
        "set chat.default_model and chat.allowed_models to names that this key may use",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
