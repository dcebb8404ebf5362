"""The admin API: every route of the contract, strictly."""

from __future__ import annotations

import json
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from relayd import __version__
from relayd.admin.schema import PROTOCOL, PROTOCOL_HEADER, VERSION_MISMATCH, KeyChange, Status
from tests.admin.harness import admin_api, new_record, raw
from tests.harness import KEY

_CHANGE = {"If-Match": '"1"', "Idempotency-Key": "once"}
_GETS = ["/status", "/instances", "/config", "/inflight", "/keys", "/audit", "/requests", "/metrics"]
_CHANGES = [
    ("POST", "/keys"),
    ("POST", "/keys/{id}/rotate"),
    ("POST", "/keys/{id}/extend"),
    ("POST", "/keys/{id}/undo"),
    ("POST", "/keys/{id}/revoke"),
]
_BODIES = {"/keys": b'{"client":"web"}', "/keys/{id}/extend": b'{"by_s":60}'}


@pytest.mark.parametrize("target", _GETS)
async def test_every_reading_route_answers_with_the_version_of_the_protocol(
    target: str, tmp_path: Path
) -> None:
    """A reader learns at once which protocol it speaks, and no answer may be cached."""
    async with admin_api(tmp_path) as api:
        answer = await raw(api.socket, "GET", target)
    assert (answer.status, answer.headers[PROTOCOL_HEADER.lower()]) == (200, PROTOCOL)
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers


@pytest.mark.parametrize(("method", "target"), _CHANGES)
@pytest.mark.parametrize("missing", ["If-Match", "Idempotency-Key"])
async def test_every_change_of_the_ring_needs_both_headers(
    method: str, target: str, missing: str, tmp_path: Path
) -> None:
    """Without If-Match it is 428, without Idempotency-Key 400, in words; the ring stays as it is."""
    async with admin_api(tmp_path) as api:
        headers = {name: value for name, value in _CHANGE.items() if name != missing}
        target_id = target.format(id=api.state.ring.keys()[0].id)
        answer = await raw(api.socket, method, target_id, headers, _BODIES.get(target, b""))
        assert answer.status == (428 if missing == "If-Match" else 400)
        assert missing in answer.error[1]
        assert api.state.ring.generation == 1


@pytest.mark.parametrize("given", ["seven", '"7', "-1", "*", '"1", "2"', "1.0"])
async def test_an_if_match_that_is_no_generation_is_refused(given: str, tmp_path: Path) -> None:
    """Whatever is not an ETag of the ring is told so, and never taken as `any`."""
    async with admin_api(tmp_path) as api:
        target = f"/keys/{api.state.ring.keys()[0].id}/rotate"
        answer = await raw(api.socket, "POST", target, {**_CHANGE, "If-Match": given})
        assert (answer.status, answer.error[0]) == (400, "bad_request")
        assert api.state.ring.generation == 1


@pytest.mark.parametrize("given", ['"1"', "1", 'W/"1"'])
async def test_the_etag_of_the_ring_is_what_a_change_names(given: str, tmp_path: Path) -> None:
    """`GET /keys` has the generation as ETag, which If-Match takes with and without its quotes."""
    async with admin_api(tmp_path) as api:
        ring = await raw(api.socket, "GET", "/keys")
        assert (ring.headers["etag"], ring.json["generation"]) == ('"1"', 1)
        target = f"/keys/{ring.json['keys'][0]['id']}/rotate"
        answer = await raw(api.socket, "POST", target, {**_CHANGE, "If-Match": given})
        assert (answer.status, answer.headers["etag"], answer.json["generation"]) == (200, '"2"', 2)


