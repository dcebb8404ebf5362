"""How long a body may take: so long in all, and at no less than a pace that only an attacker stays under."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PACE_FROM_S = 10.0
"""From this age on the pace counts. A body that is there at once never meets this clock."""
LEAST_BYTES_PER_S = 1024
_LOOK_EVERY_S = 1.0


class BodyClock:
    """Runs from the end of the head until `stop`.

    A slow body costs its sender next to nothing and the relay a connection. Apache's mod_reqtimeout
    (`body=20,MinRate=500`) draws the line in the same way.

    Args:
        timeout_s: in all.
        received: how many bytes have come.
        late: called once, with a sentence, when it took too long.
    """

    def __init__(self, timeout_s: float, received: Callable[[], int], late: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._received = received
        self._late = late
        self._began_at = self._loop.time()
        self._look_at(min(PACE_FROM_S, timeout_s))

    def stop(self) -> None:
        """The body is there, or nobody waits for it any more."""
        self._timer.cancel()

    def _look_at(self, age_s: float) -> None:
        # What counts is the age that was meant: a timer may come a millisecond before its time.
        self._timer = self._loop.call_at(self._began_at + age_s, self._look, age_s)

    def _look(self, age_s: float) -> None:
        if age_s >= self._timeout_s:
            self._late(f"The body did not arrive within {self._timeout_s:g} s.")
        elif self._received() < LEAST_BYTES_PER_S * age_s:
            self._late(f"The body came at less than {LEAST_BYTES_PER_S} bytes a second.")
        else:
            self._look_at(min(age_s + _LOOK_EVERY_S, self._timeout_s))
