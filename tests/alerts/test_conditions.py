"""What is worth an alert, and when it is over."""

from __future__ import annotations

from typing import Any

import pytest

from relayd.alerts.alert import Alert, AlertBook, AlertKind, Alerts, Condition, merged
from relayd.alerts.conditions import (
    CoolingRoute,
    Facts,
    RecentRequests,
    Thresholds,
    conditions,
)
from relayd.state.budget import NANO, Use
from relayd.state.reader import EndedRequests, RefusedKey
from relayd.state.records import Client, KeyInfo, KeyState, utc_text

NOW_S = 1_800_000_000.0


def a_key(**changes: Any) -> KeyInfo:
    """A key in its grace: replaced an hour ago, in use, with a minute left."""
    given = {
        "id": "old",
        "client": "web",
        "state": KeyState.RETIRING,
        "fingerprint": "00000000",
        "created_at": utc_text(NOW_S - 9000),
        "expires_at": utc_text(NOW_S + 60),
        "replaced_by": "new",
        "last_used_at": utc_text(NOW_S - 30),
        "last_used_ip": "192.0.2.7",
    }
    return KeyInfo(**{**given, **changes})


NEW = a_key(id="new", state=KeyState.ACTIVE, created_at=utc_text(NOW_S - 3600), replaced_by=None)


def found(thresholds: Thresholds | None = None, **facts: Any) -> dict[str, Condition]:
    """What is wrong with these facts, by id."""
    met = conditions(Facts(now_s=NOW_S, **facts), thresholds or Thresholds())
    return {condition.id: condition for condition in met}


def test_nothing_is_wrong_with_a_quiet_relay() -> None:
    """No facts, no alerts."""
    assert found() == {}


def test_a_key_that_has_ended_and_is_sent_is_told_by_client_and_address() -> None:
    """But not one that works again, because an operator undid its rotation."""
    refused = [RefusedKey("old", "web", 3, "192.0.2.7"), RefusedKey("back", "web", 1, "192.0.2.8")]
    keys = [a_key(state=KeyState.REVOKED), a_key(id="back", state=KeyState.ACTIVE)]
    [alert] = found(refused=refused, keys=keys).values()
    assert (alert.id, alert.client, alert.key_id) == ("dead_key:old", "web", "old")
    assert "The revoked key old of web is still in use: refused 3 times" in alert.sentence
    assert "last from 192.0.2.7" in alert.sentence


