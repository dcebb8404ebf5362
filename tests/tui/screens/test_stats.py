"""The Stats screen."""

from __future__ import annotations

import re
import time
from pathlib import Path

from msgspec.structs import replace

from relayd.admin.client import AdminClient
from relayd.admin.schema import CoolingModel, RouteState, RouteStatus, Status, utc_text
from tests.admin.harness import admin_api
from tests.tui.app_harness import app_with_past, running_app
from tests.wire import until


async def test_each_window_says_when_it_begins_and_what_it_counts(tmp_path: Path) -> None:
    """By the clock within a day, else by how long ago; 25 minutes of requests are all in the hour."""
    async with app_with_past(tmp_path, size=(140, 40)) as (harness, past):
        ended = sum(record.outcome is not None for record in past.records)
        for key, begins in (("3", "14:08"), ("right", "13:13"), ("right", "24 h ago"), ("right", "7 d ago")):
            await harness.press(key)
            await harness.shows(begins)
            if key == "right":
                await harness.shows(f"{ended} requests")
        await harness.press("left", "left")
        await harness.shows("[1 h]", "dur p95 tokens share", "33%")
        # A tiny terminal has no room for a single number.
        await harness.pilot.resize_terminal(20, 6)
        await harness.shows("[1 h]")
        await until(lambda: "requests" not in harness.text())


class _Routed(AdminClient):
    """A daemon with two provider keys."""

    routes: tuple[RouteStatus, ...]

    async def status(self) -> Status:
        """Return the status with these routes."""
        return replace(await super().status(), routes=list(self.routes))


async def test_a_route_that_cools_down_is_in_the_header_and_explained_on_stats(tmp_path: Path) -> None:
    """Which one, for how long and why; a route that works says where it leads."""
    end = utc_text(time.time() + 3600)
    async with admin_api(tmp_path) as api:
        daemon = _Routed(api.client.socket)
        daemon.routes = (
            RouteStatus(name="main", base_url="https://a.example/v1", state=RouteState.OK),
            RouteStatus(
                name="spare",
                base_url="https://b.example/v1",
                state=RouteState.COOLING,
                until=end,
                error="It answered 401.",
            ),
        )
        async with running_app(tmp_path, daemon) as harness:
            await harness.shows("ROUTE spare COOLS 59:")
            await harness.press("3")
            await harness.shows("route spare cooling tried again in 59:", "It answered 401.")
            await harness.shows("route main ok https://a.example/v1")
            daemon.routes = (replace(daemon.routes[0], models=[CoolingModel("gpt-4o", end)]),)
            await harness.shows("ROUTE main for gpt-4o COOLS 59:", "route main ok not for gpt-4o for 59:")
            daemon.routes = (
                replace(daemon.routes[0], state=RouteState.COOLING, until=utc_text(0), models=[]),
            )
            await harness.shows("ROUTE main IS TRIED NEXT", "route main cooling tried with the next request")
            daemon.routes = (replace(daemon.routes[0], state=RouteState.OK, until=None),)
            await until(lambda: "route main" not in harness.text())


async def test_at_100x30_no_unit_is_cut(tmp_path: Path) -> None:
    """The title of a plot gives up its greatest values before it is cut; each duration has its unit."""
    async with app_with_past(tmp_path, size=(100, 30)) as (harness, _):
        await harness.press("3")
        await harness.shows("filter by it")
        lines = harness.text().splitlines()
        title = next(line for line in lines if "First token" in line)
        assert re.search(r"p95 \S+ +p50 \S+$", title)
        rows = [line for line in lines if "gpt-" in line]
        assert len(rows) == 3
        assert [row for row in rows if not re.search(r"s +\S+ .*s$", row)] == []
