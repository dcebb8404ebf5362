"""The open streams, and how to end one, some or all of them."""

from __future__ import annotations

from collections.abc import Iterator

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.stream import RelayStream


class ActiveStreams:
    """Lists the open streams. `server.max_streams` bounds them."""

    def __init__(self) -> None:
        self._streams: dict[str, RelayStream] = {}
        self._cut_keys: dict[str, int] = {}
        """How many streams of each key the cut has ended."""
        self._stop_error: RelayError | None = None
        self._closed_deltas = 0

    def add(self, stream: RelayStream) -> None:
        """List a stream; end it immediately if that was requested while its body arrived."""
        self._streams[stream.record.id] = stream
        if self._stop_error is not None:
            stream.stop(self._stop_error)
        key_id = stream.record.key_id
        if key_id in self._cut_keys:
            self._cut_keys[key_id] += 1
            stream.stop(_key_revoked())

    def remove(self, stream: RelayStream) -> None:
        """Take a stream off the list."""
        self._closed_deltas += self._streams.pop(stream.record.id).record.deltas

    def __iter__(self) -> Iterator[RelayStream]:
        """Iterate over the open streams, oldest first."""
        return iter(tuple(self._streams.values()))

    def __len__(self) -> int:
        """Return the number of open streams."""
        return len(self._streams)

    @property
    def deltas(self) -> int:
        """Deltas relayed since the start, open streams included."""
        return self._closed_deltas + sum(stream.record.deltas for stream in self._streams.values())

    def find(self, request_id: str) -> RelayStream | None:
        """Return an open stream, or None."""
        return self._streams.get(request_id)

    def cancel(self, request_id: str) -> bool:
        """End one stream for the operator; return False if no such stream is open."""
        stream = self.find(request_id)
        if stream is None:
            return False
        stream.stop(RelayError(ErrorCode.CANCELLED, "The operator of this relay cancelled the request."))
        return True

    def cut_key(self, key_id: str) -> int:
        """End the streams of a key, and those of requests that it opened before; return how many so far.

        The key must be revoked for good: no later request gets in with it.
        """
        if key_id not in self._cut_keys:
            cut = [stream for stream in self if stream.record.key_id == key_id]
            self._cut_keys[key_id] = len(cut)
            for stream in cut:
                stream.stop(_key_revoked())
        return self._cut_keys[key_id]

    def stop_all(self, error: RelayError) -> int:
        """End every open stream, and every later one, with the same error; return how many are open."""
        self._stop_error = error
        for stream in self:
            stream.stop(error)
        return len(self)


def _key_revoked() -> RelayError:
    return RelayError(ErrorCode.KEY_REVOKED, "The key of this request was revoked.")
