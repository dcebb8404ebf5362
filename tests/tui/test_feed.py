"""How the terminal app follows a daemon, without its screens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relayd.admin.client import AdminClient
from tests.wire import PATIENCE_S, until
from tui.feed import Feed
from tui.model.app_state import AppState, Connection


@pytest.mark.parametrize("turns", range(4))
async def test_it_ends_though_it_is_told_to_connect_at_the_same_moment(tmp_path: Path, turns: int) -> None:
    """At whatever turn of the loop it is cancelled after that; else the app would not quit."""
    state = AppState(100)
    feed = Feed(state, AdminClient(tmp_path / "none"), changed=lambda: None, backlog_records=1)
    following = asyncio.create_task(feed.run(), name="feed")
    await until(lambda: state.connection is Connection.DOWN)
    feed.retry_now()
    for _ in range(turns):
        await asyncio.sleep(0)
    following.cancel()
    await asyncio.wait({following}, timeout=PATIENCE_S)
    assert following.cancelled()
    await feed.close()
