"""The alerts of one run of the app."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

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


def test_an_alert_of_an_instance_that_does_not_answer_has_not_ended() -> None:
    """Else the bell would ring again each time that it answers late."""
    alerts = AlertList()
    alerts.update([], NOON_S)
    alerts.update([an_alert()], NOON_S + 1)
    assert alerts.take_news()
    alerts.update([], NOON_S + 2, are_all_known=False)
    assert [known.alert.ended_at for known in alerts.all] == [None]
    alerts.update([an_alert()], NOON_S + 3)
    assert not alerts.take_news()


def test_what_the_daemon_remembers_is_added_once() -> None:
    """As seen, by its end: from before this run, or from while there was no contact."""
    alerts = AlertList()
    before, missed = an_alert(ended_at=utc_text(NOON_S + 9)), an_alert(id="errors", kind=AlertKind.ERRORS)
    alerts.add_past([before])
    alerts.add_past([replace(missed, ended_at=utc_text(NOON_S + 30)), before])
    assert [(known.alert.id, known.is_seen) for known in alerts.all] == [
        ("errors", True),
        ("route:main", True),
    ]
