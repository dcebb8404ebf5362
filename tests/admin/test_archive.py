"""Behaviour of `relayd.admin.archive`: the log and the ring of a daemon that is not there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from relayd.admin.archive import Archive
from relayd.admin.client import AdminClientError, Refused
from relayd.admin.schema import KeyState, utc_text
from tests.admin.harness import admin_api


async def test_it_tells_what_the_daemon_wrote_down(tmp_path: Path) -> None:
    """Records by filter and page, one record, the audit and the ring, as the daemon itself would."""
    async with admin_api(tmp_path) as api:
        now = utc_text(time.time())
        api.log(3, client="web", key_id="key-1", started_at=now, connect_ms=5, prompt_tokens=10)
        api.log(1, prefix="x", client="cli")
        await api.logged(9)
        whole = await api.client.requests()
        usage = await api.client.usage("client", key="key-1")
    assert usage.total.requests == 3
    archive = Archive(tmp_path / "state" / "relayd.db")
    assert await archive.requests() == whole
    page = await archive.requests(where="client=web", limit=2)
    assert [record.id for record in page.records] == ["r000002", "r000001"]
    older = await archive.requests(where="client=web", before=page.next_before)
    assert [record.id for record in older.records] == ["r000000"]
    assert (await archive.request("x000000")).client == "cli"
    assert [entry.action for entry in (await archive.audit()).entries] == ["fill"]
    same = await archive.usage("client", key="key-1", since=usage.since, until=usage.until)
    assert (same.rows, same.total) == (usage.rows, usage.total)
    assert (await archive.usage("model")).since[-2:] == "01"
    ring = await archive.keys()
    assert (ring.generation, [key.state for key in ring.keys]) == (1, [KeyState.ACTIVE])
    await archive.close()


async def test_what_can_not_be_read_is_said_in_words(tmp_path: Path) -> None:
    """No file, no such record, no such field: errors of the link, as from the daemon."""
    archive = Archive(tmp_path / "none" / "relayd.db")
    with pytest.raises(AdminClientError, match=str(tmp_path / "none")):
        await archive.requests()
    with pytest.raises(Refused, match="did you mean 'status'"):
        await archive.requests(where="sttus=1")
    await archive.close()
    async with admin_api(tmp_path):
        pass
    archive = Archive(tmp_path / "state" / "relayd.db")
    with pytest.raises(Refused, match="nope"):
        await archive.request("nope")
    await archive.close()
