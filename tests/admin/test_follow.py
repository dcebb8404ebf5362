"""Following the daemon's events: connections break, yet no event is missed or repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from relayd.admin.client import (
    AdminClientError,
    Backoff,
    Denied,
    NoDaemon,
    Refused,
    VersionMismatch,
    follow,
)
from relayd.admin.schema import Event, Gap, Hello, Lost, Progress, Started
from tests.admin.harness import admin_api
from tests.wire import PATIENCE_S


def _hello(seq: int, boot: str = "boot") -> Hello:
    return Hello(boot, "1", seq)


def _event(seq: int) -> Lost:
    return Lost(seq, "boot", "now", 1, "full")


class _Daemon:
    """Plays one script of events or errors for each connection, and keeps what each asked for."""

    def __init__(self, *connections: Sequence[Event | AdminClientError]) -> None:
        self._connections = list(connections)
        self.asked: list[int | None] = []
        self.troubles: list[str] = []

    async def events(self, after: int | None) -> AsyncGenerator[Event, None]:
        """One connection."""
        self.asked.append(after)
        for step in self._connections.pop(0):
            if isinstance(step, AdminClientError):
                raise step
            yield step

    async def take(self, count: int, *, patient: bool = False) -> list[Event]:
        """Return the first events of following."""
        story = follow(
            self.events, on_trouble=lambda error: self.troubles.append(str(error)), patient=patient
        )
        async with aclosing(story), asyncio.timeout(PATIENCE_S):
            return [await anext(story) for _ in range(count)]


async def test_each_connection_asks_for_what_follows_the_last_event() -> None:
    """Whatever ended the one before; the reason is told each time."""
    daemon = _Daemon(
        [_hello(3), _event(4), _event(5)],
        [NoDaemon("down")],
        [AdminClientError("broke")],
        [_hello(9), _event(6)],
    )
    assert await daemon.take(5) == [_hello(3), _event(4), _event(5), _hello(9), _event(6)]
    assert daemon.asked == [None, 5, 5, 5]
    assert daemon.troubles == ["The daemon closed the connection.", "down", "broke"]


@pytest.mark.parametrize(
    ("first", "second", "asked"),
    [
        ([_hello(7)], [_hello(9), _event(8)], 7),
        ([_hello(9), Gap(3, 6), Progress("now", [])], [_hello(9), _event(7)], 6),
        ([_hello(100), _event(101)], [_hello(2, "new"), _event(3)], 101),
    ],
)
async def test_the_place_is_after_hello_a_gap_or_an_event(
    first: list[Event], second: list[Event], asked: int
) -> None:
    """Progress has no place; a connection that broke before any event loses nothing."""
    daemon = _Daemon(first, second)
    assert await daemon.take(len(first) + len(second)) == first + second
    assert daemon.asked == [None, asked]


async def test_a_log_that_began_anew_is_followed_from_its_hello() -> None:
    """A hello below the last event means another log: asking for the old place would miss its events."""
    daemon = _Daemon([_hello(100), _event(101)], [_hello(2, "new")], [_hello(3, "new"), _event(3)])
    await daemon.take(5)
    assert daemon.asked == [None, 101, 2]


_REFUSED = Refused(400, "bad_request", "no")
_NO_ROOM = Refused(503, "too_many_followers", "full")


@pytest.mark.parametrize("error", [NoDaemon("down"), AdminClientError("broke"), Denied("no"), _REFUSED])
async def test_the_first_connection_must_succeed(error: AdminClientError) -> None:
    """A caller that begins to follow learns at once that there is nothing to follow."""
    with pytest.raises(type(error)):
        await _Daemon([error]).take(1)


@pytest.mark.parametrize("error", [Denied("no"), VersionMismatch("other"), _REFUSED])
async def test_what_waiting_does_not_mend_ends_it(error: AdminClientError) -> None:
    """A permission or a version does not change by asking again; a patient caller waits all the same."""
    with pytest.raises(type(error)):
        await _Daemon([_hello(1)], [error]).take(2)
    daemon = _Daemon([error], [_hello(1)])
    assert await daemon.take(1, patient=True) == [_hello(1)]
    assert daemon.troubles == [str(error)]


@pytest.mark.parametrize("before", [[], [[_hello(1)]]])
async def test_a_daemon_without_room_is_asked_again(before: list[list[Event]]) -> None:
    """The caller is told each time, at the first connection as later, and follows once there is room."""
    daemon = _Daemon(*before, [_NO_ROOM], [_NO_ROOM], [_hello(4)])
    assert (await daemon.take(len(before) + 1))[-1] == _hello(4)
    assert daemon.troubles[-2:] == ["full", "full"]


def test_waits_double_from_a_quarter_second_to_five_with_jitter() -> None:
    """A daemon that is down is not asked too often; after a success one that restarts is found at once."""
    backoff = Backoff()
    for expected_s in (0.25, 0.5, 1, 2, 4, 5, 5):
        assert 0.75 * expected_s <= backoff.next_s() <= 1.25 * expected_s
    backoff.reset()
    assert backoff.next_s() <= 0.3125


async def test_following_survives_a_restart(tmp_path: Path) -> None:
    """The same iterator continues with the next daemon: hello again, and nothing missed."""
    async with admin_api(tmp_path) as api:
        story = follow(api.client.events, on_trouble=lambda _: None)
        assert await anext(story) == Hello("boot", (await api.client.status()).version, 1)
    async with admin_api(tmp_path, boot_id="next") as api, aclosing(story), asyncio.timeout(PATIENCE_S):
        api.log(1)
        hello, event = await anext(story), await anext(story)
        assert isinstance(hello, Hello)
        assert hello.boot_id == "next"
        assert isinstance(event, Started)
        assert event.seq == 2
