"""How a command changes keys or clients: a lost answer and another operator's change do no harm."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import TypeVar

from relayd.admin.client import AnswerUnknown, Refused
from relayd.admin.schema import InstanceRing

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
    except AnswerUnknown as unknown:
        try:
            return await request()
        except Refused as refusal:
            if refusal.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            # That the second did not happen says nothing of the first.
            raise unknown from refusal


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


def have_it(instances: Sequence[InstanceRing]) -> list[str]:
    """Return the sentence on which instances have a change; none if there is only one."""
    count = len(instances)
    if count <= 1:
        return []
    late = [instance.name for instance in instances if not instance.has_it]
    if not late:
        return [f"All {count} instances have it."]
    sentence = f"{count - len(late)} of {count} instances have it; not yet: {', '.join(late)}."
    return [f"{sentence} `relayd status` shows when all do."]
