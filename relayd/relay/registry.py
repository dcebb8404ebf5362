"""The open streams: who holds how many places, and how to end one, some or all of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from relayd.relay.failure import Code, Failure

if TYPE_CHECKING:
    from relayd.relay.stream import RelayStream

_RETRY_AFTER_BUSY_S = 5


class Registry:
    """Places are taken when a request is admitted, before its body; streams fill them.

    Args:
        max_streams: places in all.
        max_streams_per_address: places for one address.
    """

    def __init__(self, *, max_streams: int, max_streams_per_address: int) -> None:
        self.max_streams = max_streams
        self.max_streams_per_address = max_streams_per_address
        self._places: Counter[str] = Counter()
        self._taken = 0
        self._streams: dict[str, RelayStream] = {}
        self._cut_keys: set[str] = set()
        self._ending: Failure | None = None
        self._closed_deltas = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def take_place(self, address: str) -> None:
        """Count one more request of this address; `give_back` must follow.

        Raises:
            Failure: `busy`, a limit is reached.
        """
        if self._taken >= self.max_streams:
            raise Failure(
                Code.BUSY,
                f"This relay serves its limit of {self.max_streams} streams; try again shortly.",
                retry_after_s=_RETRY_AFTER_BUSY_S,
            )
        if self._places[address] >= self.max_streams_per_address:
            raise Failure(
                Code.BUSY,
                f"Your address has its limit of {self.max_streams_per_address} streams open; "
                "close one or try again shortly.",
                retry_after_s=_RETRY_AFTER_BUSY_S,
            )
        self._taken += 1
        self._places[address] += 1
        self._empty.clear()

    def give_back(self, address: str) -> None:
        """Free the place that `take_place` counted."""
        self._taken -= 1
        self._places[address] -= 1
        if not self._places[address]:
            del self._places[address]
        self._note_if_empty()

    def add(self, stream: RelayStream) -> None:
        """List a stream as open; one that was to be ended while its body arrived ends at once."""
        self._streams[stream.record.id] = stream
        self._empty.clear()
        if self._ending is not None:
            stream.stop(self._ending)
        if stream.record.key_id in self._cut_keys:
            stream.stop(_key_revoked())

    def remove(self, stream: RelayStream) -> None:
        """Take a stream off the list."""
        self._closed_deltas += self._streams.pop(stream.record.id).record.deltas
        self._note_if_empty()

    def _note_if_empty(self) -> None:
        """A stream gives its place back with its last line, and may still have its end to record."""
        if not self._taken and not self._streams:
            self._empty.set()

    def __iter__(self) -> Iterator[RelayStream]:
        """The open streams, oldest first."""
        return iter(tuple(self._streams.values()))

    def __len__(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    @property
    def deltas(self) -> int:
        """Deltas relayed since the start, open streams included."""
        return self._closed_deltas + sum(stream.record.deltas for stream in self._streams.values())

    def cancel(self, request_id: str) -> bool:
        """End one stream for the operator; False where no such stream is open."""
        stream = self._streams.get(request_id)
        if stream is None:
            return False
        stream.stop(Failure(Code.CANCELLED, "The operator of this relay cancelled the request."))
        return True

    def cut_key(self, key_id: str) -> int:
        """End every stream that a key opened, and that it may still open; returns how many are open now.

        The key must be revoked for good: admission no longer lets it in.
        """
        self._cut_keys.add(key_id)
        cut = [stream for stream in self if stream.record.key_id == key_id]
        for stream in cut:
            stream.stop(_key_revoked())
        return len(cut)

    def stop_all(self, failure: Failure) -> int:
        """End every open stream, and every one to come, with the same failure; returns how many are open."""
        self._ending = failure
        streams = tuple(self)
        for stream in streams:
            stream.stop(failure)
        return len(streams)

    async def wait_empty(self, timeout_s: float) -> bool:
        """Wait until every place is given back and every stream is over; False where time ran out first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True


def _key_revoked() -> Failure:
    return Failure(Code.KEY_REVOKED, "The key of this request was revoked.")