@pytest.mark.parametrize(
    ("changes", "is_told"),
    [
        ({}, True),
        ({"expires_at": utc_text(NOW_S + 121)}, False),
        ({"expires_at": utc_text(NOW_S - 1)}, False),
        ({"last_used_at": utc_text(NOW_S - 601)}, False),
        ({"last_used_at": None}, False),
        ({"state": KeyState.ACTIVE}, False),
    ],
)
def test_a_key_in_use_is_told_two_minutes_before_its_end(changes: dict[str, Any], is_told: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Used in the last ten minutes, and since it was replaced."""
    alerts = found(keys=[a_key(**changes), NEW])
    assert list(alerts) == (["key_ends:old"] if is_told else [])


def test_a_key_that_was_used_only_before_its_rotation_is_not_told() -> None:
    """Its holder may have the new one by now."""
    fresh = a_key(id="new", state=KeyState.ACTIVE, created_at=utc_text(NOW_S - 10), replaced_by=None)
    assert found(keys=[a_key(), fresh]) == {}


@pytest.mark.parametrize(
    ("by_code", "is_told"),
    [
        ({"": 18, "upstream_failed": 2}, False),
        ({"": 17, "upstream_failed": 3}, True),
        ({"": 10, "upstream_failed": 9}, False),
        ({"": 100}, False),
    ],
)
def test_more_than_a_tenth_of_twenty_requests_is_an_error_spike(
    by_code: dict[str, int],
    is_told: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Over 10 %, of 20 or more."""
    assert list(found(by_code=by_code)) == (["errors"] if is_told else [])


def test_an_error_spike_names_the_most_frequent_cause() -> None:
    """With its share, and by thresholds of one's own."""
    by_code = {"": 5, "upstream_failed": 3, "busy": 2}
    alert = found(Thresholds(error_percent=49, error_min_requests=10), by_code=by_code)["errors"]
    assert alert.sentence == "5 of 10 requests failed in 5 minutes (50 %), 3 of them with upstream_failed."


def test_a_client_near_a_bound_of_a_day_or_a_month_is_told() -> None:
    """From 80 % on; a client that was removed is not."""
    web = Client(name="web", created_at="", tokens_per_day=1000, usd_per_month=20, tokens_per_month=10_000)
    gone = Client(name="gone", created_at="", removed_at=utc_text(NOW_S), tokens_per_day=10)
    today = {"web": Use(1, 800, 0), "gone": Use(1, 10, 0)}
    month = {"web": Use(9, 7999, 17 * NANO)}
    alerts = found(clients=[web, gone], uses=(today, month))
    assert list(alerts) == ["bound:web:tokens_per_day", "bound:web:usd_per_month"]
    assert "85 % of its US$ of this month: 17.00 of 20.00" in alerts["bound:web:usd_per_month"].sentence


def test_routes_log_disk_and_database_are_told() -> None:
    """With what is known of the cause; names of models are made harmless."""
    alerts = found(
        routes=[CoolingRoute("main", "401"), CoolingRoute("second", "429", ["a\x1bb", "c", "d", "e"])],
        lost=12,
        free_bytes=200 << 20,
        engine_error="It does not answer.",
    )
    assert list(alerts) == ["route:main", "route:second", "log", "disk", "engine"]
    assert alerts["route:second"].sentence == r"The route second cools down for a\x1bb, c, d and 1 more: 429"
    assert "12 records lost" in alerts["log"].sentence
    assert "200 MiB" in alerts["disk"].sentence
    assert found(Thresholds(disk_free_mib=0), free_bytes=0) == {}


def test_what_ended_is_counted_for_five_minutes_and_refused_keys_for_fifteen() -> None:
    """From one look to the next."""
    recent = RecentRequests()
    refused = RefusedKey("old", "web", 2, "192.0.2.7")
    recent.add(NOW_S, EndedRequests(1, {"": 4, "busy": 1}, [refused]))
    recent.add(NOW_S + 200, EndedRequests(2, {"busy": 2}, [RefusedKey("old", "web", 1, "192.0.2.9")]))
    assert recent.by_code(NOW_S + 200) == {"": 4, "busy": 3}
    assert recent.refused() == [RefusedKey("old", "web", 3, "192.0.2.9")]
    recent.add(NOW_S + 301, EndedRequests(2))
    assert recent.by_code(NOW_S + 301) == {"busy": 2}
    recent.add(NOW_S + 901, EndedRequests(2))
    assert recent.refused() == [RefusedKey("old", "web", 1, "192.0.2.9")]
    assert [recent.lost(NOW_S + at_s, lost) for at_s, lost in ((0, 5), (10, 8), (200, 8), (311, 8))] == [
        0,
        3,
        3,
        0,
    ]


ROUTE = Condition(kind=AlertKind.ROUTE, subject="main", sentence="cools", route="main")
DEAD = Condition(kind=AlertKind.DEAD_KEY, subject="k", sentence="sent")


def test_what_comes_and_goes_is_one_alert() -> None:
    """It ends when it was well for a minute; a kind without a hold ends at once."""
    book = AlertBook()
    book.update([ROUTE, DEAD], NOW_S)
    assert [alert.id for alert in book.alerts.alerts] == ["dead_key:k", "route:main"]
    book.update([], NOW_S + 5)
    assert [alert.id for alert in book.alerts.alerts] == ["route:main"]
    book.update([ROUTE], NOW_S + 50)
    book.update([], NOW_S + 100)
    [alert] = book.alerts.alerts
    assert (alert.since, alert.ended_at) == (utc_text(NOW_S), None)
    book.update([], NOW_S + 111)
    assert book.alerts.alerts == []
    assert [(alert.id, alert.ended_at) for alert in book.alerts.past] == [
        ("route:main", utc_text(NOW_S + 111)),
        ("dead_key:k", utc_text(NOW_S + 5)),
    ]


def test_what_cannot_be_judged_neither_begins_nor_ends() -> None:
    """While the database is down, nothing is known of the keys."""
    book = AlertBook()
    book.update([DEAD], NOW_S)
    book.update([], NOW_S + 500, unknown={AlertKind.DEAD_KEY})
    assert len(book.alerts.alerts) == 1


def test_several_instances_tell_each_alert_once() -> None:
    """From its earliest beginning; what one alone sees has its name."""

    def told(instance: str, at_s: float, *subjects: str) -> Alerts:
        book = AlertBook()
        conditions = [
            Condition(kind=AlertKind.ROUTE, subject=subject, sentence="cools", instance=instance)
            for subject in subjects
        ]
        book.update(conditions, at_s)
        return book.alerts

    both = merged([told("a-1", NOW_S + 5, "main"), told("a-2", NOW_S, "main", "second")])
    shown: list[Alert] = both.alerts
    assert [(alert.id, alert.instance, alert.since) for alert in shown] == [
        ("route:main", "", utc_text(NOW_S)),
        ("route:second", "a-2", utc_text(NOW_S)),
    ]
