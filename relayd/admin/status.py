"""The daemon at a glance."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter

from relayd import __version__
from relayd.admin.context import AdminContext
from relayd.admin.schema import Disk, LogHealth, RingSummary, Status, StreamCounts
from relayd.relay.active_streams import ActiveStreams
from relayd.state.errors import StateError
from relayd.state.keyring import KeyRing
from relayd.state.records import KeyState, Phase, utc_text
from relayd.state.state import State


async def status_of(parts: AdminContext) -> Status:
    """All figures as they are now; the disk is asked in a thread."""
    facts, limits, log = parts.facts, parts.limits(), parts.state.log
    now_s = asyncio.get_running_loop().time()
    disk, trouble = await parts.quick.run(lambda: _disk(parts.state))
    return Status(
        version=__version__,
        boot_id=facts.boot_id,
        pid=os.getpid(),
        started_at=utc_text(facts.started_at_s),
        uptime_s=max(0, int(time.time() - facts.started_at_s)),
        intake=parts.intake.state,
        address=facts.address,
        upstream=facts.upstream,
        demo=facts.demo,
        state_dir=facts.state_dir,
        seq=parts.hub.newest_seq,
        streams=count_streams(parts.registry),
        max_streams=limits.max_streams,
        drain_timeout_s=limits.drain_timeout_s,
        rates=parts.tally.rates(now_s, parts.registry.deltas),
        log=LogHealth(queued=log.queued, lost=log.lost, error=log.error or trouble),
        disk=disk,
        ring=summarise_ring(parts.state.ring),
    )


def count_streams(registry: ActiveStreams) -> StreamCounts:
    """Open streams by phase; one that writes its last lines still counts as streaming."""
    phases = Counter(stream.record.phase for stream in registry)
    return StreamCounts(
        connecting=phases[Phase.CONNECTING],
        waiting=phases[Phase.WAITING],
        streaming=phases[Phase.STREAMING] + phases[Phase.DONE],
    )


def summarise_ring(ring: KeyRing) -> RingSummary:
    """The ring in four figures."""
    generation, keys = ring.generation, ring.keys()
    retiring = [key for key in keys if key.state is KeyState.RETIRING]
    ends = [key.expires_at for key in retiring if key.expires_at is not None]
    return RingSummary(
        generation=generation,
        active=sum(key.state is KeyState.ACTIVE for key in keys),
        retiring=len(retiring),
        next_expiry_at=min(ends, default=None),
    )


def _disk(state: State) -> tuple[Disk, str | None]:
    """What is known of the disk; a disk that does not answer is told of, and the rest still shown."""
    try:
        use = state.disk()
    except StateError as error:
        return Disk(0, 0), str(error)
    return Disk(use.database_bytes, use.free_bytes), None