@pytest.mark.parametrize(
    ("method", "target", "sent", "status", "says"),
    [
        ("GET", "/nothing", b"", 404, "nothing at this path"),
        ("POST", "/status", b"", 405, "not allowed"),
        ("GET", "/requests?limt=5", b"", 400, "'limt'"),
        ("GET", "/requests?limit=0", b"", 400, "between 1 and 1000"),
        ("GET", "/requests?before=x", b"", 400, "whole number"),
        ("GET", "/requests?where=sttus%3D1", b"", 400, "did you mean 'status'"),
        ("GET", "/requests/nope", b"", 404, "'nope'"),
        ("GET", "/events?after=-1", b"", 400, "whole number"),
        ("DELETE", "/inflight/nope", b"", 404, "'nope'"),
        ("POST", "/keys", b"{", 400, "is not valid"),
        ("POST", "/keys", b"{}", 400, "client"),
        ("POST", "/keys", b'{"client":"web","color":"red"}', 400, "color"),
        ("POST", "/keys/nope/rotate", b"", 404, "'nope'"),
        ("POST", "/keys/nope/rotate", b'{"grace_s":-1}', 400, "grace"),
        ("POST", "/keys", b'{"client":"default"}', 409, "rotate that one"),
        ("POST", "/keys", b'{"client":"a b"}', 400, "letters"),
    ],
)
async def test_what_is_wrong_is_said_in_one_form(
    method: str, target: str, sent: bytes, status: int, says: str, tmp_path: Path
) -> None:
    """Every refusal is `{"error":{code,message}}` with a sentence that names the fault."""
    async with admin_api(tmp_path) as api:
        real = target.replace("nope/rotate", f"{api.state.ring.keys()[0].id}/rotate") if sent else target
        answer = await raw(api.socket, method, real, _CHANGE, sent)
    assert answer.status == status
    assert says in answer.error[1]


async def test_a_wrong_method_learns_the_right_ones(tmp_path: Path) -> None:
    """405 carries Allow."""
    async with admin_api(tmp_path) as api:
        answer = await raw(api.socket, "DELETE", "/keys")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")


async def test_a_program_of_another_version_is_refused_before_anything_happens(tmp_path: Path) -> None:
    """A question that carries another protocol number gets `version_mismatch`, also when it is a change."""
    async with admin_api(tmp_path) as api:
        target = f"/keys/{api.state.ring.keys()[0].id}/rotate"
        answer = await raw(api.socket, "POST", target, {**_CHANGE, PROTOCOL_HEADER: "2"})
        assert (answer.status, answer.error[0]) == (409, VERSION_MISMATCH)
        assert api.state.ring.generation == 1


async def test_requests_are_paged_newest_first_and_filtered(tmp_path: Path) -> None:
    """`next_before` leads through all pages once, and `where` is the filter language."""
    async with admin_api(tmp_path) as api:
        api.log(25, client="web")
        api.log(5, prefix="x", client="cli")
        await api.logged(1 + 2 * 30)
        seen: list[str] = []
        target = "/requests?limit=10"
        while True:
            page = (await raw(api.socket, "GET", target)).json
            seen += [record["id"] for record in page["records"]]
            if page["next_before"] is None:
                break
            target = f"/requests?limit=10&before={page['next_before']}"
        assert seen == sorted(seen, key=lambda name: (name[0] == "x", name), reverse=True)
        assert len(seen) == len(set(seen)) == 30
        chosen = (await raw(api.socket, "GET", "/requests?where=client%3Dcli")).json
        assert [record["id"] for record in chosen["records"]] == [f"x{n:06}" for n in range(4, -1, -1)]
        one = (await raw(api.socket, "GET", "/requests/x000003")).json
        assert (one["id"], one["client"]) == ("x000003", "cli")


async def test_status_has_every_figure_of_its_type(tmp_path: Path) -> None:
    """What `GET /status` sends decodes strictly into `Status`, and tells of the daemon that answers."""
    async with admin_api(tmp_path) as api:
        status = await api.client.status()
        assert (status.version, status.boot_id, status.seq) == (__version__, "boot", 1)
        assert (status.ring.generation, status.ring.active, status.streams.waiting) == (1, 1, 0)
        assert status.disk is not None
        assert status.disk.database_bytes > 0
        assert status.log.error is None
        sent = (await raw(api.socket, "GET", "/status")).json
        assert set(sent) == set(Status.__struct_fields__)


async def test_no_answer_of_any_route_holds_a_key_but_the_first_of_a_change(tmp_path: Path) -> None:
    """The new key is in the reply of its rotation, and nowhere else: no list, event, audit or repeat."""
    async with admin_api(tmp_path) as api:
        target = f"/keys/{api.state.ring.keys()[0].id}/rotate"
        change = (await raw(api.socket, "POST", target, _CHANGE)).body
        secret = json.loads(change)["secret"]
        assert secret.startswith("rly_")
        assert secret not in repr(msgspec.json.decode(change, type=KeyChange))
        api.state.log.started(new_record("r1"))
        answers = [await raw(api.socket, "GET", route) for route in _GETS]
        answers.append(await raw(api.socket, "POST", target, _CHANGE))
        async with aclosing(api.client.events(after=0)) as stream:
            events = [repr(await anext(stream)) for _ in range(4)]
    told = "".join([*(answer.body.decode() for answer in answers), *events])
    assert secret not in told
    assert KEY not in told
    assert answers[-1].json["already_done"] is True
