"""Where each open stream is, once a second."""

from __future__ import annotations

import asyncio
import time

from relayd.admin.schema import Progress, StreamProgress
from relayd.relay.active_streams import ActiveStreams
from relayd.relay.stream import RelayStream
from relayd.state.records import utc_text


def progress_of(registry: ActiveStreams) -> Progress:
    """All open streams as they are now, oldest first."""
    now_s = asyncio.get_running_loop().time()
    return Progress(utc_text(time.time()), [_stream(stream, now_s) for stream in registry])


def _stream(stream: RelayStream, now_s: float) -> StreamProgress:
    record = stream.record
    last_delta_at = stream.last_delta_at
    return StreamProgress(
        id=record.id,
        client=record.client,
        key_id=record.key_id,
        ip=record.ip,
        model=record.model,
        phase=record.phase,
        waiting_for="client" if stream.blocked else "upstream",
        age_ms=round(stream.age_s * 1000),
        deltas=record.deltas,
        bytes_out=record.bytes_out,
        stalled_ms=round(stream.stalled_s * 1000),
        last_delta_ms=None if last_delta_at is None else round((now_s - last_delta_at) * 1000),
    )
