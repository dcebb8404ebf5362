"""Behaviour of `relayd.admin.offload`: bounded work beside the loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from relayd.admin.errors import AdminError
from relayd.admin.offload import Offload


async def test_answers_and_errors_come_back_from_a_named_thread() -> None:
    """The thread's name says whose it is."""
    offload = Offload("admin-test", 2)
    assert (await offload.run(lambda: threading.current_thread().name)).startswith("admin-test")
    with pytest.raises(ZeroDivisionError):
        await offload.run(lambda: 1 // 0)
    await offload.close()


async def test_what_waits_is_bounded() -> None:
    """The question beyond 64 that wait is refused in words; room comes back as they are answered."""
    offload, gate = Offload("admin-test", 1), threading.Event()
    waiting = [
        asyncio.create_task(offload.run(lambda: gate.wait(10)), name=f"question {n}") for n in range(65)
    ]
    await asyncio.sleep(0)
    with pytest.raises(AdminError, match="ask again shortly") as refusal:
        await offload.run(lambda: None)
    assert refusal.value.status == 503
    gate.set()
    assert all(await asyncio.gather(*waiting))
    assert await offload.run(lambda: 7) == 7
    await offload.close()


async def test_an_asker_that_leaves_frees_no_place_before_its_question_is_answered() -> None:
    """Else a client could pile up work by asking and leaving."""
    offload, gate = Offload("admin-test", 1), threading.Event()
    asked = [asyncio.create_task(offload.run(lambda: gate.wait(10)), name=f"asker {n}") for n in range(65)]
    await asyncio.sleep(0)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    with pytest.raises(AdminError):
        await offload.run(lambda: None)
    gate.set()
    await offload.close()


async def test_the_end_refuses_what_waits_and_what_comes() -> None:
    """Nobody is left without an answer when the daemon stops."""
    offload, gate = Offload("admin-test", 1), threading.Event()
    running, waiting = (
        asyncio.create_task(offload.run(lambda: gate.wait(10)), name=f"question {n}") for n in range(2)
    )
    await asyncio.sleep(0.01)
    closing = asyncio.create_task(offload.close(), name="close")
    with pytest.raises(AdminError, match="stopping"):
        await waiting
    gate.set()
    await closing
    assert await running
    with pytest.raises(AdminError, match="stopping"):
        await offload.run(lambda: None)
