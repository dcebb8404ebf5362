"""Worker threads for what blocks on the disk, bounded in number and in waiting work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from relayd.admin.errors import AdminError

_MAX_WAITING = 64

T = TypeVar("T")


class Offload:
    """Runs blocking questions beside the event loop; when 64 wait already, the next one is refused.

    Args:
        name: of the threads.
        threads: how many questions run at a time.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most = threads + _MAX_WAITING
        self._pending = 0
        self._closed = False

    async def run(self, question: Callable[[], T]) -> T:
        """The answer of `question`, computed in a thread.

        Raises:
            AdminError: too much is waiting, or this is closed.
            Exception: whatever the question raises.
        """
        if self._closed:
            raise AdminError.stopping()
        if self._pending >= self._most:
            raise AdminError.too_busy()
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, question)
        future.add_done_callback(self._done)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # Either the asker is cancelled, or `close` came before the question's turn.
            if future.cancelled():
                raise AdminError.stopping() from None
            raise

    def _done(self, future: asyncio.Future[T]) -> None:
        self._pending -= 1
        if not future.cancelled():
            # Looked at, so that a question whose asker left is not reported as never retrieved.
            future.exception()

    async def close(self) -> None:
        """Wait for what runs, refuse what waits."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
