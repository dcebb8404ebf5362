"""A provider behind a bad network: every fault ends in the whole answer, or in one typed line."""

from __future__ import annotations

import pytest

from relayd.relay.stream import StreamLimits
from relayd.relay.upstream import Upstream, UpstreamOptions
from tests.public.room import PROVIDER_KEY, Setup, public_room
from tests.support.faultproxy import HOST, FaultProxy, Faults
from tests.wire import DONE, until

_MODEL = "demo:text=words,deltas=10,interval_ms=5"
_TEXT = "The relay passes each delta on as one line, as "


@pytest.mark.parametrize(
    ("faults", "codes"),
    [
        (Faults(), (None,)),
        (Faults(latency_s=0.05), (None,)),
        (Faults(slice_bytes=1), (None,)),
        (Faults(slice_bytes=7, bytes_per_s=20_000), (None,)),
        (Faults(reset_after=0), ("upstream_failed",)),
        (Faults(reset_after=100), ("upstream_failed",)),
        (Faults(reset_after=900), ("upstream_failed",)),
        (Faults(cut_after=0), ("upstream_failed",)),
        (Faults(cut_after=900), ("upstream_failed", "upstream_truncated")),
        (Faults(stall_after=0), ("upstream_timeout",)),
        (Faults(stall_after=100), ("upstream_timeout",)),
        (Faults(stall_after=900), ("upstream_timeout",)),
    ],
    ids=str,
)
async def test_a_bad_network_gives_the_answer_or_one_typed_line(
    faults: Faults, codes: tuple[str | None, ...]
) -> None:
    """In bounded time, and nothing of the request is left behind."""
    made: list[FaultProxy] = []

    def through_proxy(base_url: str) -> Upstream:
        del base_url
        return Upstream(PROVIDER_KEY, UpstreamOptions(f"http://{HOST}:{made[0].port}/v1", max_retries=0))

    # Short where it is to run out, long where the network is only slow.
    limit_s = 0.5 if codes == ("upstream_timeout",) else 30
    limits = StreamLimits(first_token_timeout_s=limit_s, idle_timeout_s=limit_s)
    setup = Setup(limits=limits, upstream=through_proxy)
    async with FaultProxy(0, faults) as proxy:
        made.append(proxy)
        async with public_room(setup) as room:
            proxy.target_port = room.demo.port
            reply = await room.ask(_MODEL)
            assert reply.lines[-1] == DONE
            code = None if reply.error is None else reply.error.partition(":")[0]
            assert code in codes
            if code is None:
                assert reply.text == _TEXT
            else:
                assert _TEXT.startswith(reply.text)
            await until(lambda: len(room.registry) == 0)
