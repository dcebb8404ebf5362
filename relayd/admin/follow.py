"""The daemon's events without end: reconnects, misses nothing, repeats nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from relayd.admin.client import AdminClientError, Denied, Refused, VersionMismatch
from relayd.admin.schema import Event, Gap, Hello, Progress

_BACKOFF_FIRST_S = 0.25
_BACKOFF_MAX_S = 5.0

Connect = Callable[[int | None], AsyncGenerator[Event, None]]


async def follow(
    events: Connect,
    after: int | None = None,
    *,
    on_trouble: Callable[[AdminClientError], None] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[Event, None]:
    """Every event after `after` (None: after the first hello), once each, in order; never ends by itself.

    Each connection begins with a `Hello`, which is passed on. One with a smaller `seq` than seen
    before tells of a log that began anew. Between attempts it waits 0.25 s, doubling up to 5 s, with jitter.

    Args:
        events: opens one connection, as `Link.events`.
        after: the last event that the caller has.
        on_trouble: told each time why the connection ended, before the wait.
        sleep: waits that many seconds.

    Raises:
        AdminClientError: the first connection failed, or this user is denied, or the version is another.
    """
    last, said_hello, backoff_s = after, False, _BACKOFF_FIRST_S
    while True:
        try:
            async with aclosing(events(last)) as connection:
                async for event in connection:
                    if isinstance(event, Hello):
                        said_hello, backoff_s = True, _BACKOFF_FIRST_S
                        last = event.seq if last is None else min(last, event.seq)
                    elif isinstance(event, Gap):
                        last = event.last
                    elif not isinstance(event, Progress):
                        last = event.seq
                    yield event
            trouble = AdminClientError("The daemon closed the connection.")
        except (Denied, VersionMismatch, Refused):
            raise
        except AdminClientError as error:
            if not said_hello:
                raise
            trouble = error
        if on_trouble is not None:
            on_trouble(trouble)
        await sleep(backoff_s * random.uniform(0.75, 1.25))  # noqa: S311 - spreads reconnects, guards nothing
        backoff_s = min(_BACKOFF_MAX_S, backoff_s * 2)
