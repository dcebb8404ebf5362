"""The routes of keys and clients: all of them, and their changes, each answered after it is on disk."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
from msgspec.structs import asdict

from relayd.admin.context import period_use
from relayd.admin.errors import AdminError
from relayd.admin.handlers import AdminHandler, json_list
from relayd.admin.schema import (
    AddKey,
    ClientChange,
    ClientInfo,
    ExtendKey,
    FoundKey,
    KeyChange,
    RevokeKey,
    RotateKey,
)
from relayd.state.budget import Use
from relayd.state.keyring import Caller
from relayd.state.records import LIVE_STATES, ClientChangeResult, KeyChangeResult, epoch_s
from relayd.state.state import State

_DIGEST = re.compile(r"[0-9a-f]{64}")
_GENERATION = re.compile(r'(?:W/)?"([0-9]{1,18})"|([0-9]{1,18})')
_UNUSED = Use()


class RingHandler(AdminHandler):
    """A route of the ring: keys and clients have one generation."""

    async def caller(self) -> Caller:
        """Return the caller of a change, the generation that the caller saw, and its idempotency key.

        Raises:
            AdminError: If-Match or Idempotency-Key is missing or malformed.
        """
        generation, idempotency_key = self._if_match(), self.idempotency_key()
        return Caller(await self.peer(), generation, idempotency_key)

    def _if_match(self) -> int:
        given = self.request.headers.get("If-Match")
        if given is None:
            raise AdminError(
                HTTPStatus.PRECONDITION_REQUIRED,
                "if_match_required",
                "Send If-Match with the ETag of GET /keys or GET /clients, so that the change applies to "
                "what you saw.",
            )
        match = _GENERATION.fullmatch(given.strip())
        if match is None:
            raise AdminError.bad_request('If-Match must be the ETag of GET /keys or GET /clients, like "7".')
        return int(match[1] or match[2])

    def send_ring(self, generation: int, document: object) -> None:
        """Finish with the ring or a change of it; the generation is the ETag."""
        self.set_header("Etag", f'"{generation}"')
        self.send_json(document)

    async def send_change(self, change: KeyChangeResult | ClientChangeResult, cut: int = 0) -> None:
        """Finish with the result of a change; `cut` is how many open streams it ended."""
        instances = await self.all_instances.have(change.generation)
        answer = KeyChange if isinstance(change, KeyChangeResult) else ClientChange
        document = answer(**msgspec.structs.asdict(change), cut=cut, instances=instances)
        self.send_ring(change.generation, document)


class KeysHandler(RingHandler):
    """`GET /keys` and `POST /keys`."""

    async def get(self) -> None:
        """Send every live key and the last dead ones, with the generation as ETag."""
        ring = self.context.state.ring
        # The generation first: if the ring changes in between, a change based on this answer is refused,
        # and never based on keys that the operator has not seen.
        generation = ring.generation
        keys = await self.context.read_log(lambda: json_list(ring.keys()))
        self.send_ring(generation, {"generation": generation, "keys": keys})

    async def post(self) -> None:
        """Make a first key for a new client, or import a key of the operator's own."""
        wanted, caller, ring = self.body(AddKey), await self.caller(), self.context.state.ring
        if wanted.secret is None:
            await self.send_change(await ring.add(wanted.client, caller=caller))
        else:
            await self.send_change(await ring.import_key(wanted.client, wanted.secret, caller=caller))


class KeyChangeHandler(RingHandler):
    """`POST /keys/{id}/rotate|extend|undo|revoke`."""

    async def post(self, key_id: str, action: str) -> None:
        """Change one key."""
        ring = self.context.state.ring
        match action:
            case "rotate":
                grace_s = self.body(RotateKey).grace_s
                grace_s = self.context.limits().grace_s if grace_s is None else grace_s
                change = await ring.rotate(key_id, grace_s=grace_s, caller=await self.caller())
            case "extend":
                by_s = self.body(ExtendKey).by_s
                change = await ring.extend(key_id, by_s=by_s, caller=await self.caller())
            case "undo":
                change = await ring.undo(key_id, caller=await self.caller())
            case _:
                cut = self.body(RevokeKey).cut
                change = await ring.revoke(key_id, cut=cut, caller=await self.caller())
                if cut:
                    await self.send_change(change, await self.all_instances.count_cut([change.key.id]))
                    return
        await self.send_change(change)


