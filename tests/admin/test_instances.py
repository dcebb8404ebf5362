"""The instances of a relay: who they are, what each does, and what reaches all of them."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import aclosing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relayd import __version__
from relayd.admin.client import AdminClient, Refused
from relayd.admin.metrics import merged
from relayd.admin.schema import (
    AcceptState,
    EngineKind,
    EngineStatus,
    InstanceCounts,
    InstanceInfo,
    InstanceList,
    Phase,
    Progress,
    Reloaded,
    Started,
    StreamCounts,
)
from relayd.state.directory import StateDirectory
from tests.admin.harness import (
    admin_api,
    admin_apis,
    be_patient,
    open_chat,
    raw,
    whole_daemons,
    worker_of,
)
from tests.support.postgres import Postgres
from tests.wire import DONE, PATIENCE_S, ask, body, eventually, until

_HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, an instance that lives answers in time."""
    be_patient(monkeypatch)


async def test_a_daemon_alone_is_its_only_instance(tmp_path: Path) -> None:
    """With the ring of its own state, and no worker's number."""
    async with admin_api(tmp_path) as api:
        found = await api.client.instances()
        status = await api.client.status()
        document = (await raw(api.socket, "GET", "/instances")).json
    alone = InstanceInfo(
        name=_HOST,
        boot_id="boot",
        worker=None,
        address="http://a",
        pid=os.getpid(),
        version=__version__,
        started_at=found.instances[0].started_at,
        heartbeat_age_s=0.0,
        generation=1,
        intake=AcceptState.OPEN,
        streams=0,
        is_self=True,
    )
    assert found == InstanceList(1, [alone])
    assert document["instances"][0]["self"] is True
    assert (status.instance, status.worker, status.instances) == (_HOST, None, InstanceCounts(1, 1))
    assert status.engine == EngineStatus(kind=EngineKind.SQLITE, where=str(tmp_path / "state" / "relayd.db"))


async def test_every_instance_lists_all_and_a_change_says_which_have_it(tmp_path: Path) -> None:
    """By name, and each says which one it is; so for keys and for clients."""
    async with admin_apis(tmp_path, 3) as apis:
        for number, api in enumerate(apis, 1):
            found = await api.client.instances()
            assert [one.name for one in found.instances] == [f"{_HOST}-{n}" for n in (1, 2, 3)]
            assert [one.is_self for one in found.instances] == [n == number for n in (1, 2, 3)]
            status = await api.client.status()
            assert (status.instance, status.worker) == (f"{_HOST}-{number}", number)
            assert status.instances.live == 3
            assert (status.max_streams, status.silent) == (300, ())
        key = await apis[1].client.add_key("web", generation=1, idempotency_key="one")
        assert [one.has_it for one in key.instances] == [True] * 3
        assert [api.state.ring.generation for api in apis] == [2, 2, 2]
        client = await apis[2].client.set_client("web", {"note": "n"}, generation=2, idempotency_key="two")
        assert [(one.name, one.generation, one.has_it) for one in client.instances] == [
            (f"{_HOST}-{number}", 3, True) for number in (1, 2, 3)
        ]


async def test_pause_and_resume_reach_all_and_are_in_the_audit_once(tmp_path: Path) -> None:
    """When the answer comes, no instance takes new work; the same for the way back."""
    async with admin_apis(tmp_path, 3) as apis:
        assert (await apis[0].client.pause()).silent == ()
        assert [api.accepting.state for api in apis] == [AcceptState.PAUSED] * 3
        assert (await apis[2].client.resume()).silent == ()
        assert [api.accepting.state for api in apis] == [AcceptState.OPEN] * 3
        entries = (await apis[1].client.audit(limit=2)).entries
    assert [(entry.action, entry.boot_id) for entry in entries] == [("resume", "boot-3"), ("pause", "boot-1")]


async def test_an_instance_that_joins_a_paused_relay_is_paused(tmp_path: Path) -> None:
    """As a worker that takes the place of one that died; one that joins a live relay is live."""
    with StateDirectory(tmp_path / "state") as directory:
        async with worker_of(directory, 1) as first:
            async with worker_of(directory, 2) as second:
                assert second.server.accepting.refusal is None
                await until(lambda: len(first.state.instances.live()) == 2)
                await AdminClient(first.settings.admin.socket).pause()
                assert (await second.ask()).status == 503
                # As it stands in the database.
                await until(lambda: second.state.instances.others()[0].intake == AcceptState.PAUSED)
            async with worker_of(directory, 3) as third:
                assert third.server.accepting.refusal is not None


