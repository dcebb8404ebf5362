"""What the tests of one stream work with: a reply that is kept, an upstream that is made up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from relayd.relay.failure import ClientGone, ClientStalled, Failure
from relayd.relay.registry import Registry
from relayd.relay.stream import RelayStream, StreamLimits
from relayd.relay.upstream import Upstream, UpstreamOptions
from relayd.state.records import RequestRecord, utc_text

PROVIDER_KEY = "provider-key-of-the-tests"


class KeptReply:
    """A client that reads all at once, unless it is told to leave or to stall."""

    def __init__(self) -> None:
        self.begun = False
        self.status: int | None = None
        self.stalled_s = 0.0
        self.sent = b""
        self.finished = 0
        self.first = asyncio.Event()
        self.trouble: ClientGone | ClientStalled | None = None
        """What every write meets from now on."""

    def send(self, lines: bytes) -> bool:
        """Keep the lines."""
        self._send(lines, None)
        self.first.set()
        return True

    async def drained(self) -> None:
        """There is nothing to wait for."""

    def beat(self, line: bytes) -> None:
        """Keep the line."""
        self._send(line, None)

    async def finish(self, lines: bytes, failure: Failure | None) -> None:
        """Keep the last lines; this comes once."""
        self._send(lines, failure)
        self.finished += 1
        assert self.finished == 1

    def _send(self, lines: bytes, failure: Failure | None) -> None:
        if self.trouble is not None:
            raise self.trouble
        assert lines.endswith(b"\n")
        if not self.begun:
            self.begun = True
            self.status = 200 if failure is None else failure.status
        self.sent += lines


def new_record(request_id: str = "request", key_id: str = "key") -> RequestRecord:
    """The record of a request that was just admitted."""
    return RequestRecord(
        id=request_id, boot_id="boot", started_at=utc_text(time.time()), key_id=key_id, model="demo"
    )


def new_stream(
    upstream: Upstream,
    reply: KeptReply,
    model: str,
    *,
    limits: StreamLimits | None = None,
    record: RequestRecord | None = None,
) -> RelayStream:
    """A stream that asks for this model."""
    body = b'{"stream":true,"messages":[{"role":"user","content":"Hi"}],"model":"%b"}' % model.encode()
    return RelayStream(
        record or new_record(),
        body,
        tell_usage=False,
        upstream=upstream,
        reply=reply,
        limits=limits or StreamLimits(),
    )


@asynccontextmanager
async def upstream_of(
    base_url: str, *, max_retries: int = 0, connect_timeout_s: float = 5.0
) -> AsyncGenerator[Upstream, None]:
    """A client of the provider, closed at the end."""
    upstream = Upstream(
        PROVIDER_KEY,
        UpstreamOptions(base_url, max_retries=max_retries, connect_timeout_s=connect_timeout_s),
    )
    try:
        yield upstream
    finally:
        await upstream.close()


def new_registry(max_streams: int = 10, max_streams_per_address: int = 10) -> Registry:
    """A registry with these limits."""
    return Registry(max_streams=max_streams, max_streams_per_address=max_streams_per_address)
