"""Instances of one relay, each in a process of its own, that change keys at the same time.

As a program it is told how many instances, how many clients each makes, and where the database is. Each
instance prints a line of JSON once it has all clients of all.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from relayd.state.directory import StateDirectory
from relayd.state.state import State
from tests.state.harness import ALICE, SharedDatabase
from tests.wire import until


async def make_clients(state: State, number: int, clients: int, expected: int) -> None:
    """Make clients; print what this instance has once the ring has all of all instances."""
    state.follow(lambda _: None)
    for at in range(clients):
        await state.ring.add_client(f"client-{number}-{at}", {}, caller=ALICE)
    await until(lambda: state.ring.generation == expected)
    keys = state.ring.keys()
    # Short enough to be written at once.
    line = json.dumps(sorted(key.client for key in keys))
    os.write(1, f"{line}\n".encode())
    await state.commands.close()


def serve(database: SharedDatabase, owner: StateDirectory, number: int, clients: int, expected: int) -> None:
    """Be one instance."""
    state = database.instance(database.directory(owner, number), number)
    asyncio.run(make_clients(state, number, clients, expected))
    state.close()


def main() -> None:
    """Fork the instances, as a supervisor does."""
    instances, clients, home, *url = sys.argv[1:]
    database = SharedDatabase(Path(home), url[0] if url else None)
    expected = int(instances) * int(clients)
    children = []
    with StateDirectory(database.home / "state") as owner:
        for number in range(1, int(instances) + 1):
            child = os.fork()
            if child == 0:
                serve(database, owner, number, int(clients), expected)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
