"""The client of the admin socket, shared by the command line and the terminal app.

Every command and the app's first paint wait for this module to be imported, so it imports no HTTP
library: llhttp (`httptools`) parses, asyncio connects.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from relayd.admin.schema import (
    OUTCOME_UNKNOWN,
    PROTOCOL,
    PROTOCOL_HEADER,
    VERSION_MISMATCH,
    AddKey,
    Alerts,
    AuditEntry,
    AuditPage,
    ClientChange,
    Clients,
    Configuration,
    Drain,
    ErrorReply,
    Event,
    ExtendKey,
    FoundKey,
    Gap,
    Hello,
    InstanceList,
    KeyChange,
    KeyInfo,
    KeyUsers,
    Note,
    Progress,
    Reloaded,
    RequestPage,
    RequestRecord,
    RevokeKey,
    Ring,
    RotateKey,
    Status,
    Usage,
)

_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 30.0
_READ_BYTES = 64 << 10
_MAX_HEAD_BYTES = 64 << 10
_MAX_BODY_BYTES = 64 << 20
_MAX_LINE_BYTES = 16 << 20
_BACKOFF_FIRST_S = 0.25
_BACKOFF_MAX_S = 5.0

T = TypeVar("T")


class AdminClientError(Exception):
    """The daemon gave no usable answer; the text is a sentence for the operator."""


class NoDaemon(AdminClientError):
    """Nothing listens at the socket."""


class Unreachable(AdminClientError):
    """The way to the daemon's machine is broken and is being mended."""


class Denied(AdminClientError):
    """The socket is there, but not for this user; the text names the path and the permission."""


class VersionMismatch(AdminClientError):
    """The daemon speaks another version of this protocol; reading may work, changing is refused."""


class AnswerUnknown(AdminClientError):
    """A change was sent, and what became of it is not known: ask again, with the same idempotency key."""


