"""`relayd check --upstream`: the way to the provider, step by step, each in words.

What the daemon would do first, with the same settings: name, connection, TLS, key, models. A step that
fails ends the check and says what to do. Nothing here costs a token.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any, TextIO
from urllib.parse import urlsplit

import httpx2

from relayd.config import Settings
from relayd.config.errors import did_you_mean
from relayd.relay.scrub import Scrubber

EXIT_GOOD = 0
EXIT_BAD = 1

_ANSWER_TIMEOUT_S = 20.0
_MAX_ANSWER_BYTES = 16 << 20
_EXPIRES_SOON_DAYS = 14
_DAY_S = 86400
_PORTS = {"http": 80, "https": 443}
_NAME_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what was found, and for one that failed or is doubtful what to do."""

    name: str
    """`name`, `connect`, `TLS`, `key` or `models`."""
    result: str
    """`good`, `doubtful` or `failed`."""
    said: str
    todo: str = ""


class _Failed(Exception):
    """The step that ends the check."""

    def __init__(self, name: str, said: str, todo: str) -> None:
        super().__init__(said)
        self.step = Step(name, "failed", said, todo)


@dataclass(frozen=True, slots=True)
class Provider:
    """Whom to ask, with which key, for which models."""

    base_url: str
    key: str = field(repr=False)
    models: tuple[str, ...]
    connect_timeout_s: float = 5.0
    ssl_context: ssl.SSLContext | None = None
    """None: the system's authorities are trusted."""

    @classmethod
    def of(cls, settings: Settings) -> Provider:
        """As configured."""
        key = settings.openai_api_key
        return cls(
            settings.upstream.base_url,
            key.get_secret_value() if key is not None else "",
            tuple(dict.fromkeys((settings.chat.default_model, *settings.chat.allowed_models))),
            settings.upstream.connect_timeout_s,
        )


async def steps(provider: Provider) -> AsyncIterator[Step]:
    """Go the way to the provider; yields each step as it is done, and ends after one that failed."""
    url = urlsplit(provider.base_url)
    host, port = url.hostname or "", url.port or _PORTS[url.scheme]
    context = provider.ssl_context or ssl.create_default_context()
    try:
        addresses = await _resolve(host, port)
        yield Step("name", "good", f"{host} is {_listed(addresses)}")
        address, took_s = await _connect(addresses, port, provider.connect_timeout_s)
        yield Step("connect", "good", f"{address} port {port} answers after {took_s * 1000:.0f} ms")
        if url.scheme == "https":
            yield await _handshake(address, host, port, context, provider.connect_timeout_s)
        else:
            yield Step(
                "TLS", "doubtful", "none: upstream.base_url is plain HTTP", "use https:// where you can"
            )
        known = await _models(provider, context)
        yield Step("key", "good", "accepted")
        yield _judge_models(provider.models, known)
    except _Failed as failed:
        yield failed.step