async def test_a_drain_stops_all_or_the_one_that_is_named(tmp_path: Path) -> None:
    """By its name or its boot id; a name that none has is refused with those that are."""
    async with admin_apis(tmp_path, 3) as apis:
        with pytest.raises(Refused, match=f"{_HOST}-2") as refusal:
            await apis[0].client.drain("elsewhere")
        assert refusal.value.status == 404
        assert [api.stopped for api in apis] == [[], [], []]
        await apis[0].client.drain(f"{_HOST}-2")
        assert [api.stopped for api in apis] == [[], [True], []]
        await apis[2].client.drain("boot-2")
        assert [api.stopped for api in apis] == [[], [True], []]
        await apis[0].client.drain()
        assert [api.stopped for api in apis] == [[True], [True], [True]]
        entries = (await apis[1].client.audit(limit=3)).entries
        assert [entry.detail for entry in entries] == [None, f"{_HOST}-2", f"{_HOST}-2"]


async def test_a_drain_that_stops_the_worker_that_passes_it_on_is_answered(tmp_path: Path) -> None:
    """Workers of a machine stop together: the one that is asked is told to stop in the middle of it."""
    closing: list[asyncio.Task[None]] = []
    async with admin_apis(tmp_path, 2) as [one, two]:

        async def drain(_asking: object) -> AcceptState:
            closing.append(asyncio.create_task(one.close(), name="close"))
            return AcceptState.DRAINING

        two.state.commands.handle("drain", drain)
        assert (await one.client.drain(f"{_HOST}-2")).silent == ()
        await asyncio.gather(*closing)


async def _progress(client: AdminClient, request_id: str) -> Progress:
    """Return the next progress event, once the log has the start of a request."""
    progress, is_logged = None, False
    async with asyncio.timeout(PATIENCE_S), aclosing(client.events(after=0)) as events:
        async for event in events:
            if isinstance(event, Progress):
                progress = event
            is_logged |= isinstance(event, Started) and event.record.id == request_id
            if progress is not None and is_logged:
                return progress
    raise AssertionError("the events ended")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str | None:
    """The shared database; None if it is a SQLite file."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_url")


async def test_a_stream_is_listed_and_cancelled_from_any_instance(tmp_path: Path, url: str | None) -> None:
    """With the instance that has it; its client is told as by its own instance."""
    async with whole_daemons(tmp_path, 2, url) as [(one, _), (_, other)]:
        wire, reply = await open_chat(one, "demo:deltas=10000,interval_ms=50")
        request_id = str(reply.header("X-Request-Id"))
        progress = await _progress(other, request_id)
        name = one.state.instances.identity.name
        assert [(stream.id, stream.instance) for stream in progress.streams] == [(request_id, name)]
        assert (await other.status()).streams == StreamCounts(streaming=1)
        record = await other.request(request_id)
        assert (record.phase, record.deltas > 0, record.outcome) == (Phase.STREAMING, True, None)
        assert (await other.clients()).clients[0].open_streams == 1
        await other.cancel(request_id)
        await wire.rest(reply)
        wire.finish()
        assert reply.error == "cancelled: The operator of this relay cancelled the request."
        assert reply.lines[-1] == DONE
        with pytest.raises(Refused) as refusal:
            await other.cancel(request_id)
        assert refusal.value.status == 404


async def test_a_cut_ends_the_streams_of_the_key_everywhere(tmp_path: Path) -> None:
    """The answer counts those of all instances; a reload reaches all as well."""
    async with whole_daemons(tmp_path, 2) as relays:
        opened = [await open_chat(relay, "demo:deltas=10000,interval_ms=50") for relay, _ in relays]
        client = relays[0][1]
        ring = await client.keys()
        change = await client.revoke_key(
            ring.keys[0].id, cut=True, generation=ring.generation, idempotency_key="cut"
        )
        for wire, reply in opened:
            await wire.rest(reply)
            wire.finish()
            assert reply.error == "key_revoked: The key of this request was revoked."
        assert change.cut == 2
        assert [one.has_it for one in change.instances] == [True, True]
        assert await client.reload() == Reloaded()


async def _until(client: AdminClient, *, is_ok: bool) -> None:
    """Wait until the status says so of the database."""

    async def says_so() -> bool:
        return (await client.status()).engine.ok is is_ok

    await eventually(says_so)


async def test_without_its_database_an_instance_shows_and_commands_itself(
    tmp_path: Path, postgres: Postgres, postgres_url: str
) -> None:
    """Its streams go on and can be cancelled, a change fails, the status says why; then all is as before."""
    async with whole_daemons(tmp_path, 2, postgres_url) as [(one, client), _]:
        wire, reply = await open_chat(one, "demo:deltas=100000,interval_ms=50")
        postgres.kill()
        await _until(client, is_ok=False)
        status = await client.status()
        assert status.streams == StreamCounts(streaming=1)
        assert (status.engine.kind, status.disk) == (EngineKind.POSTGRESQL, None)
        assert status.engine.error is not None
        assert status.engine.latency_ms is None
        with pytest.raises(Refused) as refusal:
            await client.add_key("web", generation=1, idempotency_key="one")
        assert refusal.value.status == 503
        assert (await client.pause()).intake is AcceptState.PAUSED
        await client.cancel(str(reply.header("X-Request-Id")))
        await wire.rest(reply)
        wire.finish()
        assert reply.lines[-1] == DONE
        postgres.start()
        await _until(client, is_ok=True)
        await until(lambda: len(one.state.instances.live()) == 2)
        change = await client.add_key("web", generation=1, idempotency_key="two")
        assert [instance.has_it for instance in change.instances] == [True, True]


async def test_what_can_reach_nobody_says_so_however_long_the_database_is_down(
    tmp_path: Path, postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others may live: a pause is not done there, and no stream is said to have ended."""
    async with whole_daemons(tmp_path, 2, postgres_url) as [(_, client), (other, its_client)]:
        wire, reply = await open_chat(other, "demo:deltas=100000,interval_ms=50")
        labels = _instance_labels(await client.metrics())
        assert len(labels) == 2
        postgres.kill()
        await _until(client, is_ok=False)
        # As if the last heartbeats were read long ago.
        monkeypatch.setattr("relayd.state.instances.DEAD_AFTER_S", 0.0)
        for act in (client.pause, client.resume):
            assert (await act()).silent == (other.state.instances.identity.name,)
        with pytest.raises(Refused, match="No answer came from") as refusal:
            await client.cancel(str(reply.header("X-Request-Id")))
        assert refusal.value.status == 503
        # A series that is collected goes on under its name.
        [label] = _instance_labels(await client.metrics())
        assert label in labels
        await its_client.cancel(str(reply.header("X-Request-Id")))
        await wire.rest(reply)
        wire.finish()


