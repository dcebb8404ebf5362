"""What the demo upstream remembers of its clients."""

from __future__ import annotations

import asyncio

import pytest

from relayd.demo.seen import Seen, SeenRequests, public_headers


def seen(n: int) -> Seen:
    """A request that has just arrived."""
    return Seen(n=n, method="POST", path="/", headers={}, body=b"", started_at=0.0)


def test_secret_headers_are_not_kept() -> None:
    """Headers that carry a secret are left out, whatever the case of their names."""
    kept = public_headers({"AUTHORIZATION": "Bearer s", "Cookie": "s", "api-key": "s", "X-Demo": "d"})
    assert kept == {"x-demo": "d"}


async def test_waiting_for_a_request_that_comes_later() -> None:
    """A test may wait for a request before it has arrived, and gets that one."""
    requests = SeenRequests(10)
    waiter = asyncio.create_task(requests.wait(1, 5))
    for n in range(3):
        await asyncio.sleep(0)
        requests.add(seen(n))
    assert (await waiter).n == 1


async def test_a_request_that_never_comes_is_a_timeout() -> None:
    """Every wait is bounded."""
    requests = SeenRequests(10)
    requests.add(seen(0))
    for wait in (requests.wait(1, 0.01), requests.wait_closed(0, 0.01), requests.wait_ended(0, 0.01)):
        with pytest.raises(TimeoutError):
            await wait


async def test_the_oldest_are_forgotten() -> None:
    """The list is bounded: asking for a forgotten request says so, later ones keep their number."""
    requests = SeenRequests(2)
    for n in range(5):
        requests.add(seen(n))
    assert (requests.total, [request.n for request in requests.latest]) == (5, [3, 4])
    assert (await requests.wait(4, 1)).n == 4
    with pytest.raises(LookupError, match="request 2 is no longer remembered"):
        await requests.wait(2, 1)


async def test_only_a_close_before_the_end_counts() -> None:
    """A client that closes after the whole reply has not left early, and the first notice stands."""
    left, stayed = seen(0), seen(1)
    left.note_client_gone()
    first = left.closed_by_client_at
    left.note_client_gone()
    left.note_end(completed=False)
    stayed.note_end(completed=True)
    stayed.note_client_gone()
    assert left.closed.is_set()
    assert left.closed_by_client_at == first is not None
    assert stayed.closed_by_client_at is None
    assert not stayed.closed.is_set()
