"""The demo upstream as a process of its own: `python -m relayd.demo [--port N]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys

import uvloop

from relayd.demo import DemoUpstream
from relayd.descriptors import MANY_DESCRIPTORS, reserve_descriptors


async def serve(port: int, key: str) -> None:
    """Serve until SIGTERM or SIGINT; prints the base URL when ready."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopped.set)
    async with DemoUpstream(key, port=port) as upstream:
        sys.stdout.write(upstream.base_url + "\n")
        sys.stdout.flush()
        await stopped.wait()


def main() -> int:
    """Run the upstream as a process of its own."""
    parser = argparse.ArgumentParser(
        prog="python -m relayd.demo", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1 (default: a free one)")
    port = parser.parse_args().port
    # Benchmarks hold thousands of connections.
    reserve_descriptors(MANY_DESCRIPTORS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(port, os.environ.get("RELAYD_DEMO_KEY", "demo")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