def _instance_labels(text: str) -> set[str]:
    return {
        sample.labels["instance"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_of_one_host_name_are_told_apart_by_address(tmp_path: Path, postgres_url: str) -> None:
    """A restart makes no new series, as a boot id would."""
    async with whole_daemons(tmp_path, 2, postgres_url) as relays:
        instances = relays[0][0].state.instances
        # It is known when the other has announced it.
        await until(lambda: all(other.address for other in instances.others()))
        labels = _instance_labels(await relays[0][1].metrics())
    assert labels == {f"{_HOST} (127.0.0.1:{relay.port})" for relay, _ in relays}


async def test_a_client_has_its_streams_once(tmp_path: Path) -> None:
    """A request beyond them is refused, whichever instances have them; it passes once one has ended."""
    async with whole_daemons(tmp_path, 2) as [(one, client), (other, _)]:
        made = await client.add_client("web", {"max_streams": 1}, generation=1, idempotency_key="add")
        assert made.secret is not None
        await until(lambda: other.state.ring.client("web") is not None)
        wire, reply = await open_chat(one, "demo:deltas=10000,interval_ms=50", made.secret)
        refused = await ask(other.port, made.secret, body("demo"))
        assert (refused.status, refused.error) == (
            429,
            "busy: The client 'web' has reached its limit of 1 requests at once; wait for one to end.",
        )
        await client.cancel(str(reply.header("X-Request-Id")))
        await wire.rest(reply)
        wire.finish()
        async with asyncio.timeout(PATIENCE_S):
            while (await ask(other.port, made.secret, body("demo"))).status != 200:
                pass


async def test_metrics_are_those_of_all_instances(tmp_path: Path) -> None:
    """Each sample has its instance, and a counter counts what happened there alone."""
    async with whole_daemons(tmp_path, 2) as [(one, client), (other, _)]:
        assert (await one.ask("demo:deltas=3,interval_ms=1")).error is None
        assert (await other.ask("demo:deltas=5,interval_ms=1")).error is None
        await client.add_key("web", generation=1, idempotency_key="one")
        await until(lambda: len(one.records) + len(other.records) == 2)
        text = await client.metrics()
    found = {
        (
            sample.name,
            sample.labels["instance"],
            sample.labels.get("outcome") or sample.labels.get("action"),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    first, second = f"{_HOST}-1", f"{_HOST}-2"
    assert found["relayd_deltas_total", first, None] == 3
    assert found["relayd_deltas_total", second, None] == 5
    assert found["relayd_requests_total", second, "completed"] == 1
    assert found["relayd_key_changes_total", first, "add"] == 1
    assert found["relayd_key_changes_total", second, "add"] == 0
    assert text.count("# TYPE relayd_deltas_total counter\n") == 1


def test_merged_metrics_keep_names_and_values_apart() -> None:
    """Whatever an instance is called, and whatever is in the values of labels."""
    text = (
        '# HELP a_total Words.\n# TYPE a_total counter\na_total{client="x{y} z"} 1.0\n'
        "# HELP b B.\n# TYPE b gauge\nb 2.0\n"
    )
    names = ["one", 'back\\slash "quoted"']
    families = list(text_string_to_metric_families(merged(dict.fromkeys(names, text))))
    assert [family.name for family in families] == ["a", "b"]
    assert [(sample.labels, sample.value) for sample in families[0].samples] == [
        ({"instance": name, "client": "x{y} z"}, 1.0) for name in names
    ]
    assert [(sample.labels, sample.value) for sample in families[1].samples] == [
        ({"instance": name}, 2.0) for name in names
    ]
