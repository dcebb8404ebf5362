"""Keys that were replaced: who still uses each, and how soon that ends."""

from __future__ import annotations

from dataclasses import dataclass

from relayd.admin.schema import KeyInfo, KeyState, epoch_s
from relayd.printable import plural
from tui.model.evidence import Evidence
from tui.model.units import age, clock, countdown

WARN_BEFORE_S = 120
WARN_IF_USED_S = 600
ENDED_SHOWN_S = 120


@dataclass(frozen=True, slots=True)
class OldKey:
    """A key with an end, as things stand now."""

    key: KeyInfo
    left_s: float
    """Until its end; below zero if that is past."""
    users: int
    """How many addresses used it since it was replaced."""
    unused_s: float
    """Since it was last accepted after it was replaced; infinite if it was not."""

    @property
    def is_urgent(self) -> bool:
        """Whether somebody is about to lose access."""
        is_near = self.key.state is KeyState.RETIRING and 0 < self.left_s < WARN_BEFORE_S
        return is_near and self.unused_s < WARN_IF_USED_S

    def sentence(self, *, is_alone: bool) -> str:
        """Return what is to be said below the header, if anything.

        Args:
            is_alone: whether it is the only key in its grace, which the header tells of.
        """
        name = f"The old key {self.key.id} of {self.key.client}"
        users = plural(self.users, "address", "addresses")
        if self.is_urgent:
            return (
                f"{name} ends in {countdown(self.left_s)}, and {users} used it since the rotation, last"
                f" {age(self.unused_s)} ago. K and + give it more time."
            )
        if self.key.state is KeyState.RETIRING and self.left_s > 0:
            use = f"used by {users}" if self.users else "not used since the rotation"
            return "" if is_alone else f"{name} ends in {countdown(self.left_s)}: {use}."
        if self.key.state is KeyState.REVOKED or self.left_s < -ENDED_SHOWN_S:
            return ""
        at = f"{name} has ended at {clock(epoch_s(self.key.expires_at or ''))}"
        are = "is" if self.users == 1 else "are"
        return f"{at}; {users} used it until then, and {are} refused now." if self.users else f"{at}, unused."


def old_key(key: KeyInfo, evidence: Evidence, now_s: float) -> OldKey:
    """Return how things stand with a key that has an end."""
    uses = [use for use in evidence.stragglers(key.id) if use.requests]
    last_s = max((use.served_last_s for use in uses), default=float("-inf"))
    left_s = epoch_s(key.expires_at) - now_s if key.expires_at else 0.0
    return OldKey(key, left_s, len(uses), now_s - last_s)
