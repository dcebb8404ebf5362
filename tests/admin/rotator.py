"""An operator as a process of its own, so that its times are not those of a busy test: `rotator.py SOCKET N`.

Rotates N times with a grace of 1 s, and prints each change as a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from relayd.admin.client import AdminClient
from relayd.admin.schema import KeyState

GRACE_S = 1.0
_PAUSE_S = 0.03


async def rotate(socket: Path, times: int) -> None:
    """Rotate and tell."""
    client = AdminClient(socket)
    for n in range(times):
        ring = await client.keys()
        active = next(key for key in ring.keys if key.state is KeyState.ACTIVE)
        began_s = time.perf_counter()
        change = await client.rotate_key(
            active.id, grace_s=GRACE_S, generation=ring.generation, idempotency_key=f"rotation-{n}"
        )
        took_s = time.perf_counter() - began_s
        assert change.old is not None
        told = {"secret": change.secret, "old_ends": change.old.expires_at, "took_s": took_s}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        await asyncio.sleep(_PAUSE_S)


if __name__ == "__main__":
    asyncio.run(rotate(Path(sys.argv[1]), int(sys.argv[2])))
