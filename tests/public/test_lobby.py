"""`relayd.public.lobby`: who is served first when many come at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from relayd.public.lobby import MAX_KNOWN, Lobby, Newcomer

MAX_STRANGERS = 100
"""As few, because each is a descriptor."""


class Desk:
    """A lobby, and in which turn of the loop whom it served."""

    def __init__(self, is_known: Callable[[str], bool]) -> None:
        self.served: list[str] = []
        self.lobby = Lobby(self._serve, is_known, MAX_STRANGERS)

    def _serve(self, newcomer: Newcomer) -> None:
        newcomer.socket.close()
        self.served.append(newcomer.network)
        if newcomer.network == "bad":
            raise ZeroDivisionError

    def enter(self, network: str, number: int = 1) -> list[socket.socket]:
        """So many come from a network; their sockets."""
        sockets = [socket.socket() for _ in range(number)]
        for sock in sockets:
            self.lobby.enter(Newcomer(sock, (network, 0), network))
        return sockets

    async def all_served(self) -> list[str]:
        """Let everybody be served."""
        self.lobby.serve_some()
        async with asyncio.timeout(10):
            while len(self.lobby):  # noqa: ASYNC110 - each turn of the loop serves some
                await asyncio.sleep(0)
        return self.served


@contextmanager
def desk(*known: str) -> Iterator[Desk]:
    """A lobby to which these networks are known; closed on leaving."""
    made = Desk(known.__contains__)
    with closing(made.lobby):
        yield made


async def test_who_comes_alone_is_served_at_once() -> None:
    """Known or not, nobody waits for a turn of the loop where nobody else does."""
    with desk("known") as made:
        for network in ("strange", "known"):
            made.enter(network)
            made.lobby.serve_some()
            assert made.served[-1] == network
            await made.all_served()


async def test_a_known_network_does_not_wait_for_the_strangers_before_it() -> None:
    """It is served in the turn after it came, and strangers go on meanwhile, if slower."""
    with desk("known") as made:
        made.enter("a", 20)
        made.enter("b", 20)
        made.lobby.serve_some()
        made.enter("known", 3)
        served = await made.all_served()
    assert len(served) == 43
    assert served[1:4] == ["known"] * 3


async def test_networks_take_turns() -> None:
    """One that comes with many does not keep another from its turn, among strangers and among the known."""
    with desk("c", "d") as made:
        made.enter("a", 5)
        made.enter("b", 2)
        made.enter("c", 12)
        made.enter("d", 1)
        served = await made.all_served()
    assert [network for network in served if network in "ab"] == ["a", "b", "a", "b", "a", "a", "a"]
    assert served.index("d") == 1


async def test_strangers_are_served_while_known_networks_keep_coming() -> None:
    """Each turn has a stranger in it, however many others wait."""
    with desk("known", "also") as made:
        for network in ("known", "also"):
            made.enter(network, 60)
        made.enter("strange", 10)
        served = await made.all_served()
    turns = [served[start : start + 9] for start in range(0, 90, 9)]
    assert [turn.count("strange") for turn in turns] == [1] * 10


async def test_strangers_are_not_kept_waiting_once_their_network_is_known() -> None:
    """After a restart nobody is known: who shares an address with the first client is not served last."""
    known = set[str]()
    made = Desk(is_known=known.__contains__)
    with closing(made.lobby):
        made.enter("office", 40)
        made.enter("a", 40)
        made.lobby.serve_some()
        known.add("office")
        served = await made.all_served()
    assert served.count("office") == served.count("a") == 40
    assert served[:46].count("office") == 40


async def test_a_full_lobby_cuts_strangers_of_the_same_network_first() -> None:
    """Up to the bound everybody is served; beyond it the one of that network goes that waited longest."""
    with desk() as made:
        sockets = made.enter("office", MAX_STRANGERS + 2)
        assert [sock.fileno() == -1 for sock in sockets[:3]] == [True, True, False]
        assert made.lobby.cut == 2
        assert len(await made.all_served()) == MAX_STRANGERS


async def test_one_networks_crowd_makes_room_for_others() -> None:
    """Who comes alone enters a full lobby; where all came alone, the newcomer is turned away."""
    with desk() as made:
        crowd = made.enter("crowd", MAX_STRANGERS - 1)
        made.enter("lone")
        (late,) = made.enter("late")
        assert crowd[0].fileno() == -1
        assert late.fileno() != -1
        served = await made.all_served()
        assert (served.count("lone"), served.count("late")) == (1, 1)
        for number in range(MAX_STRANGERS):
            made.enter(f"net{number}")
        (last,) = made.enter("last")
        assert last.fileno() == -1
        assert len(await made.all_served()) == 2 * MAX_STRANGERS


async def test_strangers_never_keep_the_known_out() -> None:
    """A lobby that is full of strangers has all its room for the known, whose own is counted alone."""
    with desk("known") as made:
        made.enter("strange", MAX_STRANGERS)
        assert made.lobby.room == MAX_KNOWN
        made.enter("known", 3)
        assert made.lobby.room == MAX_KNOWN - 3
        made.lobby.serve_some()
        assert made.served == ["known"] * 3 + ["strange"]


async def test_of_one_known_network_only_so_many_are_preferred() -> None:
    """The others of it wait with the strangers, so that it cannot keep other known networks out."""
    with desk("loud", "calm") as made:
        made.enter("loud", 150)
        made.enter("calm", 1)
        assert made.lobby.room > MAX_KNOWN - 100
        served = await made.all_served()
    assert served.index("calm") == 1
    assert served.count("loud") == 150


async def test_room_is_made_of_those_who_wait_where_descriptors_run_out() -> None:
    """Strangers only, and no more than there are."""
    with desk("known") as made:
        made.enter("known", 5)
        made.enter("strange", 3)
        assert made.lobby.make_room(2) == 2
        assert made.lobby.make_room(64) == 1
        assert await made.all_served() == ["known"] * 5


async def test_the_lobby_says_how_much_room_it_has_and_closes_what_it_holds() -> None:
    """Nobody is served after the end, and no socket is left open."""
    with desk("known") as made:
        sockets = made.enter("known", 60)
        assert made.lobby.room == MAX_KNOWN - 60
        made.lobby.serve_some()
        made.lobby.close()
        at_the_end = len(made.served)
        await asyncio.sleep(0)
    assert made.lobby.room == MAX_KNOWN
    assert len(made.served) == at_the_end < 60
    assert all(sock.fileno() == -1 for sock in sockets)


async def test_a_bug_met_while_serving_one_does_not_keep_the_others() -> None:
    """The loop reports it, and the next turn serves the next."""
    met = list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: met.append(context["exception"]))
    with desk() as made:
        made.enter("good")
        made.enter("bad")
        made.enter("better")
        served = await made.all_served()
    assert served == ["good", "bad", "better"]
    assert [type(error) for error in met] == [ZeroDivisionError]
