"""Alerts in the app: a line until it is answered, a list, and the way to the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.admin.context import AlertOptions
from relayd.alerts.conditions import Thresholds
from relayd.state.keyring import Caller
from relayd.state.records import Peer
from tests.tui.app_harness import app_with_past
from tests.wire import until
from tui.screens.alerts import AlertsScreen
from tui.settings import SettingsFile


async def test_an_alert_is_a_line_until_it_is_answered_and_leads_to_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bell rings once; `A` answers it and lists it; Enter goes to what failed; `b` is remembered."""
    monkeypatch.setattr("relayd.admin.alert_watch.LOOK_EVERY_S", 0.3)
    rung: list[bool] = []
    async with app_with_past(tmp_path) as (harness, past):
        monkeypatch.setattr(harness.app, "bell", lambda: rung.append(True))
        assert "ALERT" not in harness.text()
        past.alert_options = AlertOptions(
            thresholds=Thresholds(error_percent=1, bound_percent=10_000, disk_free_mib=0)
        )
        past.more(40)
        await until(lambda: harness.state.alerts.live)
        await harness.shows("1 alert", "requests failed in 5 minutes", "A shows it")
        assert rung == [True]
        await harness.press("A")
        await harness.dialog(AlertsScreen)
        await harness.shows("error spike", "of them with", "b silences the bell")
        await harness.press("b")
        await harness.shows("The bell is off")
        assert not SettingsFile(tmp_path / "tui.json").settings.bell
        await harness.press("enter")
        await harness.closed()
        await harness.shows("status>=400 outcome!=denied", "upstream_")
        assert "A shows it" not in harness.text()
        assert "1 alert" in harness.text()


async def test_old_keys_that_do_not_fit_below_the_tabs_are_counted(tmp_path: Path) -> None:
    """Long names break each line in two; the last line says how many are left out.

    They leave room for the name of the client that is open.
    """
    caller = Caller(Peer(1000, 4242, "ada"))
    async with app_with_past(tmp_path) as (harness, past):
        ring = past.api.state.ring
        key = (await ring.add("the-server-of-the-second-office", caller=caller)).key
        for _ in range(7):
            key = (await ring.rotate(key.id, grace_s=600, caller=caller)).key
        await until(lambda: len(harness.state.retiring()) == 8)
        await harness.redraw()
        await harness.shows("The old key", "5 more old keys; K shows all.")
        await harness.press("4", "slash", *"office", "enter", "enter")
        await harness.redraw()
        await harness.shows("8 keys so far")


async def test_no_toast_covers_the_newest_rows_or_the_header(tmp_path: Path) -> None:
    """At the top if the newest rows are at the bottom, and the other way round."""
    async with app_with_past(tmp_path) as (harness, past):
        harness.app.notify("A sentence.")
        await harness.shows("A sentence.")
        lines = harness.text().splitlines()
        place = next(number for number, line in enumerate(lines) if "A sentence." in line)
        assert place > next(number for number, line in enumerate(lines) if "client" in line)
        assert past.records[-1].client is not None
        assert place < len(lines) // 2
        await harness.press("5")
        lines = harness.text().splitlines()
        place = next(number for number, line in enumerate(lines) if "A sentence." in line)
        assert len(lines) // 2 < place < len(lines) - 1
