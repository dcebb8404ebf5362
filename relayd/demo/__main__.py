"""Run the demo upstream by itself; it prints its base URL, and takes its key from `RELAYD_DEMO_KEY`."""

from __future__ import annotations

import asyncio
import os

from relayd.demo.upstream import DemoUpstream


async def _serve() -> None:
    upstream = DemoUpstream(os.environ["RELAYD_DEMO_KEY"])
    upstream.start()
    print(upstream.base_url, flush=True)  # noqa: T201 - this is what the caller waits for
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
