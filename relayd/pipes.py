"""Noticing that the reader of our output has left, while there is nothing to write."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import select
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import TextIO, TypeVar

T = TypeVar("T")


async def while_read(out: TextIO, work: Coroutine[None, None, T]) -> T:
    """Return what the work returns, but end it as soon as the reader of `out` has closed its pipe.

    Without this, `... | head -1` would wait for the next write, which may never come.

    Raises:
        BrokenPipeError: the reader has left.
    """
    loop, left = asyncio.get_running_loop(), asyncio.Event()
    task = asyncio.ensure_future(work)
    watch = asyncio.create_task(left.wait(), name="reader of our output")
    with ExitStack() as undo:
        hangups = undo.enter_context(select.epoll())
        if _watch(hangups, out):
            loop.add_reader(hangups.fileno(), left.set)
            undo.callback(loop.remove_reader, hangups.fileno())
        try:
            await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            return task.result()
        finally:
            for pending in (task, watch):
                pending.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)


def _watch(hangups: select.epoll, out: TextIO) -> bool:
    """Have the end of the reader of a pipe, socket or terminal reported; return whether that is possible."""
    try:
        # No event but EPOLLERR and EPOLLHUP, which are always reported (epoll_ctl(2)): a socket or a terminal
        # may have something to read, too.
        hangups.register(out.fileno(), 0)
    except (io.UnsupportedOperation, PermissionError):  # a text in memory; a regular file
        return False
    return True
