"""Several listeners at one socket, as workers have it: each takes its share of the connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from tornado.web import Application, RequestHandler

from relayd.public.client_address import TrustedProxies
from relayd.public.listener import Balance, Listener, bind
from tests.wire import HOST, Wire

_GET = b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n"


class _WhoHandler(RequestHandler):
    def initialize(self, name: str) -> None:
        self.name = name

    def get(self) -> None:
        """Say which listener accepted the connection."""
        self.write(self.name)


@asynccontextmanager
async def _listeners(balance: Balance, names: str) -> AsyncIterator[tuple[int, dict[str, Listener]]]:
    """Listeners at one port, each with the share of the number that is its name; the port comes first."""
    (sock,) = bind(HOST, 0)
    listeners = {
        name: Listener(
            Application([("/", _WhoHandler, {"name": name})], log_function=lambda _: None),
            [sock.dup()],
            proxies=TrustedProxies([HOST]),
            tls=None,
            share=balance.share(int(name)),
        )
        for name in names
    }
    with sock:
        port = sock.getsockname()[1]
        for listener in listeners.values():
            listener.configure(
                head_timeout_s=60, keep_alive_s=60, max_streams=1000, max_streams_per_address=1000
            )
            listener.start()
        try:
            yield port, listeners
        finally:
            for listener in listeners.values():
                await listener.close()


async def _who(stack: AsyncExitStack, port: int) -> str:
    """Return which listener has a new connection; it stays open."""
    wire = await stack.enter_async_context(await Wire.open(port))
    wire.send(_GET)
    return (await wire.reply()).body.decode()


async def test_connections_are_spread_evenly() -> None:
    """One after the other, or all at once."""
    async with _listeners(Balance(3), "123") as (port, _), AsyncExitStack() as stack:
        found = Counter([await _who(stack, port) for _ in range(30)])
        # A connection that comes just when a listener has waited long enough for another is one too many, so
        # the shares are not equal to the last one; without the balance, one listener takes all.
        assert min(found[name] for name in "123") >= 5
        found.update(await asyncio.gather(*(_who(stack, port) for _ in range(60))))
        assert min(found[name] for name in "123") >= 15


@pytest.mark.parametrize("accepts", [True, False], ids=["it is stuck", "it has ended"])
async def test_a_worker_that_takes_nothing_is_not_waited_for(*, accepts: bool) -> None:
    """Not for long, if it should accept; not at all, if it is known not to."""
    balance = Balance(2)
    if accepts:
        balance.share(2).set(0)
    async with _listeners(balance, "1") as (port, _), AsyncExitStack() as stack:
        assert {await _who(stack, port) for _ in range(10)} == {"1"}


async def test_a_worker_that_stops_leaves_all_to_the_others() -> None:
    """Its share counts no longer, whatever it had."""
    async with _listeners(Balance(2), "12") as (port, listeners), AsyncExitStack() as stack:
        assert {await _who(stack, port) for _ in range(10)} == {"1", "2"}
        listeners["2"].stop_accepting()
        assert {await _who(stack, port) for _ in range(20)} == {"1"}
