"""The alerts of one run of the app."""

from __future__ import annotations

from typing import Any

from relayd.admin.schema import Alert, AlertKind, Severity, utc_text
from tests.tui.samples import NOON_S
from tui.model.alerts import AlertList


def an_alert(**changes: Any) -> Alert:
    """A route that cools down since noon."""
    given = {
        "id": "route:main",
        "kind": AlertKind.ROUTE,
        "severity": Severity.WARNING,
        "sentence": "The route main cools down: 401",
        "since": utc_text(NOON_S),
        "route": "main",
    }
    return Alert(**{**given, **changes})


def test_an_alert_stays_until_it_is_answered_and_rings_once() -> None:
    """Also if it is over by then; what held when the app began does not ring."""
    alerts = AlertList()
    alerts.update([an_alert()], NOON_S)
    assert not alerts.take_news()
    assert [known.alert.id for known in alerts.unanswered] == ["route:main"]
    errors = an_alert(id="errors", kind=AlertKind.ERRORS, since=utc_text(NOON_S + 5))
    alerts.update([errors, an_alert(sentence="still")], NOON_S + 5)
    assert [known.alert.sentence for known in alerts.live] == [errors.sentence, "still"]
    assert (alerts.take_news(), alerts.take_news()) == (True, False)
    alerts.update([an_alert()], NOON_S + 9)
    assert [(known.alert.id, known.alert.ended_at) for known in alerts.unanswered] == [
        ("route:main", None),
        ("errors", utc_text(NOON_S + 9)),
    ]
    alerts.answer()
    assert alerts.unanswered == []
    assert len(alerts.all) == 2


def test_the_loss_of_contact_is_an_alert_of_the_app_itself() -> None:
    """The daemon, which does not know of it, does not end it; its return does."""
    alerts = AlertList()
    alerts.update([], NOON_S)
    alerts.lose_contact("It says nothing.", NOON_S)
    alerts.lose_contact("It says nothing still.", NOON_S + 1)
    alerts.update([], NOON_S + 2)
    assert alerts.take_news()
    [known] = alerts.live
    assert (known.alert.kind, known.alert.since) == (AlertKind.CONTACT, utc_text(NOON_S))
    alerts.regain_contact(NOON_S + 3)
    assert (alerts.live, len(alerts.unanswered)) == ([], 1)


def test_what_the_daemon_remembers_is_added_once() -> None:
    """As seen: it was over before this run."""
    alerts = AlertList()
    past = [an_alert(ended_at=utc_text(NOON_S + 9))]
    alerts.add_past(past)
    alerts.add_past(past)
    assert [known.is_seen for known in alerts.all] == [True]
