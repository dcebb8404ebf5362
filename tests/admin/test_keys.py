"""Changes of the key ring over the admin socket."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from relayd.admin.client import Refused
from relayd.admin.schema import KeyChange, KeyState
from tests.admin.harness import AdminHarness, admin_api, open_chat, raw, whole_daemon
from tests.harness import KEY
from tests.wire import DONE, Wire, body, post, until


async def _rotate(api: AdminHarness, once: str, grace_s: float | None = 60.0) -> str:
    ring = await api.client.keys()
    active = next(key for key in ring.keys if key.state is KeyState.ACTIVE)
    change = await api.client.rotate_key(
        active.id, grace_s=grace_s, generation=ring.generation, idempotency_key=once
    )
    assert change.secret is not None
    return change.secret


async def test_without_a_grace_the_configured_one_holds(tmp_path: Path) -> None:
    """`keys.grace_s` is an hour here."""
    async with admin_api(tmp_path) as api:
        await _rotate(api, "one", grace_s=None)
        entry = (await api.client.audit()).entries[0]
        assert entry.detail is not None
        assert "grace 3600 s" in entry.detail


async def test_of_twenty_operators_at_once_one_wins(tmp_path: Path) -> None:
    """19 get 412, which says what happened and by whom; the generation moves by one."""
    async with admin_api(tmp_path) as api:
        ring = await api.client.keys()

        tries = [
            api.client.rotate_key(
                ring.keys[0].id, grace_s=60, generation=ring.generation, idempotency_key=f"operator-{n}"
            )
            for n in range(20)
        ]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        lost = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        won = [outcome for outcome in outcomes if isinstance(outcome, KeyChange)]
        assert (len(lost), [change.generation for change in won]) == (19, [2])
        for refusal in lost:
            assert (refusal.status, refusal.code) == (412, "generation_mismatch")
            assert "you saw generation 1" in str(refusal)
            assert "rotate by " in str(refusal)
        assert (await api.client.keys()).generation == 2
        results = [entry.result for entry in (await api.client.audit()).entries]
        assert sorted(results) == sorted(["done", "done"] + ["generation_mismatch"] * 19)


async def test_the_same_idempotency_key_rotates_once_and_shows_the_key_once(tmp_path: Path) -> None:
    """The second reply says that it already happened, with the same ids, and without the key."""
    async with admin_api(tmp_path) as api:
        ring = await api.client.keys()
        first, second = [
            await api.client.rotate_key(ring.keys[0].id, grace_s=60, generation=1, idempotency_key="same")
            for _ in range(2)
        ]
        assert (first.already_done, second.already_done) == (False, True)
        assert (first.secret is None, second.secret) == (False, None)
        assert (first.key.id, first.generation) == (second.key.id, second.generation)
        assert api.state.ring.generation == 2


async def test_the_same_idempotency_key_with_another_change_is_refused(tmp_path: Path) -> None:
    """422: a script that uses one key for everything would lose changes in silence."""
    async with admin_api(tmp_path) as api:
        key_id = (await api.client.keys()).keys[0].id
        await api.client.rotate_key(key_id, grace_s=60, generation=1, idempotency_key="same")
        with pytest.raises(Refused) as refusal:
            await api.client.rotate_key(key_id, grace_s=61, generation=2, idempotency_key="same")
        assert (refusal.value.status, refusal.value.code) == (422, "idempotency_mismatch")


async def test_extend_undo_and_revoke_do_as_they_say(tmp_path: Path) -> None:
    """Each answers with the key that it touched, as it is now."""
    async with admin_api(tmp_path) as api:
        key_id = (await api.client.keys()).keys[0].id
        rotated = await api.client.rotate_key(key_id, grace_s=60, generation=1, idempotency_key="1")
        longer = await api.client.extend_key(key_id, by_s=60, generation=2, idempotency_key="2")
        assert rotated.old is not None
        assert (longer.key.expires_at or "") > (rotated.old.expires_at or "")
        back = await api.client.undo_key(key_id, generation=3, idempotency_key="3")
        assert (back.key.id, back.key.state) == (key_id, KeyState.ACTIVE)
        assert back.old is not None
        assert (back.old.id, back.old.state) == (rotated.key.id, KeyState.REVOKED)
        dead = await api.client.revoke_key(key_id, cut=False, generation=4, idempotency_key="4")
        assert (dead.key.state, dead.cut, dead.generation) == (KeyState.REVOKED, 0, 5)
        assert api.state.ring.verify(KEY.encode()) is None


async def test_the_audit_says_who_did_it(tmp_path: Path) -> None:
    """User and process id are those of this test; the refused is audited like the done."""
    async with admin_api(tmp_path) as api:
        await _rotate(api, "one")
        await raw(api.socket, "POST", "/keys/nope/undo", {"If-Match": "2", "Idempotency-Key": "two"})
        refused, done = (await api.client.audit(limit=2)).entries
        assert (done.action, done.result, done.uid, done.pid) == ("rotate", "done", os.getuid(), os.getpid())
        assert (refused.action, refused.result, refused.pid) == ("undo", "no_such_key", os.getpid())


async def test_revoke_with_cut_ends_the_streams_of_that_key_alone() -> None:
    """Each has `key_revoked` and `done` long before its end; a stream of another key loses nothing."""
    async with whole_daemon() as (relay, client):
        added = await client.add_key("other", generation=1, idempotency_key="add")
        assert added.secret is not None
        calm, other = await open_chat(relay, "demo:deltas=20,interval_ms=50,text=words", key=added.secret)
        doomed = [await open_chat(relay, "demo:deltas=10000,interval_ms=50") for _ in range(5)]
        key = next(key for key in (await client.keys()).keys if key.client == "default")
        ends = [asyncio.create_task(wire.rest(reply), name="doomed") for wire, reply in doomed]
        change = await client.revoke_key(key.id, cut=True, generation=2, idempotency_key="cut")
        assert change.cut == 5
        await asyncio.gather(*ends)
        for wire, reply in doomed:
            assert reply.error == "key_revoked: The key of this request was revoked."
            assert reply.lines[-1] == DONE
            wire.finish()
        await calm.rest(other)
        assert other.error is None
        assert len([line for line in other.lines if line["content"] and not line["done"]]) == 20
        calm.finish()
        await until(lambda: len(relay.server.streams) == 0)


async def test_a_chat_whose_body_was_still_coming_is_cut_as_well() -> None:
    """A request that was admitted before the revoke opens no stream after it."""
    async with whole_daemon() as (relay, client), await Wire.open(relay.port) as wire:
        sent = post(KEY, body("demo"))
        wire.send(sent[:-1])
        key = (await client.keys()).keys[0]
        # The key's first use is noted when the request is admitted.
        await until(lambda: relay.state.ring.keys()[0].last_used_at is not None)
        await client.revoke_key(key.id, cut=True, generation=1, idempotency_key="cut")
        wire.send(sent[-1:])
        reply = await wire.reply()
        assert reply.status == 401
        assert reply.error == "key_revoked: The key of this request was revoked."


async def test_a_repeated_import_is_known_by_its_key(tmp_path: Path) -> None:
    """The same idempotency key with another secret is another change; no reply has a secret."""
    async with admin_api(tmp_path) as api:
        for _ in range(2):
            change = await api.client.add_key(
                "web", "the-key-of-the-old-relay", generation=1, idempotency_key="same"
            )
            assert (change.generation, change.secret) == (2, None)
        with pytest.raises(Refused) as refusal:
            await api.client.add_key("web", "another-key-altogether", generation=2, idempotency_key="same")
        assert refusal.value.code == "idempotency_mismatch"
        assert api.state.ring.verify(b"another-key-altogether") is None
