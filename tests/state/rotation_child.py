"""A process that rotates a key and tells what it knows, for tests that kill it or break its disk.

Reads the first key from stdin. Prints `ready`, then for each rotation
`ack GENERATION KEY` or `refused`, and at last `old key works` when it does.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

from relayd.state.errors import RingUnavailable
from relayd.state.keyring import KeyRing
from relayd.state.records import KeyState
from tests.state.harness import ALICE, opened


def say(line: str) -> None:
    """Write a line at once."""
    os.write(1, f"{line}\n".encode())


async def rotate(ring: KeyRing) -> None:
    """Rotate the active key."""
    keys = ring.keys()
    active = next(key for key in keys if key.state is KeyState.ACTIVE)
    try:
        caller = replace(ALICE, expected_generation=ring.generation)
        change = await ring.rotate(active.id, grace_s=600, caller=caller)
    except RingUnavailable:
        say("refused")
    else:
        say(f"ack {change.generation} {change.secret}")


async def rotate_often(ring: KeyRing, times: int) -> None:
    """Rotate so many times."""
    for _ in range(times):
        await rotate(ring)


def main() -> None:
    """Run: the state directory, the boot id, how many rotations."""
    state_dir, boot_id, times = sys.argv[1:]
    first = sys.stdin.readline().strip().encode()
    with opened(Path(state_dir), boot_id=boot_id) as state:
        say("ready")
        asyncio.run(rotate_often(state.ring, int(times)))
        if state.ring.verify(first) is not None:
            say("old key works")


if __name__ == "__main__":
    main()
