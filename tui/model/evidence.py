"""Who uses which key: what a rotation needs to show before it ends somebody's access."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from relayd.admin.schema import LIVE_STATES, KeyInfo, KeyState, Outcome, RequestRecord, epoch_s
from relayd.printable import plural
from tui.model.units import age, countdown, moment, unix_s

MAX_USERS = 200
RECENT_S = 24 * 3600


@dataclass(slots=True)
class Use:
    """What one address did with one key."""

    client: str
    ip: str
    first_s: float
    last_s: float
    requests: int = 0
    refused: int = 0
    refused_last_s: float = 0.0
    served_last_s: float = 0.0


class Evidence:
    """Uses by key and address, from the records this app has seen.

    `since` cuts a key's uses at the moment its successor was made, or where it has none at its end: what
    came before is history, what came after is somebody who still has the old key.
    """

    def __init__(self) -> None:
        self._uses: dict[str, dict[tuple[str, str], Use]] = {}
        self._stragglers: dict[str, dict[tuple[str, str], Use]] = {}
        self._since: dict[str, float] = {}
        self.seen_from_s: float | None = None

    def retire(self, keys: Iterable[KeyInfo], records: Iterable[RequestRecord]) -> None:
        """Learn which keys were replaced or ended, and when; `records` are those seen, newest first."""
        keys = list(keys)
        made = {key.id: epoch_s(key.created_at) for key in keys}
        since = {key.id: _outdated_s(key, made) for key in keys if key.state is not KeyState.ACTIVE}
        if since == self._since:
            return
        fresh = {key_id for key_id, at_s in since.items() if self._since.get(key_id) != at_s}
        self._since = since
        self._stragglers = {k: v for k, v in self._stragglers.items() if k in since and k not in fresh}
        oldest_s = min((since[key_id] for key_id in fresh), default=float("inf"))
        for record in records:
            at_s = unix_s(record.started_at)
            if at_s < oldest_s:
                break
            if record.key_id in fresh:
                self._note_straggler(record, at_s)

    def saw(self, record: RequestRecord) -> None:
        """Count a request, when it starts."""
        if record.key_id is None:
            return
        at_s = unix_s(record.started_at)
        if self.seen_from_s is None or at_s < self.seen_from_s:
            self.seen_from_s = at_s
        _note(self._uses.setdefault(record.key_id, {}), record, at_s)
        self._note_straggler(record, at_s)

    def ended(self, record: RequestRecord) -> None:
        """Count a request that was counted at its start as refused, if that is how it ended."""
        if record.key_id is None or record.outcome is not Outcome.DENIED:
            return
        address = (record.client or "—", record.ip)
        for uses in (self._uses, self._stragglers):
            use = uses.get(record.key_id, {}).get(address)
            if use is not None:
                use.requests = max(0, use.requests - 1)
                use.refused += 1
                use.refused_last_s = max(use.refused_last_s, unix_s(record.started_at))

    def _note_straggler(self, record: RequestRecord, at_s: float) -> None:
        key_id = record.key_id
        if key_id is not None and at_s >= self._since.get(key_id, at_s + 1):
            _note(self._stragglers.setdefault(key_id, {}), record, at_s)

    def users(self, key_id: str, now_s: float) -> list[Use]:
        """Return the uses of this key in the last 24 hours by address, the latest first."""
        return _latest_first(
            use for use in self._uses.get(key_id, {}).values() if now_s - use.last_s < RECENT_S
        )

    def stragglers(self, key_id: str) -> list[Use]:
        """Return the uses of this key since it was replaced by address, the latest first."""
        return _latest_first(self._stragglers.get(key_id, {}).values())

    def refused(self, key_id: str, since_s: float) -> list[Use]:
        """Return the uses of this key that were refused since `since_s`, the latest first."""
        return [use for use in self.stragglers(key_id) if use.refused and use.refused_last_s >= since_s]

    def outdated_s(self, key_id: str) -> float | None:
        """Return from when on a key should not be used; None if it should."""
        return self._since.get(key_id)

    def last_use(self, key: KeyInfo) -> tuple[float, str] | None:
        """Return when and from where a key was last accepted, by the ring and by the records seen."""
        found = [(use.served_last_s, use.ip) for use in self._uses.get(key.id, {}).values() if use.requests]
        if key.last_used_at is not None:
            found.append((epoch_s(key.last_used_at), key.last_used_ip or ""))
        return max(found, default=None)

    def straggler_count(self, keys: Iterable[KeyInfo]) -> int:
        """Return how many addresses still use a retiring key."""
        return sum(
            1
            for key in keys
            if key.state is KeyState.RETIRING
            for use in self._stragglers.get(key.id, {}).values()
            if use.requests
        )


def state_in_words(key: KeyInfo, now_s: float) -> str:
    """Return the state of a key, and since when or for how long."""
    if key.state is KeyState.RETIRING and key.expires_at is not None:
        return f"retiring, ends in {countdown(epoch_s(key.expires_at) - now_s)}"
    ended = key.revoked_at or key.expires_at
    if key.state in LIVE_STATES or ended is None:
        return key.state.value
    return f"{key.state.value} since {moment(epoch_s(ended), now_s)}"


def use_in_words(key: KeyInfo, evidence: Evidence, streams: int, now_s: float) -> str:
    """Return when a key was made and last used, by how many, and how many streams are open with it."""
    last = evidence.last_use(key)
    used = "never used" if last is None else f"last used {age(now_s - last[0])} ago from {last[1] or '—'}"
    users = sum(1 for use in evidence.users(key.id, now_s) if use.requests)
    by = f" ({plural(users, 'address', 'addresses')} in 24 h)" if users > 1 else ""
    made = age(now_s - epoch_s(key.created_at))
    return f"Made {made} ago, {used}{by}.\n{plural(streams, 'open stream')} with it."


def _outdated_s(key: KeyInfo, made: dict[str, float]) -> float:
    """Return from when on the key should not be used."""
    successor_s = made.get(key.replaced_by or "")
    if successor_s is not None:
        return successor_s
    ended = key.revoked_at or key.expires_at
    return epoch_s(ended) if ended else made[key.id]


def _note(uses: dict[tuple[str, str], Use], record: RequestRecord, at_s: float) -> None:
    who = (record.client or "—", record.ip)
    use = uses.get(who)
    if use is None:
        if len(uses) >= 2 * MAX_USERS:
            _forget_half(uses)
        use = uses[who] = Use(*who, first_s=at_s, last_s=at_s)
    use.first_s = min(use.first_s, at_s)
    if record.outcome is Outcome.DENIED:
        use.refused += 1
        use.refused_last_s = max(use.refused_last_s, at_s)
    else:
        use.requests += 1
        use.served_last_s = max(use.served_last_s, at_s)
    use.last_s = max(use.last_s, at_s)


def _forget_half(uses: dict[tuple[str, str], Use]) -> None:
    """Drop the older half at once: looking for the oldest at each new address would cost more."""
    for who in sorted(uses, key=lambda who: uses[who].last_s)[:MAX_USERS]:
        del uses[who]


def _latest_first(uses: Iterable[Use]) -> list[Use]:
    return sorted(uses, key=lambda use: (-use.last_s, use.client, use.ip))[:MAX_USERS]
