"""First and last use of each key: in memory at once, on disk a little later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from relayd.state.records import KeyInfo, utc_text
from relayd.state.stored import storable_text
from relayd.state.transactor import Transactor, Tx


@dataclass(slots=True)
class _Use:
    first_s: float
    first_ip: str
    last_s: float
    last_ip: str


class KeyUse:
    """What this daemon saw of each key. The lock is held for moments only."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._uses: dict[str, _Use] = {}
        self._unwritten: set[str] = set()

    def note(self, key_id: str, ip: str) -> bool:
        """A request came with this key; True for the first one since the daemon started."""
        now_s = self._clock()
        with self._lock:
            self._unwritten.add(key_id)
            use = self._uses.get(key_id)
            if use is None:
                self._uses[key_id] = _Use(now_s, ip, now_s, ip)
                return True
            use.last_s, use.last_ip = now_s, ip
            return False

    def shown(self, key: KeyInfo) -> KeyInfo:
        """The key with its latest use, also where the disk does not know it yet."""
        with self._lock:
            use = self._uses.get(key.id)
            if use is None:
                return key
            first_s, first_ip, last_s, last_ip = use.first_s, use.first_ip, use.last_s, use.last_ip
        return msgspec.structs.replace(
            key,
            first_used_at=key.first_used_at or utc_text(first_s),
            first_used_ip=key.first_used_ip if key.first_used_at else first_ip,
            last_used_at=utc_text(last_s),
            last_used_ip=last_ip,
        )

    def write(self, transactor: Transactor) -> bool:
        """Put what is new on disk; a chore of the writer. Never more to do.

        Raises:
            sqlite3.Error: nothing is written; it is tried again with the next call.
        """
        with self._lock:
            unwritten, self._unwritten = self._unwritten, set()
            values = [
                {
                    "id": key_id,
                    "first_at": utc_text(use.first_s),
                    "first_ip": storable_text(use.first_ip),
                    "last_at": utc_text(use.last_s),
                    "last_ip": storable_text(use.last_ip),
                }
                for key_id, use in self._uses.items()
                if key_id in unwritten
            ]
        if not values:
            return False

        def work(tx: Tx) -> None:
            for value in values:
                tx.connection.execute(
                    "UPDATE keys SET first_used_at = coalesce(first_used_at, :first_at),"
                    " first_used_ip = CASE WHEN first_used_at IS NULL THEN :first_ip ELSE first_used_ip END,"
                    " last_used_at = :last_at, last_used_ip = :last_ip WHERE id = :id",
                    value,
                )

        try:
            transactor.run(work, durable=False)
        except BaseException:
            with self._lock:
                self._unwritten |= unwritten
            raise
        return False
