"""Commands to the running daemon: each acts at once and is audited; a drain stops the daemon."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from relayd.admin.client import Refused
from relayd.admin.schema import AcceptState
from tests.admin.harness import admin_api, open_chat, raw, whole_daemon
from tests.harness import KEY
from tests.wire import DONE


async def test_pause_and_resume_switch_the_intake_and_are_audited(tmp_path: Path) -> None:
    """Each answers with the status after it; the audit has who and what."""
    async with admin_api(tmp_path) as api:
        assert (await api.client.pause()).intake is AcceptState.PAUSED
        assert (await api.client.resume()).intake is AcceptState.OPEN
        entries = (await api.client.audit(limit=2)).entries
    assert [(entry.action, entry.result, entry.pid) for entry in entries] == [
        ("resume", "done", os.getpid()),
        ("pause", "done", os.getpid()),
    ]


async def test_a_drain_answers_first_and_asks_for_the_end_once(tmp_path: Path) -> None:
    """A second drain is answered, but does not force the end as a second signal would."""
    async with admin_api(tmp_path) as api:
        assert (await api.client.drain()).intake is AcceptState.DRAINING
        assert api.stopped == [True]
        assert (await api.client.drain()).intake is AcceptState.DRAINING
        assert api.stopped == [True]
        for late in (api.client.pause, api.client.resume):
            with pytest.raises(Refused, match="too late") as refusal:
                await late()
            assert refusal.value.status == 409
        assert api.accepting.refusal is not None


async def test_cancel_ends_one_stream_and_no_other() -> None:
    """Its client is told `cancelled`; an id that is not open is 404; both are audited."""
    async with whole_daemon() as (relay, client):
        doomed = await open_chat(relay, "demo:deltas=10000,interval_ms=50")
        spared = await open_chat(relay, "demo:deltas=10,interval_ms=50")
        request_id = doomed[1].header("X-Request-Id")
        assert request_id is not None
        await client.cancel(request_id)
        for wire, reply in (doomed, spared):
            await wire.rest(reply)
            wire.finish()
        assert doomed[1].error == "cancelled: The operator of this relay cancelled the request."
        assert doomed[1].lines[-1] == spared[1].lines[-1] == DONE
        assert spared[1].error is None
        with pytest.raises(Refused) as refusal:
            await client.cancel(request_id)
        assert refusal.value.status == 404
        entries = (await client.audit(limit=2)).entries
        assert [(entry.action, entry.result, entry.detail) for entry in entries] == [
            ("cancel", "not_found", request_id),
            ("cancel", "done", request_id),
        ]


async def test_the_open_streams_are_listed_oldest_first() -> None:
    """With what a cancellation needs: the id."""
    async with whole_daemon() as (relay, client):
        opened = [await open_chat(relay, "demo:deltas=10000,interval_ms=50") for _ in range(2)]
        ids = [reply.header("X-Request-Id") for _, reply in opened]
        listed = (await raw(relay.settings.admin.socket, "GET", "/inflight")).json["streams"]
        assert [stream["id"] for stream in listed] == ids
        assert {(stream["client"], stream["model"].partition(":")[0]) for stream in listed} == {
            ("default", "demo")
        }
        for wire, reply in opened:
            await client.cancel(str(reply.header("X-Request-Id")))
            await wire.rest(reply)
            wire.finish()


async def test_an_audit_that_can_not_be_stored_does_not_keep_the_operator_from_acting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was done is then in the journal, with who did it."""
    async with admin_api(tmp_path) as api:
        assert await asyncio.to_thread(api.state.close)
        assert (await api.client.pause()).intake is AcceptState.PAUSED
    assert f"(uid {os.getuid()}, pid {os.getpid()}): done; the audit could not store it" in caplog.text


async def test_a_note_is_in_the_audit_with_who_wrote_it_and_about_what(tmp_path: Path) -> None:
    """The same question asked again, as after a lost answer, adds no second row."""
    async with admin_api(tmp_path) as api:
        written = [
            await api.client.note(
                " told web, Tuesday ", client="web", key_ids=["Ab12Cd34"], idempotency_key="once"
            )
            for _ in range(2)
        ]
        with pytest.raises(Refused, match="another change") as refusal:
            await api.client.note("told ci", idempotency_key="once")
        assert refusal.value.code == "idempotency_mismatch"
        page = await api.client.audit()
    note, fill = page.entries
    assert written == [note, note]
    assert (note.action, note.result, note.client, note.key_ids) == ("note", "done", "web", ("Ab12Cd34",))
    assert (note.detail, note.pid, note.generation) == ("told web, Tuesday", os.getpid(), fill.generation)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"text": " "}, "1 to 500 characters"),
        ({"text": "x" * 501}, "1 to 500 characters"),
        ({"text": f"it was {KEY}"}, "looks like a key"),
        ({"text": "told web", "client": "sk-proj-1234567890"}, "looks like a key"),
        ({"text": "told web", "key_ids": ["a"] * 11}, "at most 10 keys"),
        ({"text": "told web", "client": "w" * 65}, "one client"),
        ({"text": "told web", "to": "web"}, "unknown field"),
    ],
)
async def test_a_note_that_can_not_be_kept_is_refused(
    body: dict[str, object], says: str, tmp_path: Path
) -> None:
    """Above all one with a key in it: the audit has none."""
    async with admin_api(tmp_path) as api:
        headers = {"Idempotency-Key": "once"}
        answer = await raw(api.socket, "POST", "/audit", headers, json.dumps(body).encode())
        assert (answer.status, answer.error[0]) == (400, "bad_request")
        assert says in answer.error[1]
        assert [entry.action for entry in (await api.client.audit()).entries] == ["fill"]
        without_key = await raw(api.socket, "POST", "/audit", {}, b'{"text":"told web"}')
        assert without_key.error[0] == "idempotency_key_required"


async def test_a_note_with_a_key_of_any_form_is_refused(tmp_path: Path) -> None:
    """Alone, behind a sign, or in brackets: a key that an operator brought along looks like none."""
    given = "winter=is-coming,to:the-north"
    async with admin_api(tmp_path) as api:
        generation = (await api.client.keys()).generation
        await api.client.add_key("web", secret=given, generation=generation, idempotency_key="add")
        for text in (given, f"key={given}", f"it was ({given})!", f'"{given}", they said'):
            with pytest.raises(Refused, match="looks like a key"):
                await api.client.note(text, idempotency_key="once")
        await api.client.note("winter=is-coming", idempotency_key="once")
