"""The client of the admin socket, shared by the command line and the terminal app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from relayd.admin.http1 import Answer, Broken, connect, exchange
from relayd.admin.schema import (
    PROTOCOL,
    PROTOCOL_HEADER,
    VERSION_MISMATCH,
    AddKey,
    AuditPage,
    ErrorReply,
    Event,
    ExtendKey,
    KeyChange,
    RequestPage,
    RequestRecord,
    RevokeKey,
    Ring,
    RotateKey,
    Status,
)

_FIRST_REFUSAL = 400
_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 30.0
_MAX_LINE_BYTES = 16 << 20

T = TypeVar("T")
_Query = Mapping[str, str | int | None]


class AdminClientError(Exception):
    """Anything that keeps an answer from coming; the text is a sentence for the operator.

    AdminClientError
    ├── NoDaemon          nothing listens at the socket
    ├── Denied            the socket is there, but not for this user
    ├── VersionMismatch   the daemon speaks another version of this protocol
    ├── AnswerUnknown     the question was sent and the answer never came: ask again, same key
    └── Refused           the daemon answered no; has `status` and `code`
    """


class NoDaemon(AdminClientError):
    """Nothing listens at the socket."""


class Denied(AdminClientError):
    """The socket is there, but not for this user; the text names the path and the permission."""


class VersionMismatch(AdminClientError):
    """The daemon speaks another version of this protocol; reading may work, changing is refused."""


class AnswerUnknown(AdminClientError):
    """The connection broke after a change was sent: it may or may not have happened."""


class Refused(AdminClientError):
    """The daemon answered no."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class AdminClient:
    """One daemon behind its admin socket; implements `relayd.admin.link.Link`.

    Each question has its own connection, so that a restart of the daemon is never noticed late.

    Args:
        socket: path of the admin socket.
        answer_timeout_s: how long an answer may take.
    """

    def __init__(self, socket: Path, *, answer_timeout_s: float = _ANSWER_TIMEOUT_S) -> None:
        self.socket = socket
        self._answer_timeout_s = answer_timeout_s

    async def status(self) -> Status:
        """The daemon at a glance."""
        return await self._get("/status", Status)

    async def requests(
        self, *, where: str = "", after: int | None = None, before: int | None = None, limit: int = 100
    ) -> RequestPage:
        """Records with `after < seq < before` that pass the filter, newest first."""
        query = {"where": where or None, "after": after, "before": before, "limit": limit}
        return await self._get(_target("/requests", query), RequestPage)

    async def request(self, request_id: str) -> RequestRecord:
        """One record."""
        return await self._get(f"/requests/{quote(request_id, safe='')}", RequestRecord)

    async def audit(self, *, before: int | None = None, limit: int = 100) -> AuditPage:
        """What operators did, newest first."""
        return await self._get(_target("/audit", {"before": before, "limit": limit}), AuditPage)

    async def keys(self) -> Ring:
        """The ring and its generation."""
        return await self._get("/keys", Ring)

    async def metrics(self) -> str:
        """The figures of `GET /metrics`, in Prometheus' text format."""
        return (await self._ask("GET", "/metrics")).decode()

    async def events(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Hello, what followed `after` (None: only what is new), then live, until the connection ends."""
        decode = msgspec.json.Decoder(Event).decode
        async with self._question("GET", _target("/events", {"after": after})) as answer:
            async for line in _lines(answer):
                try:
                    event = decode(line)
                except msgspec.MsgspecError as error:
                    raise _unreadable(self.socket) from error
                yield event

    def follow(
        self, after: int | None = None, *, on_trouble: Callable[[AdminClientError], None] | None = None
    ) -> AsyncGenerator[Event, None]:
        """`events`, connected again whenever the connection ends; see `relayd.admin.follow`."""
        from relayd.admin.follow import follow  # noqa: PLC0415 - few commands follow; each import costs all

        return follow(self.events, after, on_trouble=on_trouble)

    async def add_key(self, client: str, *, generation: int, idempotency_key: str) -> KeyChange:
        """Make a first key for a new client."""
        return await self._change("/keys", AddKey(client), generation, idempotency_key)

    async def rotate_key(
        self, key_id: str, *, grace_s: float | None, generation: int, idempotency_key: str
    ) -> KeyChange:
        """Make a new key for the client of this one, which retires after the grace."""
        target = _key_target(key_id, "rotate")
        return await self._change(target, RotateKey(grace_s), generation, idempotency_key)

    async def extend_key(
        self, key_id: str, *, by_s: float, generation: int, idempotency_key: str
    ) -> KeyChange:
        """Move the end of a retiring key later."""
        return await self._change(_key_target(key_id, "extend"), ExtendKey(by_s), generation, idempotency_key)

    async def undo_key(self, key_id: str, *, generation: int, idempotency_key: str) -> KeyChange:
        """Make a retiring key active again and revoke the one that replaced it."""
        return await self._change(_key_target(key_id, "undo"), None, generation, idempotency_key)

    async def revoke_key(self, key_id: str, *, cut: bool, generation: int, idempotency_key: str) -> KeyChange:
        """End a key now; with `cut`, its open streams too."""
        return await self._change(_key_target(key_id, "revoke"), RevokeKey(cut), generation, idempotency_key)

    async def cancel(self, request_id: str) -> None:
        """End one open stream."""
        await self._ask("DELETE", f"/inflight/{quote(request_id, safe='')}")

    async def pause(self) -> Status:
        """Take no new work; open streams go on."""
        return self._decode(await self._ask("POST", "/pause"), Status)

    async def resume(self) -> Status:
        """Take new work again."""
        return self._decode(await self._ask("POST", "/resume"), Status)

    async def drain(self) -> Status:
        """Let open streams finish within the drain timeout, then stop the daemon."""
        return self._decode(await self._ask("POST", "/drain"), Status)

    async def close(self) -> None:
        """Nothing is held between questions."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _get(self, target: str, kind: type[T]) -> T:
        return self._decode(await self._ask("GET", target), kind)

    async def _change(
        self, target: str, body: msgspec.Struct | None, generation: int, idempotency_key: str
    ) -> KeyChange:
        headers = {"If-Match": f'"{generation}"', "Idempotency-Key": idempotency_key}
        sent = b"" if body is None else msgspec.json.encode(body)
        return self._decode(await self._ask("POST", target, headers, sent), KeyChange)

    async def _ask(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> bytes:
        async with self._question(method, target, headers, body) as answer:
            try:
                async with asyncio.timeout(self._answer_timeout_s):
                    return await answer.body()
            except (TimeoutError, Broken) as error:
                raise self._unanswered(method, error) from error

    @asynccontextmanager
    async def _question(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> AsyncIterator[Answer]:
        """Ask, and hand out the answer if it is a good one; the connection closes at the end."""
        async with self._connected() as (reader, writer):
            sent = {PROTOCOL_HEADER: PROTOCOL, **(headers or {})}
            try:
                async with asyncio.timeout(self._answer_timeout_s):
                    answer = await exchange(reader, writer, (method, target), sent, body)
                    if answer.status >= _FIRST_REFUSAL:
                        raise self._refusal(answer, await answer.body())
            except (TimeoutError, Broken) as error:
                raise self._unanswered(method, error) from error
            if answer.headers.get(PROTOCOL_HEADER.lower()) != PROTOCOL:
                raise _unreadable(self.socket)
            yield answer

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                reader, writer = await connect(self.socket)
        except PermissionError as error:
            from relayd.admin.denied import explain  # noqa: PLC0415 - as in `follow`

            raise Denied(explain(self.socket)) from error
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise NoDaemon(
                f"No relayd answers at {self.socket}. Start it with `relayd serve`, or name its socket: "
                "--socket PATH"
            ) from error
        except OSError as error:
            reason = error.strerror or f"no answer within {_CONNECT_TIMEOUT_S:g} s"
            raise NoDaemon(f"{self.socket} can't be connected to: {reason}.") from error
        try:
            yield reader, writer
        finally:
            writer.close()

    def _unanswered(self, method: str, error: Exception) -> AdminClientError:
        slow = isinstance(error, TimeoutError)
        what = f"relayd did not answer within {self._answer_timeout_s:g} s" if slow else str(error)
        if method == "GET":
            return AdminClientError(f"{what} ({self.socket}).")
        return AnswerUnknown(
            f"{what} ({self.socket}). What was asked for may or may not have happened: "
            "look before you repeat it."
        )

    def _refusal(self, answer: Answer, body: bytes) -> AdminClientError:
        try:
            detail = msgspec.json.decode(body, type=ErrorReply).error
        except msgspec.MsgspecError:
            return Refused(answer.status, "unknown", f"The daemon answered with status {answer.status}.")
        if detail.code == VERSION_MISMATCH:
            return VersionMismatch(detail.message)
        return Refused(answer.status, detail.code, detail.message)

    def _decode(self, body: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise _unreadable(self.socket) from error


async def _lines(answer: Answer) -> AsyncIterator[bytes]:
    """Whole lines until the connection ends, in whatever way it does."""
    held = b""
    try:
        async for piece in answer.pieces():
            *lines, held = (held + piece).split(b"\n")
            if len(held) > _MAX_LINE_BYTES:
                return
            for line in lines:
                yield line
    except Broken:
        return


def _unreadable(socket: Path) -> VersionMismatch:
    return VersionMismatch(
        f"The daemon at {socket} speaks another version of the admin protocol. Use the relayd command of the "
        "version that runs there."
    )


def _target(path: str, query: _Query) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _key_target(key_id: str, action: str) -> str:
    return f"/keys/{quote(key_id, safe='')}/{action}"
