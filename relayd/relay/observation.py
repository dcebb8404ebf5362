"""What a request of `/v1` wants of its answer beside the bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import NamedTuple

import msgspec


class StreamProtocol(Enum):
    """What an endpoint streams."""

    CHAT = auto()
    """Chunks with choices, then `[DONE]`: chat completions, completions."""
    RESPONSES = auto()
    """Typed events, the last of which has the response."""
    OTHER = auto()
    """Events until the body ends: images, transcriptions, speech."""


class ResponseHead(NamedTuple):
    """The head of the provider's response."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    is_stream: bool


class Observation(msgspec.Struct, kw_only=True):
    """What a request wants of its answer beside the bytes.

    Args:
        protocol: of a stream.
        expects_stream: whether the client asked for one.
        strips_usage: whether the chunk with the usage was asked for by the relay alone.
        counts_usage: whether the answer tells what the request used; a stored one tells what another used.
        on_head: told the head before the first byte.
        on_created: told the id of an object that the answer creates, before its client knows it; and the
            route that made it.
        rewrite: makes another body of the whole one, if the body may not pass as it is.
    """

    protocol: StreamProtocol = StreamProtocol.OTHER
    expects_stream: bool = False
    strips_usage: bool = False
    counts_usage: bool = True
    on_head: Callable[[ResponseHead], None]
    on_created: Callable[[str, str | None], None] | None = None
    rewrite: Callable[[bytes], bytes] | None = None

    @property
    def must_stream(self) -> bool:
        """Whether the answer is a stream or none: not every model streams a transcription or an image."""
        return self.expects_stream and self.protocol is not StreamProtocol.OTHER
