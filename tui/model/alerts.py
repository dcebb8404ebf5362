"""The alerts of this run of the app: what holds, what is over, and what the operator has seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from msgspec.structs import replace

from relayd.admin.schema import Alert, AlertKind, Severity, utc_text

_MAX_PAST = 200


@dataclass(slots=True)
class KnownAlert:
    """An alert, and whether the operator has answered it by looking at the list."""

    alert: Alert
    is_seen: bool = False

    @property
    def key(self) -> str:
        """What identifies it among those of this run."""
        return f"{self.alert.id} {self.alert.since}"


class AlertList:
    """Written by the feed; `answer` and `take_news` belong to the screen."""

    def __init__(self) -> None:
        self._live: dict[str, KnownAlert] = {}
        self._past: list[KnownAlert] = []
        self._is_new = False
        self._is_first = True

    @property
    def live(self) -> list[KnownAlert]:
        """Those that hold, the newest first."""
        return sorted(self._live.values(), key=lambda known: known.alert.since, reverse=True)

    @property
    def all(self) -> list[KnownAlert]:
        """Those that hold, then those that are over, the newest first."""
        return [*self.live, *self._past]

    @property
    def unanswered(self) -> list[KnownAlert]:
        """Those that the operator has not seen yet, also if they are over."""
        return [known for known in self.all if not known.is_seen]

    def take_news(self) -> bool:
        """Return whether an alert has begun since this was asked last."""
        is_new, self._is_new = self._is_new, False
        return is_new

    def answer(self) -> None:
        """Note that the operator sees all of them."""
        for known in self.all:
            known.is_seen = True

    def update(self, alerts: Iterable[Alert], now_s: float, *, are_all_known: bool = True) -> None:
        """Take over what holds by the daemon's account.

        Args:
            alerts: all that it knows of.
            now_s: the Unix time.
            are_all_known: whether every instance has told its own; else none that is missing has ended.
        """
        told = {alert.id: alert for alert in alerts}
        for alert in told.values():
            self._begin(alert)
        for known in list(self._live.values()):
            is_missing = known.alert.kind is not AlertKind.CONTACT and known.alert.id not in told
            if is_missing and are_all_known:
                self._end(known, now_s)
        # What began before the app did is a line, but no bell.
        self._is_new = self._is_new and not self._is_first
        self._is_first = False

    def add_past(self, alerts: Iterable[Alert]) -> None:
        """Add what the daemon remembers and this run has not seen."""
        known = {known.key for known in self.all}
        older = [KnownAlert(alert, is_seen=True) for alert in alerts]
        past = [*self._past, *(one for one in older if one.key not in known)]
        # What ended while there was no contact is newer than some of this run.
        past.sort(key=lambda one: one.alert.ended_at or "", reverse=True)
        self._past = past[:_MAX_PAST]

    def lose_contact(self, sentence: str, since_s: float) -> None:
        """Begin the app's own alert: the daemon says nothing."""
        self._begin(
            Alert(
                id=str(AlertKind.CONTACT),
                kind=AlertKind.CONTACT,
                severity=Severity.CRITICAL,
                sentence=sentence,
                since=utc_text(since_s),
            )
        )

    def regain_contact(self, now_s: float) -> None:
        """End it."""
        known = self._live.get(AlertKind.CONTACT)
        if known is not None:
            self._end(known, now_s)

    def _begin(self, alert: Alert) -> None:
        known = self._live.get(alert.id)
        if known is None:
            self._live[alert.id] = KnownAlert(alert)
            self._is_new = True
        else:
            known.alert = replace(alert, since=known.alert.since)

    def _end(self, known: KnownAlert, now_s: float) -> None:
        del self._live[known.alert.id]
        known.alert = replace(known.alert, ended_at=utc_text(now_s))
        self._past = [known, *self._past][:_MAX_PAST]
