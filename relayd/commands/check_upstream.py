"""`relayd check --upstream`: the way to the provider, step by step: connection, TLS, key, models.

It does what the daemon does first, with the same settings. An error ends the check. It costs no tokens.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx2
from pydantic import SecretStr

from relayd.config import Settings
from relayd.config.errors import did_you_mean
from relayd.doctor.http_client import PORTS, connect
from relayd.findings import CheckFailed, Finding, ok, warning
from relayd.printable import printable
from relayd.relay.redact import Redactor
from relayd.relay.transport import ConnectionBroken, Dialer, HttpTransport, incoming
from relayd.relay.transport.proxy import ProxyFailed

_ANSWER_TIMEOUT_S = 20.0
_MAX_LISTED = 3
_TRY_AGAIN = "try again; the provider may be down"
_MAX_ANSWER_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Provider:
    """The provider to ask, the key to ask with, and the models that are wanted."""

    base_url: str
    key: str = field(repr=False)
    models: tuple[str, ...]
    connect_timeout_s: float = 5.0
    proxy_url: str = field(default="", repr=False)
    ssl_context: ssl.SSLContext | None = None
    """None: the system's authorities are trusted."""
    route: str = ""
    """The name of the route; empty: there are none."""

    @classmethod
    def all_of(cls, settings: Settings) -> list[Provider]:
        """Return the providers that are configured: that of each route, or the only one."""
        upstream = settings.upstream
        asked_for = (settings.chat.default_model, *settings.chat.allowed_models)
        models = tuple(dict.fromkeys(settings.aliases.get(model, model) for model in asked_for))
        only = cls(
            upstream.base_url,
            _text(settings.openai_api_key),
            models,
            upstream.connect_timeout_s,
            upstream.proxy.get_secret_value(),
        )
        return [
            replace(
                only,
                base_url=settings.route_url(route),
                key=_text(settings.route_key(route)),
                models=tuple(filter(route.serves, models)),
                route=route.name,
            )
            for route in upstream.route
        ] or [only]


async def check_all(providers: Sequence[Provider]) -> AsyncIterator[Finding]:
    """Check one provider after the other; a finding says which route it is of."""
    for provider in providers:
        async for finding in check(provider):
            where = f"{provider.route} {finding.where}".strip()
            yield replace(finding, where=where)


def _text(secret: SecretStr | None) -> str:
    return "" if secret is None else secret.get_secret_value()


async def check(provider: Provider) -> AsyncIterator[Finding]:
    """Go the way to the provider; yield a finding for each step, the last one after an error."""
    url = urlsplit(provider.base_url)
    is_tls = url.scheme == "https"
    context = provider.ssl_context or ssl.create_default_context()
    try:
        if not provider.proxy_url:
            connection = connect(
                url.hostname or "",
                url.port or PORTS[url.scheme],
                context if is_tls else None,
                timeout_s=provider.connect_timeout_s,
            )
            async for finding in connection:
                yield finding
        if not is_tls:
            yield warning("TLS", "None: upstream.base_url is plain HTTP.", "use https:// if you can")
        answer = await _ask_for_models(provider, context)
        if provider.proxy_url:
            yield ok("proxy", "It makes the connection.")
        offered = _read_models(provider, *answer)
        yield ok("key", "The provider accepts it.")
        yield _judge_models(provider.models, offered)
    except CheckFailed as failed:
        yield failed.finding


async def _ask_for_models(provider: Provider, context: ssl.SSLContext) -> tuple[int, bytes]:
    """Return status and body of the list of models."""
    if not provider.key:
        remedy = "set OPENAI_API_KEY or openai_api_key_file, or run: relayd init"
        raise CheckFailed("key", "There is none.", remedy)
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            return await _get_models(provider, context)
    except httpx2.ConnectError as fault:
        where, remedy = _judge_fault(fault) if provider.proxy_url else ("connect", _TRY_AGAIN)
        raise CheckFailed(where, f"The provider cannot be reached: {fault}.", remedy) from fault
    except (httpx2.TransportError, ConnectionBroken, TimeoutError) as fault:
        reason = Redactor(provider.key)(str(fault)) or f"no answer within {_ANSWER_TIMEOUT_S:g} s"
        raise CheckFailed("key", f"Asking for the models failed: {reason}.", _TRY_AGAIN) from fault


