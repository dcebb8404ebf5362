"""What an alert is, and which there are: those that hold now, and the last ones that have ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from relayd.state.records import epoch_s, utc_text

MAX_PAST = 50


class AlertKind(StrEnum):
    """What an alert is about."""

    DEAD_KEY = "dead_key"
    """A key that has ended is still sent."""
    KEY_ENDS = "key_ends"
    """A key in its grace is in use shortly before its end."""
    ERRORS = "errors"
    """Too many requests fail."""
    BOUND = "bound"
    """A client has used most of a bound of a day or a month."""
    ROUTE = "route"
    """A route to the provider cools down."""
    LOG = "log"
    """The request log loses records, or can't be written."""
    DISK = "disk"
    """The disk of the database is nearly full."""
    ENGINE = "engine"
    """The database does not answer."""
    CONTACT = "contact"
    """The terminal app's own: the daemon does not answer it."""


class Severity(StrEnum):
    """How soon somebody should look."""

    WARNING = "warning"
    CRITICAL = "critical"


SEVERITIES = {
    AlertKind.DEAD_KEY: Severity.WARNING,
    AlertKind.KEY_ENDS: Severity.WARNING,
    AlertKind.ERRORS: Severity.CRITICAL,
    AlertKind.BOUND: Severity.WARNING,
    AlertKind.ROUTE: Severity.WARNING,
    AlertKind.LOG: Severity.CRITICAL,
    AlertKind.DISK: Severity.CRITICAL,
    AlertKind.ENGINE: Severity.CRITICAL,
}

_HOLD_S = {
    AlertKind.ERRORS: 60.0,
    AlertKind.BOUND: 60.0,
    AlertKind.ROUTE: 60.0,
    AlertKind.LOG: 60.0,
    AlertKind.DISK: 60.0,
    AlertKind.ENGINE: 15.0,
}
"""How long it must be well again before an alert ends: what comes and goes is one alert, not ten."""


class Alert(msgspec.Struct, kw_only=True, frozen=True):
    """One thing that is wrong, from its beginning to its end."""

    id: str
    """Kind and subject; the same again if it comes again."""
    kind: AlertKind
    severity: Severity
    sentence: str
    """What happens, then what to do; as of now, or of the end."""
    since: str
    ended_at: str | None = None
    client: str | None = None
    key_id: str | None = None
    route: str | None = None
    instance: str = ""
    """The instance that sees it, if not all of them do."""


class Alerts(msgspec.Struct, frozen=True):
    """`GET /alerts`: those that hold, the newest first, and the last ones that have ended."""

    alerts: list[Alert] = []
    past: list[Alert] = []


class Condition(msgspec.Struct, kw_only=True, frozen=True):
    """What is wrong at one moment."""

    kind: AlertKind
    subject: str
    sentence: str
    client: str | None = None
    key_id: str | None = None
    route: str | None = None
    instance: str = ""

    @property
    def id(self) -> str:
        """The id of its alert."""
        return f"{self.kind}:{self.subject}" if self.subject else str(self.kind)


class AlertBook:
    """The alerts that one process knows of. An alert ends when its condition has been gone for a while."""

    def __init__(self) -> None:
        self._alerts: dict[str, Alert] = {}
        self._seen_s: dict[str, float] = {}
        """When the condition of each was last met."""
        self._past: deque[Alert] = deque(maxlen=MAX_PAST)

    @property
    def alerts(self) -> Alerts:
        """All of them."""
        return Alerts(newest_first(self._alerts.values()), list(self._past))

    def update(
        self, conditions: Iterable[Condition], now_s: float, *, unknown: Collection[AlertKind] = ()
    ) -> None:
        """Take over what is wrong now.

        Args:
            conditions: all that is known to be wrong.
            now_s: the Unix time.
            unknown: kinds that could not be judged; their alerts stay as they are.
        """
        for condition in conditions:
            known = self._alerts.get(condition.id)
            self._seen_s[condition.id] = now_s
            self._alerts[condition.id] = Alert(
                id=condition.id,
                kind=condition.kind,
                severity=SEVERITIES[condition.kind],
                sentence=condition.sentence,
                since=utc_text(now_s) if known is None else known.since,
                client=condition.client,
                key_id=condition.key_id,
                route=condition.route,
                instance=condition.instance,
            )
        for alert in list(self._alerts.values()):
            gone_s = now_s - self._seen_s[alert.id]
            if alert.kind not in unknown and gone_s > 0 and gone_s >= _HOLD_S.get(alert.kind, 0.0):
                del self._alerts[alert.id], self._seen_s[alert.id]
                self._past.appendleft(replace(alert, ended_at=utc_text(now_s)))


def newest_first(alerts: Iterable[Alert]) -> list[Alert]:
    """Return alerts that hold, those that began last first."""
    return sorted(alerts, key=lambda alert: (-epoch_s(alert.since), alert.id))


def merged(books: Iterable[Alerts]) -> Alerts:
    """Return what several instances tell, each alert once, with its earliest beginning."""
    alerts: dict[str, Alert] = {}
    past: dict[tuple[str, str], Alert] = {}
    for book in books:
        for alert in book.alerts:
            alerts[alert.id] = _joined(alerts.get(alert.id, alert), alert)
        past |= {(alert.id, alert.ended_at or ""): alert for alert in book.past}
    ended = sorted(past.values(), key=lambda alert: alert.ended_at or "", reverse=True)
    return Alerts(newest_first(alerts.values()), ended[:MAX_PAST])


def _joined(first: Alert, second: Alert) -> Alert:
    instance = first.instance if first.instance == second.instance else ""
    return replace(first, since=min(first.since, second.since), instance=instance)