async def _resolve(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _Failed(
            "name",
            f"{host} has no address: {error.strerror or error}",
            "is upstream.base_url spelled right, and does this machine's DNS work?",
        ) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def _connect(addresses: list[str], port: int, timeout_s: float) -> tuple[str, float]:
    """The first address that answers, and after how many seconds."""
    said, refused = [], True
    for address in addresses:
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                _, writer = await asyncio.open_connection(address, port)
        except TimeoutError:
            said.append(f"{address} port {port} does not answer within {timeout_s:g} s")
            refused = False
        except OSError as error:
            said.append(f"{address} port {port}: {os.strerror(error.errno) if error.errno else error}")
            refused = refused and isinstance(error, ConnectionRefusedError)
        else:
            writer.transport.abort()
            return address, time.monotonic() - began
    todo = (
        "nothing listens there: is upstream.base_url right?"
        if refused
        else "does a firewall of this machine or its network stop it?"
    )
    raise _Failed("connect", "; ".join(said), todo)


async def _handshake(address: str, host: str, port: int, context: ssl.SSLContext, timeout_s: float) -> Step:
    try:
        async with asyncio.timeout(timeout_s * 2):
            _, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise _Failed(
            "TLS",
            f"the certificate of {host} is not trusted: {error.verify_message.rstrip('.')}",
            "is this machine's clock right, are ca-certificates installed, does something read along? "
            "A private authority can be named in $SSL_CERT_FILE.",
        ) from error
    except (OSError, TimeoutError) as error:
        raise _Failed(
            "TLS", f"{host} does not speak TLS at port {port}: {error}", "is the port right?"
        ) from error
    certificate, version = writer.get_extra_info("peercert"), writer.get_extra_info("ssl_object").version()
    writer.transport.abort()
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / _DAY_S
    said = f"{version}, the certificate of {host} is good for {days:.0f} days"
    if days < _EXPIRES_SOON_DAYS:
        return Step("TLS", "doubtful", said, "its owner should renew it")
    return Step("TLS", "good", said)


async def _models(provider: Provider, context: ssl.SSLContext) -> list[str]:
    """The names of the provider's models. That the list comes shows that the key is good."""
    if not provider.key:
        raise _Failed(
            "key", "there is none", "set OPENAI_API_KEY or openai_api_key_file, or run: relayd init"
        )
    url = provider.base_url.rstrip("/") + "/models"
    headers = {"Authorization": f"Bearer {provider.key}"}
    try:
        async with (
            asyncio.timeout(_ANSWER_TIMEOUT_S),
            httpx2.AsyncClient(verify=context, follow_redirects=False, trust_env=False) as client,
            client.stream("GET", url, headers=headers, timeout=_ANSWER_TIMEOUT_S) as answer,
        ):
            body = await _read(answer)
    except (httpx2.HTTPError, TimeoutError) as error:
        said = Scrubber(provider.key)(str(error)) or f"no answer within {_ANSWER_TIMEOUT_S:g} s"
        raise _Failed(
            "key", f"asking for the models failed: {said}", "try again; is it the provider?"
        ) from error
    if answer.status_code != HTTPStatus.OK:
        raise _refused(provider, answer.status_code, body)
    names = _names(body)
    if names is None:
        raise _Failed(
            "models", f"{url} answers, but not with a list of models", "does upstream.base_url end in /v1?"
        )
    return names


async def _read(answer: httpx2.Response) -> bytes:
    body = bytearray()
    async for piece in answer.aiter_bytes():
        body += piece
        if len(body) > _MAX_ANSWER_BYTES:
            break
    return bytes(body)


def _refused(provider: Provider, status: int, body: bytes) -> _Failed:
    said = f"{status} {_message(body, Scrubber(provider.key))}".rstrip()
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return _Failed("key", f"refused: {said}", "make a new one at the provider, and put it in place")
    if status == HTTPStatus.NOT_FOUND:
        return _Failed("models", f"there is no list of models: {said}", "does upstream.base_url end in /v1?")
    if status in range(300, 400):
        return _Failed("models", f"a redirect: {said}", "set upstream.base_url to where it leads")
    return _Failed(
        "models", f"the provider failed: {said}", "try again later, or see the provider's status page"
    )


def _message(body: bytes, scrub: Scrubber) -> str:
    try:
        return scrub(str(json.loads(body)["error"]["message"]))
    except (ValueError, LookupError, TypeError):
        return ""


def _names(body: bytes) -> list[str] | None:
    try:
        return [str(model["id"]) for model in json.loads(body)["data"]]
    except (ValueError, LookupError, TypeError):
        return None


def _judge_models(wanted: tuple[str, ...], known: list[str]) -> Step:
    said = f"{len(known)} are offered"
    missing = [name for name in wanted if name not in known]
    if not missing:
        return Step("models", "good", f"{said}, {_listed(list(wanted))} among them")
    hints = [f"{name} (did you mean {near}?)" for name in missing if (near := did_you_mean(name, known))]
    return Step(
        "models",
        "doubtful",
        f"{said}, but not {_listed(hints or missing)}",
        "set chat.default_model and chat.allowed_models to names that this key may use",
    )


def _listed(names: list[str]) -> str:
    most = 3
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


async def _show(provider: Provider, out: TextIO) -> list[Step]:
    done = []
    async for step in steps(provider):
        done.append(step)
        mark = {"good": "", "doubtful": "doubtful: ", "failed": "FAILED: "}[step.result]
        out.write(f"{step.name:<{_NAME_COLUMNS}} {mark}{step.said}\n")
        if step.todo:
            out.write(f"{'':<{_NAME_COLUMNS}} -> {step.todo}\n")
        out.flush()
    return done


async def _collect(provider: Provider) -> list[Step]:
    return [step async for step in steps(provider)]


def show(provider: Provider, out: TextIO | None = None) -> bool:
    """Go the way and print it as it goes; returns whether the provider can be used."""
    return _is_good(asyncio.run(_show(provider, out or sys.stdout)))


def document(provider: Provider) -> dict[str, Any]:
    """The same as one JSON document."""
    done = asyncio.run(_collect(provider))
    return {"ok": _is_good(done), "steps": [asdict(step) for step in done]}


def _is_good(done: list[Step]) -> bool:
    return all(step.result != "failed" for step in done)
