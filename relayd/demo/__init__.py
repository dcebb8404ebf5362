"""An offline upstream that speaks the provider's streaming protocol, with faults on request.

It serves `relayd serve --demo`, the tests and the benchmarks. As a process of its own:
`python -m relayd.demo [--port N]` prints its base URL when it is ready; the key it expects comes from
`RELAYD_DEMO_KEY` (default `demo`). What a request may ask for: `relayd.demo.script`.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import OrderedDict, deque
from functools import partial
from types import TracebackType
from typing import Self, cast

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets

from relayd.demo.answer import Answer, Refusal, read_chat_request
from relayd.demo.seen import Seen, SeenRequests, public_headers

HOST = "127.0.0.1"
MAX_BODY_BYTES = 64 * 2**20
REMEMBERED_IDS = 10_000


class DemoUpstream:
    """The upstream, inside the running event loop.

    Args:
        key: the bearer key that requests must carry.
        port: on 127.0.0.1; 0 takes a free one.
        remember: how many requests `requests` keeps; the oldest are forgotten first.
    """

    def __init__(self, key: str = "demo", *, port: int = 0, remember: int = 1024) -> None:
        self._expected = f"Bearer {key}".encode()
        self._port = port
        self._server = HTTPServer(self._on_request, max_body_size=MAX_BODY_BYTES)
        self._seen = SeenRequests(remember)
        self._tasks: set[asyncio.Task[None]] = set()
        self._attempts: OrderedDict[str, int] = OrderedDict()

    def start(self) -> None:
        """Listen; needs a running loop.

        Raises:
            OSError: the port is taken.
        """
        sockets = bind_sockets(self._port, HOST, backlog=4096)
        self._port = sockets[0].getsockname()[1]
        self._server.add_sockets(sockets)

    @property
    def base_url(self) -> str:
        """What an SDK takes as its base URL."""
        return f"http://{HOST}:{self._port}/v1"

    @property
    def requests(self) -> deque[Seen]:
        """The latest requests, in the order of arrival."""
        return self._seen.latest

    @property
    def total_requests(self) -> int:
        """How many requests have arrived, the forgotten ones included."""
        return self._seen.total

    @property
    def open_requests(self) -> int:
        """How many requests are being answered now."""
        return len(self._tasks)

    async def wait_request(self, n: int, timeout_s: float = 30.0) -> Seen:
        """Wait until request `n` (from 0) has arrived; raises as `SeenRequests.wait`."""
        return await self._seen.wait(n, timeout_s)

    async def wait_closed(self, n: int, timeout_s: float = 30.0) -> Seen:
        """Wait until the client of request `n` left before its end; raises as `SeenRequests.wait`."""
        return await self._seen.wait_closed(n, timeout_s)

    async def wait_ended(self, n: int, timeout_s: float = 30.0) -> Seen:
        """Wait until request `n` is over, whichever way; raises as `SeenRequests.wait`."""
        return await self._seen.wait_ended(n, timeout_s)

    async def close(self) -> None:
        """Stop listening, drop what is open, and wait until all of it has ended."""
        self._server.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.close_all_connections()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _on_request(self, request: HTTPServerRequest) -> None:
        conn = cast("HTTP1Connection", request.connection)
        conn.stream.set_nodelay(True)
        seen = Seen(
            n=self._seen.total,
            method=request.method or "",
            path=request.path,
            headers=public_headers(request.headers),
            body=request.body,
            started_at=time.monotonic(),
        )
        self._seen.add(seen)
        task = asyncio.create_task(self._answer(request, conn, seen), name=f"demo-request-{seen.n}")
        self._tasks.add(task)
        task.add_done_callback(partial(self._on_done, seen, conn))
        conn.set_close_callback(partial(self._on_client_gone, seen, task))

    async def _answer(self, request: HTTPServerRequest, conn: HTTP1Connection, seen: Seen) -> None:
        answer = Answer(conn, seen, self.base_url)
        authorization = request.headers.get("Authorization", "")
        try:
            seen.authorized = hmac.compare_digest(authorization.encode(), self._expected)
            await self._route(request, answer, seen, authorization)
        except Refusal as refusal:
            answer.error(refusal.code, refusal.body)
        except StreamClosedError:
            seen.note_client_gone()
            return
        seen.note_end(completed=True)

    async def _route(
        self, request: HTTPServerRequest, answer: Answer, seen: Seen, authorization: str
    ) -> None:
        if not seen.authorized:
            raise Refusal.unauthorized(authorization)
        if (request.method, request.path) == ("GET", "/v1/models"):
            answer.models()
        elif (request.method, request.path) == ("POST", "/v1/chat/completions"):
            chat = read_chat_request(request.body, request.headers.get("X-Demo"))
            seen.model = chat.model
            await answer.chat(
                chat, authorization, faulty=self._still_fails(chat.script.id, chat.script.fail_times)
            )
        else:
            raise Refusal.not_found(f"{request.method} {request.path}")

    def _still_fails(self, attempts_id: str, fail_times: int) -> bool:
        """Count this attempt; whether it meets the script's faults."""
        if not fail_times:
            return True
        attempts = self._attempts.pop(attempts_id, 0) + 1
        self._attempts[attempts_id] = attempts
        if len(self._attempts) > REMEMBERED_IDS:
            self._attempts.popitem(last=False)
        return attempts <= fail_times

    def _on_client_gone(self, seen: Seen, task: asyncio.Task[None]) -> None:
        seen.note_client_gone()
        task.cancel()

    def _on_done(self, seen: Seen, conn: HTTP1Connection, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if seen.ended_at is None:
            seen.note_end(completed=False)
            conn.close()
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": f"{task.get_name()} failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)