class Refused(AdminClientError):
    """The daemon answered no."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Backoff:
    """Waits between attempts to connect: 0.25 s, doubling up to 5 s, each with 25 % jitter."""

    def __init__(self) -> None:
        self._next_s = _BACKOFF_FIRST_S

    def reset(self) -> None:
        """Begin again with the shortest wait, after an attempt that succeeded."""
        self._next_s = _BACKOFF_FIRST_S

    def next_s(self) -> float:
        """Return the seconds to wait before the next attempt."""
        wait_s, self._next_s = self._next_s, min(_BACKOFF_MAX_S, self._next_s * 2)
        return wait_s * random.uniform(0.75, 1.25)  # noqa: S311 - spreads reconnects, guards nothing


class AdminClient:
    """Talks to one daemon behind its admin socket. Every method may raise `AdminClientError`.

    Each question has a connection of its own, so a restart of the daemon never leaves a dead one behind.

    A change of the key ring names the `generation` that it was decided on: if the ring has moved on,
    it is `Refused` with status 412. The same `idempotency_key` never acts twice.

    Args:
        socket: path of the admin socket.
        name: what messages call it, if the path says too little.
        answer_timeout_s: how long an answer may take.
    """

    def __init__(self, socket: Path, *, name: str = "", answer_timeout_s: float = _ANSWER_TIMEOUT_S) -> None:
        self.socket = socket
        self._name = name or str(socket)
        self._answer_timeout_s = answer_timeout_s

    def retry_now(self) -> None:
        """Let the next question try every way to the daemon anew; a socket has nothing to try."""

    async def status(self) -> Status:
        """Return the state of the daemon at a glance."""
        return await self._ask("GET", "/status", Status)

    async def instances(self) -> InstanceList:
        """Return the processes that serve the relay, by name."""
        return await self._ask("GET", "/instances", InstanceList)

    async def alerts(self) -> Alerts:
        """Return what is wrong now, and what was lately."""
        return await self._ask("GET", "/alerts", Alerts)

    async def configuration(self) -> Configuration:
        """Return the settings in force with their sources, and the health of the instance that answers."""
        return await self._ask("GET", "/config", Configuration)

    async def requests(
        self, *, where: str = "", after: int | None = None, before: int | None = None, limit: int = 100
    ) -> RequestPage:
        """Return records with `after < seq < before` that pass the filter, newest first."""
        query = {"where": where or None, "after": after, "before": before, "limit": limit}
        return await self._ask("GET", _target("requests", query=query), RequestPage)

    async def request(self, request_id: str) -> RequestRecord:
        """Return one record."""
        return await self._ask("GET", _target("requests", request_id), RequestRecord)

    async def audit(self, *, before: int | None = None, limit: int = 100) -> AuditPage:
        """Return what operators did, newest first."""
        return await self._ask("GET", _target("audit", query={"before": before, "limit": limit}), AuditPage)

    async def note(
        self, text: str, *, client: str | None = None, key_ids: Sequence[str] = (), idempotency_key: str
    ) -> AuditEntry:
        """Add a note to the audit, about a client and keys of it; return its entry."""
        headers = {"Idempotency-Key": idempotency_key}
        return await self._ask("POST", "/audit", AuditEntry, Note(text, client, tuple(key_ids)), headers)

    async def keys(self) -> Ring:
        """Return the key ring and its generation."""
        return await self._ask("GET", "/keys", Ring)

    async def find_key(self, digest: str) -> KeyInfo | None:
        """Return the key with this SHA-256 digest (hexadecimal), live or dead; None if there is none."""
        return (await self._ask("GET", _target("keys", "find", query={"digest": digest}), FoundKey)).key

    async def key_users(self, key_id: str, *, since: str | None = None) -> KeyUsers:
        """Return who used a key, the latest first; `since` (UTC) is that of `KeyUser.requests_since`."""
        return await self._ask("GET", _target("keys", key_id, "users", query={"since": since}), KeyUsers)

    async def clients(self) -> Clients:
        """Return all clients with their bounds and what they have used."""
        return await self._ask("GET", "/clients", Clients)

    async def usage(
        self,
        by: str,
        *,
        since: str | None = None,
        until: str | None = None,
        client: str | None = None,
        key: str | None = None,
        model: str | None = None,
    ) -> Usage:
        """Return usage by `client`, `model`, `day` or `key`, over whole days such as `2026-01-31`.

        `client`, `key` and `model` count that one alone.
        """
        query = {"by": by, "since": since, "until": until, "client": client, "key": key, "model": model}
        return await self._ask("GET", _target("usage", query=query), Usage)

    async def metrics(self) -> str:
        """Return the metrics in Prometheus' text format."""
        return (await self._ask_bytes("GET", "/metrics")).decode()

    async def events(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Yield hello, then what follows `after` (None: only what is new), until the connection ends."""
        decoder = msgspec.json.Decoder(Event)
        async with self._request("GET", _target("events", query={"after": after})) as response:
            async for line in _lines(response):
                try:
                    event = decoder.decode(line)
                except msgspec.MsgspecError as error:
                    raise self._mismatch() from error
                yield event

    async def add_key(
        self, client: str, secret: str | None = None, *, generation: int, idempotency_key: str
    ) -> KeyChange:
        """Make a first key for a new client, or give it one of the operator's own."""
        return await self._change_key((), AddKey(client, secret), generation, idempotency_key)

    async def rotate_key(
        self, key_id: str, *, grace_s: float | None, generation: int, idempotency_key: str
    ) -> KeyChange:
        """Make a new key for the client of this one, which retires after the grace."""
        return await self._change_key((key_id, "rotate"), RotateKey(grace_s), generation, idempotency_key)

    async def extend_key(
        self, key_id: str, *, by_s: float, generation: int, idempotency_key: str
    ) -> KeyChange:
        """Move the end of a retiring key later."""
        return await self._change_key((key_id, "extend"), ExtendKey(by_s), generation, idempotency_key)

    async def undo_key(self, key_id: str, *, generation: int, idempotency_key: str) -> KeyChange:
        """Make a retiring key active again and revoke its replacement."""
        return await self._change_key((key_id, "undo"), None, generation, idempotency_key)

    async def revoke_key(self, key_id: str, *, cut: bool, generation: int, idempotency_key: str) -> KeyChange:
        """End a key now; with `cut`, its open streams too."""
        return await self._change_key((key_id, "revoke"), RevokeKey(cut), generation, idempotency_key)

    async def add_client(
        self, name: str, bounds: Mapping[str, object], *, generation: int, idempotency_key: str
    ) -> ClientChange:
        """Make a client with these bounds (fields of `ClientInfo`) and its first key."""
        body = {**bounds, "name": name}
        return await self._change("POST", "/clients", body, generation, idempotency_key, ClientChange)

    async def set_client(
        self, name: str, changes: Mapping[str, object], *, generation: int, idempotency_key: str
    ) -> ClientChange:
        """Change bounds of a client; None removes one."""
        target = _target("clients", name)
        return await self._change("PATCH", target, changes, generation, idempotency_key, ClientChange)

    async def remove_client(
        self, name: str, *, cut: bool, generation: int, idempotency_key: str
    ) -> ClientChange:
        """Remove a client and revoke its keys; with `cut`, end its open streams, too."""
        target = _target("clients", name, query={"cut": "true" if cut else None})
        return await self._change("DELETE", target, None, generation, idempotency_key, ClientChange)

    async def cancel(self, request_id: str) -> None:
        """End one open stream."""
        await self._ask_bytes("DELETE", _target("inflight", request_id))

    async def pause(self) -> Status:
        """Take no new work; open streams continue."""
        return await self._ask("POST", "/pause", Status)

    async def resume(self) -> Status:
        """Accept new requests again."""
        return await self._ask("POST", "/resume", Status)

    async def reload(self) -> Reloaded:
        """Read the configuration again; `Refused` if it cannot be used."""
        return await self._ask("POST", "/reload", Reloaded)

    async def drain(self, instance: str | None = None) -> Status:
        """Let open streams finish within the drain timeout, then stop all instances, or the one named."""
        return await self._ask("POST", "/drain", Status, Drain(instance))

    async def _change_key(
        self, path: tuple[str, ...], body: msgspec.Struct | None, generation: int, idempotency_key: str
    ) -> KeyChange:
        return await self._change(
            "POST", _target("keys", *path), body, generation, idempotency_key, KeyChange
        )

    async def _change(
        self, method: str, target: str, body: object, generation: int, idempotency_key: str, kind: type[T]
    ) -> T:
        headers = {"If-Match": f'"{generation}"', "Idempotency-Key": idempotency_key}
        return await self._ask(method, target, kind, body, headers)

    async def _ask(
        self,
        method: str,
        target: str,
        kind: type[T],
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        sent = b"" if body is None else msgspec.json.encode(body)
        return self._decoded(await self._ask_bytes(method, target, headers, sent), kind)

    async def _ask_bytes(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> bytes:
        async with self._request(method, target, headers, body) as response, self._answering(method):
            return await response.body()

    @asynccontextmanager
    async def _request(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> AsyncIterator[Response]:
        """Send a request and yield the response if its status is good; the connection closes at the end."""
        async with self._connection() as (reader, writer):
            response = Response(reader)
            async with self._answering(method):
                writer.write(_encoded(method, target, headers or {}, body))
                await response.read_head()
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise _refusal(response.status, await response.body())
            if response.headers.get(PROTOCOL_HEADER.lower()) != PROTOCOL:
                raise self._mismatch()
            yield response

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(str(self.socket))
        except PermissionError as error:
            from relayd.admin.unix_socket import explain_denial  # noqa: PLC0415 - only for this sentence

            raise Denied(explain_denial(self.socket)) from error
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise NoDaemon(
                f"No relayd answers at {self.socket}. Start it with `relayd serve`, or name its socket: "
                "--socket PATH"
            ) from error
        except OSError as error:
            reason = error.strerror or f"no answer within {_CONNECT_TIMEOUT_S:g} s"
            raise NoDaemon(f"Cannot connect to {self.socket}: {reason}.") from error
        try:
            yield reader, writer
        finally:
            writer.close()

    @asynccontextmanager
    async def _answering(self, method: str) -> AsyncIterator[None]:
        """Limit the wait for an answer; if a change gets none, say that it may have happened."""
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                yield
        except (OSError, EOFError, HttpParserError, HttpParserUpgrade) as error:
            slow = isinstance(error, TimeoutError)
            what = (
                f"relayd did not answer within {self._answer_timeout_s:g} s"
                if slow
                else "The connection ended before the answer was complete"
            )
            if method == "GET":
                raise AdminClientError(f"{what} ({self._name}).") from error
            raise AnswerUnknown(
                f"{what} ({self._name}). The change may or may not have happened: look before you repeat it."
            ) from error

    def _decoded(self, body: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise self._mismatch() from error

    def _mismatch(self) -> VersionMismatch:
        return VersionMismatch(
            f"The daemon at {self._name} speaks another version of the admin protocol. Use the relayd "
            "command of the version that runs there."
        )


async def follow(
    events: Callable[[int | None], AsyncGenerator[Event, None]],
    *,
    on_trouble: Callable[[AdminClientError], None],
    patient: bool = False,
) -> AsyncGenerator[Event, None]:
    """Yield events from now on, across restarts of the daemon, each once and in order, without end.

    Each connection begins with a `Hello`, which is passed on. One with a smaller `seq` than seen
    before tells of a log that began anew.

    Args:
        events: opens one connection: `AdminClient.events`.
        on_trouble: called with the reason each time a connection has ended, before the wait.
        patient: wait also for what only the operator can mend.

    Raises:
        AdminClientError: unless patient, the first connection failed, or waiting does not mend the
            reason. A daemon that has no room (503) is waited for.
    """
    last: int | None = None
    backoff = Backoff()
    while True:
        try:
            async with aclosing(events(last)) as connection:
                async for event in connection:
                    if isinstance(event, Hello):
                        backoff.reset()
                        last = event.seq if last is None else min(last, event.seq)
                    elif isinstance(event, Gap):
                        last = event.last
                    elif not isinstance(event, Progress):
                        last = event.seq
                    yield event
            trouble = AdminClientError("The daemon closed the connection.")
        except AdminClientError as error:
            if isinstance(error, Refused):
                is_final = error.status < HTTPStatus.INTERNAL_SERVER_ERROR
            else:
                is_final = last is None or isinstance(error, Denied | VersionMismatch)
            if is_final and not patient:
                raise
            trouble = error
        on_trouble(trouble)
        await asyncio.sleep(backoff.next_s())


class Response:
    """One HTTP/1.1 response, read from a connection as llhttp parses it; header names in lower case.

    Reading raises `EOFError` if the connection ends too early or more comes than makes sense,
    `HttpParserError` if what comes is not HTTP.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._reader = reader
        self._parser = HttpResponseParser(self)
        self._has_head = False
        self._is_complete = False
        self._pieces: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, for llhttp."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Note the end of the head, for llhttp."""
        self.status = self._parser.get_status_code()
        self._has_head = True

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body, for llhttp."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """Note the end of the body, for llhttp."""
        self._is_complete = True

    async def read_head(self) -> None:
        """Read until status and headers are known."""
        head_bytes = 0
        while not self._has_head:
            head_bytes += await self._feed()
            if head_bytes > _MAX_HEAD_BYTES:
                raise EOFError("The head of the answer is too large.")

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes."""
        while True:
            pieces, self._pieces = self._pieces, []
            if pieces:
                yield b"".join(pieces)
            elif self._is_complete:
                return
            else:
                await self._feed()

    async def body(self) -> bytes:
        """Return the whole body, of at most 64 MiB."""
        whole = bytearray()
        async for piece in self.pieces():
            whole += piece
            if len(whole) > _MAX_BODY_BYTES:
                raise EOFError("The answer is too large.")
        return bytes(whole)

    async def _feed(self) -> int:
        data = await self._reader.read(_READ_BYTES)
        if not data:
            raise EOFError
        self._parser.feed_data(data)
        return len(data)


def _encoded(method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
    fields = {
        "Host": "relayd",
        "Connection": "close",
        "Content-Length": str(len(body)),
        PROTOCOL_HEADER: PROTOCOL,
        **headers,
    }
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def _refusal(status: int, body: bytes) -> AdminClientError:
    try:
        detail = msgspec.json.decode(body, type=ErrorReply).error
    except msgspec.MsgspecError:
        return Refused(status, "unknown", f"The daemon answered with status {status}.")
    if detail.code == VERSION_MISMATCH:
        return VersionMismatch(detail.message)
    if detail.code == OUTCOME_UNKNOWN:
        return AnswerUnknown(detail.message)
    return Refused(status, detail.code, detail.message)


async def _lines(response: Response) -> AsyncIterator[bytes]:
    """Yield whole lines until the connection ends, in whatever way it does."""
    held = b""
    try:
        async for piece in response.pieces():
            *lines, held = (held + piece).split(b"\n")
            if len(held) > _MAX_LINE_BYTES:
                return
            for line in lines:
                yield line
    except (OSError, EOFError, HttpParserError):
        # Half a line is dropped: a caller that resumes after its last event gets it again.
        return


def _target(*path: str, query: Mapping[str, str | int | None] | None = None) -> str:
    target = "".join(f"/{quote(part, safe='')}" for part in path)
    given = {name: value for name, value in (query or {}).items() if value is not None}
    return f"{target}?{urlencode(given)}" if given else target
