"""Alerts, from the log to the operator's command."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from relayd.admin.client import AdminClient
from relayd.admin.context import AlertOptions
from relayd.admin.schema import Alert, AlertKind, Outcome, Phase, RecordedError
from relayd.alerts.conditions import Thresholds
from relayd.files import DATABASE
from tests.admin.harness import AdminHarness, admin_api, admin_apis, be_patient, log_requests
from tests.wire import eventually, until

DENIED = {
    "phase": Phase.DONE,
    "outcome": Outcome.DENIED,
    "status": 401,
    "error": RecordedError("unauthorized", "The key has ended."),
    "client": "web",
}
FAILED = {
    "phase": Phase.DONE,
    "outcome": Outcome.UPSTREAM_ERROR,
    "status": 502,
    "error": RecordedError("upstream_failed", "The provider answered 503."),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again soon, so that no test waits long for the next look; however busy the machine, all answer."""
    monkeypatch.setattr("relayd.admin.alert_watch.LOOK_EVERY_S", 0.3)
    be_patient(monkeypatch)


def told(path: Path) -> list[tuple[str, str]]:
    """The event and the alert of each document that the command was run with."""
    text, found = path.read_text() if path.exists() else "", []
    while text := text.strip():
        document, end = json.JSONDecoder().raw_decode(text)
        found.append((document["event"], document["alert"]["id"]))
        text = text[end:]
    return found


def appends_to(path: Path) -> tuple[str, ...]:
    """A command that keeps what it reads."""
    return ("/bin/sh", "-c", 'cat >> "$1"', "sh", str(path))


async def alerts_of(client: AdminClient, kind: AlertKind) -> list[Alert]:
    """The alerts of this kind that hold."""
    return [alert for alert in (await client.alerts()).alerts if alert.kind is kind]


def knows(api: AdminHarness, alert_id: str) -> bool:
    """Return whether this instance sees the alert."""
    return any(alert.id == alert_id for alert in api.alerts.alerts.alerts)


async def test_a_dead_key_and_an_error_spike_are_told_and_their_end_too(tmp_path: Path) -> None:
    """In `GET /alerts`, in the status, and to the command; a spike is over after five minutes and one."""
    clock = [1_800_000_000.0]
    path = tmp_path / "told"
    options = [AlertOptions(appends_to(path), Thresholds(error_min_requests=4, disk_free_mib=0))]
    async with admin_api(tmp_path, clock=lambda: clock[0], alert_options=lambda: options[0]) as api:
        log_requests(api.state, 3, "d", key_id="dead", ip="192.0.2.9", **DENIED)
        log_requests(api.state, 9, "s", **DENIED)
        log_requests(api.state, 4, "f", **FAILED)
        await eventually(lambda: alerts_of(api.client, AlertKind.ERRORS))
        await eventually(lambda: alerts_of(api.client, AlertKind.DEAD_KEY))
        status = await api.client.status()
        assert {alert.id for alert in status.alerts} == {"dead_key:dead", "errors"}
        [dead] = await alerts_of(api.client, AlertKind.DEAD_KEY)
        assert (dead.client, dead.key_id) == ("web", "dead")
        assert "refused 3 times" in dead.sentence
        assert "last from 192.0.2.9" in dead.sentence
        await until(lambda: len(told(path)) > 1)
        clock[0] += 301
        await until(lambda: ("end", "errors") in told(path))
        assert sorted(told(path)) == [("begin", "dead_key:dead"), ("begin", "errors"), ("end", "errors")]
        past = (await api.client.alerts()).past
        assert [(alert.id, alert.ended_at is not None) for alert in past] == [("errors", True)]


async def test_of_several_instances_one_runs_the_command(tmp_path: Path) -> None:
    """All of them know the alert, from the one log."""
    path = tmp_path / "told"
    async with admin_apis(
        tmp_path, 2, lambda: AlertOptions(appends_to(path), Thresholds(disk_free_mib=0))
    ) as apis:
        log_requests(apis[0].state, 1, "d", key_id="dead", **DENIED)
        await until(lambda: all(api.alerts.alerts.alerts for api in apis))
        await until(lambda: bool(told(path)))
        for api in apis:
            assert [alert.id for alert in (await api.client.status()).alerts] == ["dead_key:dead"]
    assert told(path) == [("begin", "dead_key:dead")]


async def test_without_a_command_no_instance_asks_the_others(tmp_path: Path) -> None:
    """Each question and each answer is a row that the database has to write."""
    async with admin_apis(tmp_path, 2) as apis:
        for key_id in ("first", "second"):
            log_requests(apis[0].state, 1, key_id, key_id=key_id, **DENIED)
            for api in apis:
                await until(partial(knows, api, f"dead_key:{key_id}"))
        with closing(sqlite3.connect(tmp_path / "state" / DATABASE)) as database:
            assert database.execute("SELECT count(*) FROM commands").fetchone() == (0,)
