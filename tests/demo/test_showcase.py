"""The daemon behind `relayd-tui --demo`: what an operator sees of it, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from relayd.admin.client import AdminClient
from relayd.admin.schema import KeyState, Outcome, Phase, Progress, RequestRecord, StreamProgress, epoch_s
from tests.support.processes import state
from tests.wire import PATIENCE_S, until
from tui.demo import demo_daemon


@pytest.fixture(scope="module")
def showcase() -> Iterator[Path]:
    """The socket of a demo that all look at."""
    with demo_daemon() as socket:
        yield socket


async def _connected(socket: Path) -> AdminClient:
    await until(socket.exists)
    return AdminClient(socket)


async def _all_requests(admin: AdminClient) -> list[RequestRecord]:
    """Return every request, newest first."""
    page = await admin.requests(limit=1000)
    found = page.records
    while page.next_before is not None:
        page = await admin.requests(limit=1000, before=page.next_before)
        found += page.records
    return found


async def _requests(admin: AdminClient, where: str) -> list[RequestRecord]:
    """Wait until a request matches; return all that do, newest first."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := (await admin.requests(where=where)).records):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)
    return found


async def _streaming(admin: AdminClient) -> list[StreamProgress]:
    """Wait until several clients are being answered at once."""
    async with asyncio.timeout(PATIENCE_S), aclosing(admin.events()) as events:
        async for event in events:
            if isinstance(event, Progress):
                found = [stream for stream in event.streams if stream.phase is Phase.STREAMING]
                if len(found) > 3:
                    return found
    raise AssertionError("the events ended")


async def test_it_has_an_hour_of_requests_behind_it(showcase: Path) -> None:
    """Several clients, addresses and models; successes, and failures of several kinds."""
    admin = await _connected(showcase)
    past = await _all_requests(admin)
    assert {record.client for record in past} >= {"web", "laptop", "ci", "support-bot", "phone"}
    assert len({record.ip for record in past}) >= 8
    assert {record.error.code for record in past if record.error} >= {
        *("upstream_failed", "upstream_limited", "unauthorized", "bad_request"),
    }
    assert epoch_s(past[0].started_at) - epoch_s(past[-1].started_at) > 3000


async def test_streams_are_open_and_clients_go_on_asking(showcase: Path) -> None:
    """Clients from several addresses stream at once, some finish, and one fails, all over the real /chat."""
    admin = await _connected(showcase)
    streaming = await _streaming(admin)
    done = await _requests(admin, "path=/chat finish_reason=stop upstream_request_id~req_")
    failed = await _requests(admin, "status=502 processing")
    assert (await admin.status()).demo
    assert len({stream.ip for stream in streaming}) > 1
    assert all(record.outcome is Outcome.COMPLETED for record in done)
    assert failed[0].error is not None
    assert failed[0].error.code == "upstream_failed"


async def test_a_rotation_is_under_way_and_people_move_to_the_new_key(showcase: Path) -> None:
    """An old key is in its grace and still used, its successor as well; so after one of the operator's."""
    admin = await _connected(showcase)
    ring = await admin.keys()
    rows = (await admin.audit()).entries
    (old,) = [key for key in ring.keys if key.state is KeyState.RETIRING]
    (new,) = [key for key in ring.keys if key.id == old.replaced_by]
    assert new.state is KeyState.ACTIVE
    assert old.last_used_at is not None
    assert new.last_used_at is not None
    assert old.last_used_at > new.created_at
    assert {KeyState.EXPIRED, KeyState.REVOKED} <= {key.state for key in ring.keys}
    assert {row.action for row in rows} >= {"add", "rotate", "revoke"}
    assert any(row.action == "rotate" and old.id in row.key_ids for row in rows)
    change = await admin.rotate_key(new.id, grace_s=300, generation=ring.generation, idempotency_key="one")
    moved = await _requests(admin, f"key_id={change.key.id}")
    assert moved[0].client == "web"
    assert moved[0].outcome is not Outcome.DENIED


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_it_ends_with_the_app_and_leaves_nothing(how: signal.Signals) -> None:
    """However the app ends: the directory with its state is gone, and so is the daemon."""
    code = (
        "import time; from tui.demo import demo_daemon\n"
        "with demo_daemon() as socket: print(socket, flush=True); time.sleep(600)"
    )
    app = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert app.stdout is not None
    socket = Path((await app.stdout.readline()).decode().strip())
    status = await (await _connected(socket)).status()
    app.send_signal(how)
    await app.wait()
    await until(lambda: not socket.parent.exists())
    await until(lambda: state(status.pid) in "ZX")


async def test_its_clients_have_bounds_and_a_month_of_use(showcase: Path) -> None:
    """One is near a bound, money is spent against another; requests come over /v1 as well as /chat."""
    admin = await _connected(showcase)
    await _requests(admin, "path=/v1/responses outcome=completed upstream_request_id~req_")
    await _requests(admin, "path=/v1/chat/completions outcome=completed upstream_request_id~req_")
    clients = {client.name: client for client in (await admin.clients()).clients}
    usage = await admin.usage("day", since="2000-01-01", client="web")
    assert clients["web"].usd_per_month is not None
    assert clients["ci"].tokens_per_day is not None
    assert clients["ci"].today.tokens > 0
    assert len(usage.rows) >= 29
    assert usage.total.cost_usd > 1