def _judge_fault(fault: httpx2.ConnectError) -> tuple[str, str]:
    """Return which step failed on the way through a proxy, and the remedy."""
    causes = list(_causes(fault))
    is_proxy = any(isinstance(cause, ProxyFailed) for cause in causes)
    where = "proxy" if is_proxy else "TLS"
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            condition = "its authority is your own" if is_proxy else "the proxy decrypts TLS"
            return where, (
                f"if {condition}, add the proxy's authority to the system's, or set SSL_CERT_FILE to it;"
                " is this machine's clock right?"
            )
        if isinstance(cause, ssl.SSLError):
            server = "upstream.proxy" if is_proxy else "upstream.base_url"
            return where, f"are scheme and port in {server} right?"
    return "proxy", "are address, user and password in upstream.proxy right, and may it reach the provider?"


def _causes(fault: BaseException) -> Iterator[BaseException]:
    cause = fault.__cause__
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _read_models(provider: Provider, status: int, body: bytes) -> list[str]:
    """Return the names of the provider's models; that the list came shows that the key is accepted."""
    try:
        document = json.loads(body)
    except ValueError:
        document = {}
    if status != HTTPStatus.OK:
        raise _status_failure(status, Redactor(provider.key)(_error_message(document)))
    try:
        return [printable(str(model["id"])) for model in document["data"]]
    except (LookupError, TypeError) as fault:
        raise CheckFailed(
            "models",
            f"{provider.base_url}/models answers, but not with a list of models.",
            "does upstream.base_url end in /v1?",
        ) from fault


async def _get_models(provider: Provider, context: ssl.SSLContext) -> tuple[int, bytes]:
    """Return status and body, which is cut at 8 MiB and never decompressed: a small answer stays small."""
    dialer = Dialer.to(
        provider.base_url,
        timeout_s=provider.connect_timeout_s,
        proxy_url=provider.proxy_url,
        ssl_context=context,
    )
    headers = {"Authorization": f"Bearer {provider.key}", "Accept-Encoding": "identity"}
    request = httpx2.Request("GET", f"{provider.base_url}/models", headers=headers)
    async with HttpTransport(dialer) as transport:
        answer = incoming(await transport.handle_async_request(request))
        return answer.status, await answer.read(_MAX_ANSWER_BYTES)


def _error_message(document: object) -> str:
    """Return the sentence of an error as OpenAI writes it; empty if there is none."""
    match document:
        case {"error": {"message": str(message)}}:
            return message
    return ""


def _status_failure(status: int, message: str) -> CheckFailed:
    said = f"The provider answers {status}{message and ': '}{message.rstrip('.')}."
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return CheckFailed("key", said, "make a new key at the provider, and use that one")
    if status == HTTPStatus.NOT_FOUND:
        remedy = "does upstream.base_url end in /v1? A few servers that do work have no list of models."
        return CheckFailed("models", said, remedy)
    if status in range(300, 400):
        return CheckFailed("models", said, "set upstream.base_url to the address that it leads to")
    return CheckFailed("models", said, "try again later, or see the provider's status page")


def _judge_models(wanted: Sequence[str], offered: Sequence[str]) -> Finding:
    missing = [name for name in wanted if name not in offered]
    if not missing:
        return ok("models", f"The provider offers {len(offered)}, including all that are configured.")
    hints = [f"{name} (did you mean {near}?)" for name in missing if (near := did_you_mean(name, offered))]
    return warning(
        "models",
        f"The provider offers {len(offered)}, but not {', '.join((hints or missing)[:_MAX_LISTED])}.",
        "set chat.default_model and chat.allowed_models to names that this key may use",
    )