class FindKeyHandler(AdminHandler):
    """`GET /keys/find`."""

    query_names = frozenset({"digest"})

    async def get(self) -> None:
        """Send the key with this digest; the key itself never comes here."""
        given = self.get_query_argument("digest", "")
        if not _DIGEST.fullmatch(given):
            # What was given is not repeated: it may be the key.
            raise AdminError.bad_request("digest is the SHA-256 digest of the key as 64 hexadecimal digits.")
        state, key_digest = self.context.state, bytes.fromhex(given)
        key = state.ring.find(key_digest)
        if key is None:
            key = await self.context.read_log(partial(state.reader.find_key, key_digest))
        self.send_json(FoundKey(key))


class KeyUsersHandler(AdminHandler):
    """`GET /keys/{id}/users`."""

    query_names = frozenset({"since"})

    async def get(self, key_id: str) -> None:
        """Send who used this key, the latest first."""
        since = self.get_query_argument("since", "")
        try:
            epoch_s(since or "1970-01-01T00:00:00Z")
        except ValueError:
            raise AdminError.bad_request(
                f"since is a UTC time such as 2026-01-31T12:00:00Z, not {since[:40]!r}."
            ) from None
        query = partial(self.context.state.reader.key_users, key_id, since=since)
        self.send_json(await self.context.read_log(query))


class ClientsHandler(RingHandler):
    """`GET /clients` and `POST /clients`."""

    async def get(self) -> None:
        """Send every client and the last removed ones, with the generation as ETag."""
        context = self.context
        # The generation first, as for the keys.
        generation = context.state.ring.generation
        open_streams = Counter(stream.client for stream in (await self.all_instances.progress()).streams)
        clients = await context.read_log(lambda: json_list(_infos(context.state, open_streams)))
        self.send_ring(generation, {"generation": generation, "clients": clients})

    async def post(self) -> None:
        """Make a client with its bounds and its first key."""
        bounds = self.body(dict[str, Any])
        name = bounds.pop("name", None)
        if not isinstance(name, str):
            raise AdminError.bad_request('Name the client: {"name": "web"}, and its bounds beside it.')
        ring, caller = self.context.state.ring, await self.caller()
        await self.send_change(await ring.add_client(name, bounds, caller=caller))


class ClientHandler(RingHandler):
    """`PATCH /clients/{name}` and `DELETE /clients/{name}`."""

    query_names = frozenset({"cut"})

    async def patch(self, name: str) -> None:
        """Change the bounds that the body names; null removes one."""
        changes, ring = self.body(dict[str, Any]), self.context.state.ring
        await self.send_change(await ring.set_client(name, changes, caller=await self.caller()))

    async def delete(self, name: str) -> None:
        """Remove a client and revoke its keys; with `?cut=true` end its open streams, too."""
        cut, ring = self.flag("cut"), self.context.state.ring
        change = await ring.remove_client(name, cut=cut, caller=await self.caller())
        keys = set(change.revoked)
        if not change.already_done:
            # Streams of keys that had ended before end as well; a repeated answer may meet a new client.
            keys.update(
                key.id
                for key in ring.keys()  # noqa: SIM118 - a list, not a dict
                if key.client == name
                and key.state not in LIVE_STATES
                and key.created_at >= change.client.created_at
            )
        await self.send_change(change, await self.all_instances.count_cut(keys) if cut else 0)


def _infos(state: State, open_streams: Mapping[str | None, int]) -> Iterator[ClientInfo]:
    """Yield what is known of each client. Blocks.

    Raises:
        StateError: what they used can't be read.
    """
    ring, uses = state.ring, state.reader.use_by_client()
    key_ids: dict[str, list[str]] = {}
    last_uses: dict[str, str] = {}
    for key in ring.keys():  # noqa: SIM118 - a list, not a dict
        if key.state in LIVE_STATES:
            key_ids.setdefault(key.client, []).append(key.id)
            if key.last_used_at is not None:
                last_uses[key.client] = max(key.last_used_at, last_uses.get(key.client, ""))

    for client in ring.clients():
        name = client.name
        minute, today, month = [period_use(use.get(name, _UNUSED)) for use in uses]
        yield ClientInfo(
            **asdict(client),
            keys=tuple(key_ids.get(name, ())),
            open_streams=open_streams.get(name, 0),
            last_used_at=last_uses.get(name),
            minute=minute,
            today=today,
            month=month,
        )
