"""A provider behind a bad network: every fault ends in the whole answer, or in one typed line."""

from __future__ import annotations

import pytest

from tests.harness import running_relay
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
    # Short where it is to run out, long where the network is only slow.
    limit_s = 0.5 if codes == ("upstream_timeout",) else 30
    async with (
        FaultProxy(0, faults) as proxy,
        running_relay(
            upstream_url=lambda _upstream: f"http://{HOST}:{proxy.port}/v1",
            upstream__first_token_timeout_s=limit_s,
            upstream__idle_timeout_s=limit_s,
        ) as room,
    ):
        proxy.target_port = room.upstream.port
        reply = await room.ask(_MODEL)
        assert reply.lines[-1] == DONE
        code = None if reply.error is None else reply.error.partition(":")[0]
        assert code in codes
        if code is None:
            assert reply.text == _TEXT
        else:
            assert _TEXT.startswith(reply.text)
        await until(lambda: len(room.server.streams) == 0)
