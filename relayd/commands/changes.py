"""How a command changes keys or clients: a lost answer and another operator's change do no harm."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import TypeVar

from relayd.admin.client import AnswerUnknown, Refused

_TRIES = 5

T = TypeVar("T")


async def once(change: Callable[..., Awaitable[T]], generation: int) -> T:
    """Make a change; if the answer is lost, ask again with the same idempotency key.

    Args:
        change: a method of the client that lacks only `generation` and `idempotency_key`.
        generation: of the ring that the change was decided on.
    """
    request = partial(change, generation=generation, idempotency_key=uuid.uuid4().hex)
    try:
        return await request()
    except AnswerUnknown:
        return await request()


async def retried(attempt: Callable[[], Awaitable[T]]) -> T:
    """Make a change that stays right after another operator's: a lost race is repeated.

    Args:
        attempt: reads the generation anew each time.
    """
    for _ in range(_TRIES - 1):
        try:
            return await attempt()
        except Refused as refusal:
            if refusal.status != HTTPStatus.PRECONDITION_FAILED:
                raise
    return await attempt()
