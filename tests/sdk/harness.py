"""What tests with real clients share: where relayd is, and what its provider has seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from tests.support.upstream import FaultUpstream, Seen

HEARTBEATS = "first_ms=350"
"""A model that is silent for the time of three heartbeats before its first token."""
SHAPES = ("crlf", "ids", "obfuscation", "coalesced", "comments", "one_byte")
"""The forms that a provider may give its streams."""
_numbers = count()


@dataclass(frozen=True, slots=True)
class V1:
    """A daemon and the provider behind it."""

    base_url: str
    """What a client takes as its base URL."""
    key: str = field(repr=False)
    upstream: FaultUpstream

    def model(self, words: str = "") -> str:
        """Return a model's name that no other request has, with these words of a script and no pauses."""
        return f"demo:id={next(_numbers)},interval_ms=0,{words}".rstrip(",")

    def asked(self, model: str) -> list[Seen]:
        """Return the requests that named a model, in order."""
        name = model.encode()
        return [seen for seen in list(self.upstream.requests) if name in seen.body]

    def asked_once(self, model: str) -> Seen:
        """Return the only request that named a model."""
        (seen,) = self.asked(model)
        return seen
