"""Behaviour of `relayd.admin.follow`: the connection may break, the story does not."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import pytest

from relayd.admin.client import AdminClientError, Denied, NoDaemon, VersionMismatch
from relayd.admin.follow import follow
from relayd.admin.schema import Event, Gap, Hello, Lost, Progress

_Step = Event | AdminClientError


def _hello(seq: int, boot: str = "boot") -> Hello:
    return Hello(boot, "1", seq)


def _event(seq: int) -> Lost:
    return Lost(seq, "boot", "now", 1, "full")


class _Daemon:
    """Plays one script of events or errors for each connection."""

    def __init__(self, *connections: Sequence[_Step]) -> None:
        self._connections = list(connections)
        self.asked: list[int | None] = []
        self.waits_s: list[float] = []

    async def events(self, after: int | None) -> AsyncGenerator[Event, None]:
        """One connection."""
        self.asked.append(after)
        for step in self._connections.pop(0):
            if isinstance(step, AdminClientError):
                raise step
            yield step

    async def sleep(self, wait_s: float) -> None:
        """Note the wait, and do not wait."""
        self.waits_s.append(wait_s)

    async def take(
        self,
        count: int,
        after: int | None = None,
        on_trouble: Callable[[AdminClientError], None] | None = None,
    ) -> list[Event]:
        """The first events of following."""
        story = follow(self.events, after, on_trouble=on_trouble, sleep=self.sleep)
        async with aclosing(story):
            return [await anext(story) for _ in range(count)]


async def test_it_goes_on_after_the_last_event_and_says_hello_again() -> None:
    """Each connection asks for what follows the last event, whatever ended the one before."""
    daemon = _Daemon(
        [_hello(3), _event(4), _event(5)],
        [NoDaemon("down")],
        [AdminClientError("broke")],
        [_hello(9), _event(6)],
    )
    told = await daemon.take(5)
    assert told == [_hello(3), _event(4), _event(5), _hello(9), _event(6)]
    assert daemon.asked == [None, 5, 5, 5]


async def test_without_a_place_it_begins_after_the_first_hello() -> None:
    """A connection that broke before any event loses nothing."""
    daemon = _Daemon([_hello(7)], [_hello(9), _event(8)])
    assert await daemon.take(3) == [_hello(7), _hello(9), _event(8)]
    assert daemon.asked == [None, 7]


async def test_a_gap_counts_as_told_and_progress_as_nothing() -> None:
    """After a gap the next place is behind it; progress has none."""
    daemon = _Daemon([_hello(9), Gap(3, 6), Progress("now", [])], [_hello(9), _event(7)])
    await daemon.take(5, after=2)
    assert daemon.asked == [2, 6]


async def test_a_log_that_began_anew_is_followed_from_its_hello() -> None:
    """A hello below the last event means another log: asking for the old place would miss its events."""
    daemon = _Daemon([_hello(100), _event(101)], [_hello(2, "new")], [_hello(3, "new"), _event(3)])
    await daemon.take(5)
    assert daemon.asked == [None, 101, 2]


async def test_waits_double_from_a_quarter_second_to_five_with_jitter_and_begin_anew_after_hello() -> None:
    """A daemon that is down is not asked too often, and one that restarts is found at once."""
    down = [[NoDaemon("down")] for _ in range(6)]
    daemon = _Daemon([_hello(1)], *down, [_hello(1)], [NoDaemon("down")], [_hello(1), _event(2)])
    await daemon.take(4)
    expected = [0.25, 0.5, 1, 2, 4, 5, 5, 0.25, 0.5]
    for wait_s, about_s in zip(daemon.waits_s, expected, strict=True):
        assert 0.75 * about_s <= wait_s <= 1.25 * about_s


@pytest.mark.parametrize("error", [NoDaemon("down"), AdminClientError("broke"), Denied("no")])
async def test_the_first_connection_must_succeed(error: AdminClientError) -> None:
    """Who begins to follow wants to know at once that there is nothing to follow."""
    with pytest.raises(type(error)):
        await _Daemon([error]).take(1)


@pytest.mark.parametrize("error", [Denied("no"), VersionMismatch("other")])
async def test_what_time_does_not_mend_ends_it(error: AdminClientError) -> None:
    """A permission or a version does not change by asking again."""
    with pytest.raises(type(error)):
        await _Daemon([_hello(1)], [error]).take(2)


async def test_every_trouble_is_told() -> None:
    """The caller can say why nothing comes."""
    troubles: list[AdminClientError] = []
    daemon = _Daemon([_hello(1)], [NoDaemon("down")], [_hello(1), _event(2)])
    await daemon.take(3, on_trouble=troubles.append)
    assert [str(trouble) for trouble in troubles] == ["The daemon closed the connection.", "down"]
