"""Clients over the admin socket."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import pytest

from relayd.admin.client import Refused
from relayd.admin.schema import ClientInfo, PeriodUse
from relayd.state.budget import NANO, Demand, Use
from relayd.state.directory import StateDirectory
from relayd.state.keys import digest
from relayd.state.records import Client
from relayd.state.state import State
from tests.admin.harness import AdminHarness, admin_api, open_chat, raw, whole_daemon
from tests.commands.harness import relayd
from tests.harness import KEY, running_relay
from tests.state.harness import FIRST_RELEASE
from tests.wire import DONE, Wire, body, post, until


async def found(api: AdminHarness, name: str) -> ClientInfo:
    """Return one client as it is shown."""
    return next(client for client in (await api.client.clients()).clients if client.name == name)


async def test_a_client_is_added_changed_and_removed(tmp_path: Path) -> None:
    """Each answer says how the client is then; the list has its live keys and when one was last used."""
    async with admin_api(tmp_path) as api:
        made = await api.client.add_client(
            "anna", {"models": ["o3"], "usd_per_day": 1.5}, generation=1, idempotency_key="1"
        )
        assert made.secret is not None
        assert made.key is not None
        owner = api.state.ring.verify(made.secret.encode())
        assert owner is not None
        api.state.ring.record_use(owner.key_id, "192.0.2.7")
        shown = await found(api, "anna")
        assert (shown.models, shown.usd_per_day, shown.keys) == (("o3",), 1.5, (made.key.id,))
        assert shown.last_used_at is not None
        changed = await api.client.set_client(
            "anna", {"usd_per_day": None, "max_streams": 2}, generation=2, idempotency_key="2"
        )
        assert (changed.client.usd_per_day, changed.client.max_streams) == (None, 2)
        assert changed.secret is None
        removed = await api.client.remove_client("anna", cut=False, generation=3, idempotency_key="3")
        assert (removed.revoked, removed.cut) == ((made.key.id,), 0)
        assert api.state.ring.verify(made.secret.encode()) is None
        shown = await found(api, "anna")
        assert (shown.removed_at is None, shown.keys, shown.last_used_at) == (False, (), None)
        actions = [entry.action for entry in (await api.client.audit()).entries]
        assert actions == ["remove_client", "set_client", "add_client", "fill"]


async def test_the_list_has_what_was_used(tmp_path: Path) -> None:
    """This minute, today and this month, with what is reserved; none for others."""
    async with admin_api(tmp_path, clock=lambda: 1_800_000_000.0) as api:
        client = Client(name="default", created_at="", usd_per_month=20.0)
        use = Use(requests=1, tokens=1000, nano_usd=NANO // 4)
        await api.state.budget.reserve(Demand("r1", client, "k", "o3", most=use, least=use))
        await api.client.add_client("anna", {}, generation=1, idempotency_key="1")
        shown, used = await found(api, "default"), PeriodUse(1, 1000, 0.25)
        assert (shown.minute, shown.today, shown.month) == (used, used, used)
        assert (await found(api, "anna")).month == PeriodUse()


async def test_keys_and_clients_have_one_generation(tmp_path: Path) -> None:
    """The ETag of either is good for a change of the other; an old one is refused."""
    async with admin_api(tmp_path) as api:
        listed = await raw(api.socket, "GET", "/clients")
        assert (listed.status, listed.headers["etag"], listed.json["generation"]) == (200, '"1"', 1)
        assert [client["name"] for client in listed.json["clients"]] == ["default"]
        await api.client.add_key("web", generation=1, idempotency_key="1")
        with pytest.raises(Refused) as refusal:
            await api.client.add_client("anna", {}, generation=1, idempotency_key="2")
        assert (refusal.value.status, refusal.value.code) == (412, "generation_mismatch")
        assert (await api.client.clients()).generation == 2


@pytest.mark.parametrize(
    ("method", "target", "sent", "status", "says"),
    [
        ("POST", "/clients", {"nmae": "web"}, 400, "Name the client"),
        ("POST", "/clients", ["web"], 400, "Expected `object`"),
        ("POST", "/clients", {"name": "a b"}, 400, "1 to 64 letters"),
        ("POST", "/clients", {"name": "web", "max_streams": "5"}, 400, "max_streams is a whole number"),
        ("POST", "/clients", {"name": "web", "colour": 1}, 400, "no field 'colour'"),
        ("POST", "/clients", {"name": "default"}, 409, "already"),
        ("PATCH", "/clients/default", {}, 400, "Nothing to change"),
        ("PATCH", "/clients/default", {"name": "other"}, 400, "no field 'name'"),
        ("PATCH", "/clients/nobody", {"note": "x"}, 404, "no client 'nobody'"),
        ("DELETE", "/clients/nobody", None, 404, "no client 'nobody'"),
        ("DELETE", "/clients/default", None, 409, "always exists"),
        ("DELETE", "/clients/default?cut=yes", None, 400, "cut must be true or false, not 'yes'"),
        ("GET", "/clients/default", None, 405, "method"),
        ("DELETE", "/clients", None, 405, "method"),
    ],
)
async def test_a_wrong_change_is_refused_in_words(
    tmp_path: Path, method: str, target: str, sent: object, status: int, says: str
) -> None:
    """With the status of its kind; the generation stays."""
    async with admin_api(tmp_path) as api:
        headers = {"If-Match": '"1"', "Idempotency-Key": "once"}
        given = b"" if sent is None else json.dumps(sent).encode()
        answer = await raw(api.socket, method, target, headers, given)
        assert (answer.status, says in answer.error[1]) == (status, True), answer.body
        assert api.state.ring.generation == 1


async def test_a_removal_with_cut_ends_the_client_s_streams_alone() -> None:
    """Also those of a key that had ended before; a stream of another client loses nothing."""
    async with whole_daemon() as (relay, client):
        made = await client.add_client("anna", {}, generation=1, idempotency_key="1")
        assert made.secret is not None
        assert made.key is not None
        doomed = [await open_chat(relay, "demo:deltas=10000,interval_ms=50", key=made.secret)]
        rotated = await client.rotate_key(made.key.id, grace_s=0, generation=2, idempotency_key="2")
        assert rotated.secret is not None
        doomed += [await open_chat(relay, "demo:deltas=10000,interval_ms=50", key=rotated.secret)]
        calm, other = await open_chat(relay, "demo:deltas=20,interval_ms=50,text=words", key=KEY)
        ends = [asyncio.create_task(wire.rest(reply), name="doomed") for wire, reply in doomed]
        assert (await client.clients()).clients[0].open_streams == 2
        removed = await client.remove_client("anna", cut=True, generation=3, idempotency_key="3")
        assert removed.cut == 2
        await asyncio.gather(*ends)
        for wire, reply in doomed:
            assert reply.error == "key_revoked: The key of this request was revoked."
            wire.finish()
        await calm.rest(other)
        assert other.error is None
        calm.finish()
        async with await Wire.open(relay.port) as wire:
            wire.send(post(rotated.secret, body("demo:")))
            assert (await wire.reply()).status == 401
        await until(lambda: len(relay.server.streams) == 0)


async def test_a_removal_leaves_open_streams_alone() -> None:
    """Unless it is asked to cut them."""
    async with whole_daemon() as (relay, client):
        made = await client.add_client("anna", {}, generation=1, idempotency_key="1")
        assert made.secret is not None
        wire, reply = await open_chat(relay, "demo:deltas=10,interval_ms=20", key=made.secret)
        removed = await client.remove_client("anna", cut=False, generation=2, idempotency_key="2")
        assert removed.cut == 0
        await wire.rest(reply)
        assert (reply.error, reply.lines[-1]) == (None, DONE)
        wire.finish()


class _OldState(State):
    """Finds a database that the first release wrote, with `KEY` in its ring."""

    @classmethod
    def open(cls, directory: StateDirectory, **options: Any) -> Self:
        with closing(sqlite3.connect(directory.database)) as connection:
            connection.executescript(FIRST_RELEASE.read_text(encoding="utf-8"))
            connection.execute("UPDATE keys SET digest = ? WHERE state = 'active'", (digest(KEY.encode()),))
            connection.commit()
        return super().open(directory, **options)


async def test_an_old_key_opens_chat_alone_until_that_is_changed() -> None:
    """An upgrade gives nobody more than they had: `/v1` is opened by the operator."""
    async with running_relay(state_class=_OldState) as relay:

        async def models() -> int:
            async with await Wire.open(relay.port) as wire:
                wire.send(f"GET /v1/models HTTP/1.1\r\nHost: r\r\nAuthorization: {KEY}\r\n\r\n".encode())
                return (await wire.reply()).status

        assert (await relay.ask("demo:deltas=1")).error is None
        assert await models() == 401
        socket = relay.state.path.parent / "admin.sock"
        changed = await relayd(socket, "clients", "set", "default", "--endpoints", "none")
        assert changed.status == 0
        assert await models() == 200
        assert (await relay.ask("demo:deltas=1")).error is None
