"""`relayd.public.lobby`: who is served first when many come at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

from relayd.public.connections import MAX_STRANGERS_PER_NETWORK
from relayd.public.lobby import MAX_WAITING, Lobby, Newcomer


class Desk:
    """A lobby, and in which turn of the loop whom it served."""

    def __init__(self, *known: str) -> None:
        self.served: list[str] = []
        self.lobby = Lobby(self._serve, is_known=lambda network: network in known)

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
    made = Desk(*known)
    with closing(made.lobby):
        yield made


async def test_who_comes_alone_is_served_at_once() -> None:
    """Known or not, nobody waits for a turn of the loop where nobody else does."""
    with desk("known") as made:
        made.enter("strange")
        made.lobby.serve_some()
        made.enter("known")
        assert made.served == ["strange"]
        await made.all_served()
        assert made.served == ["strange", "known"]


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
    with desk("known") as made:
        made.enter("known", 200)
        made.enter("strange", 10)
        served = await made.all_served()
    assert "known" in served[served.index("strange", 9) :]


async def test_of_one_strange_network_only_so_many_wait() -> None:
    """Beyond them, the one that waited longest is cut unserved; a known network has no such bound."""
    with desk("known") as made:
        mine = made.enter("strange", MAX_STRANGERS_PER_NETWORK + 2)
        many = made.enter("known", MAX_STRANGERS_PER_NETWORK + 2)
        assert [sock.fileno() == -1 for sock in mine[:3]] == [True, True, False]
        assert not any(sock.fileno() == -1 for sock in many)
        served = await made.all_served()
    assert served.count("strange") == MAX_STRANGERS_PER_NETWORK
    assert served.count("known") == MAX_STRANGERS_PER_NETWORK + 2


async def test_the_lobby_says_how_much_room_it_has_and_closes_what_it_holds() -> None:
    """Nobody is served after the end, and no socket is left open."""
    with desk("known") as made:
        sockets = made.enter("known", 100)
        assert made.lobby.room == MAX_WAITING - 100
        made.lobby.serve_some()
        made.lobby.close()
        at_the_end = len(made.served)
        await asyncio.sleep(0)
    assert made.lobby.room == MAX_WAITING
    assert len(made.served) == at_the_end < 100
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
