"""The instances of a relay: who they are, what each does, and what reaches all of them."""

from __future__ import annotations

import os
from pathlib import Path

from relayd import __version__
from relayd.admin.schema import (
    AcceptState,
    EngineKind,
    EngineStatus,
    Instance,
    InstanceCounts,
    InstanceRing,
    Instances,
)
from relayd.state.records import utc_text
from tests.admin.harness import NOON_S, admin_api, raw


async def test_a_daemon_alone_is_its_only_instance(tmp_path: Path) -> None:
    """With the ring of its own state, and no worker's number."""
    async with admin_api(tmp_path) as api:
        found = await api.client.instances()
        status = await api.client.status()
        document = (await raw(api.socket, "GET", "/instances")).json
    alone = Instance(
        name="a",
        boot_id="boot",
        address="http://a",
        pid=os.getpid(),
        version=__version__,
        started_at=utc_text(NOON_S),
        generation=1,
        intake=AcceptState.OPEN,
        streams=0,
        is_self=True,
    )
    assert found == Instances(1, [alone])
    assert document["instances"][0]["self"] is True
    assert (status.instance, status.worker, status.instances) == ("a", None, InstanceCounts(1, 1))
    assert status.engine == EngineStatus(kind=EngineKind.SQLITE, where=str(tmp_path / "state" / "relayd.db"))


async def test_a_change_says_which_instances_have_it(tmp_path: Path) -> None:
    """Alone, the one that answers has it at once; so for keys and for clients."""
    async with admin_api(tmp_path) as api:
        key = await api.client.add_key("web", generation=1, idempotency_key="one")
        client = await api.client.set_client("web", {"note": "n"}, generation=2, idempotency_key="two")
    assert key.instances == (InstanceRing(name="a", boot_id="boot", generation=2, has_it=True),)
    assert client.instances == (InstanceRing(name="a", boot_id="boot", generation=3, has_it=True),)
