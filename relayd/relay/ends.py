"""The two ends of a stream: who answers, and the way to who asked."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from relayd.relay.failure import Failure


class SourceBody(Protocol):
    """One answer in the provider's form, as it comes."""

    request_id: str | None

    @property
    def pour(self) -> Callable[[Callable[[bytes], bool]], Coroutine[None, None, bool]]:
        """Gives the bytes, as they come, to a function until that returns False.

        Returns whether it was the function that ended it, and not the answer. Raises Failure, and what
        the function raises.
        """
        ...

    def tidy(self) -> None:
        """Call this after the last event: the connection may then serve again, when its answer has ended."""
        ...


class Source(Protocol):
    """Whoever answers: the provider, or the relay itself when it is probed."""

    @property
    def scrub(self) -> Callable[[str], str]:
        """Makes its error messages fit to show."""
        ...

    def stream(
        self, body: bytes, *, connected: Callable[[], None]
    ) -> AbstractAsyncContextManager[SourceBody]:
        """Ask for one completion; leaving closes it. Raises Failure."""
        ...


class Reply(Protocol):
    """The way to the client. All methods take whole lines."""

    status: int | None
    stalled_s: float

    def send(self, lines: bytes) -> bool:
        """Send lines; returns whether the client may be sent more at once. Raises ClientGone."""
        ...

    async def drained(self) -> None:
        """Wait until the client may be sent more. Raises ClientGone or ClientStalled."""
        ...

    def beat(self, line: bytes) -> None:
        """Send a line in the silence, without waiting. Raises ClientGone."""
        ...

    async def finish(self, lines: bytes, failure: Failure | None) -> None:
        """Send the last lines and end the reply. Raises ClientGone or ClientStalled."""
        ...
