"""The routes of the keys: all of them, and their changes, each answered after it is on disk."""

from __future__ import annotations

import re
from functools import partial
from http import HTTPStatus

import msgspec

from relayd.admin.errors import AdminError
from relayd.admin.handlers import AdminHandler, json_list
from relayd.admin.schema import (
    AddKey,
    ClientChange,
    ExtendKey,
    FoundKey,
    KeyChange,
    RevokeKey,
    RotateKey,
)
from relayd.state.keyring import Caller
from relayd.state.records import ClientChangeResult, KeyChangeResult, epoch_s

_DIGEST = re.compile(r"[0-9a-f]{64}")
_GENERATION = re.compile(r'(?:W/)?"([0-9]{1,18})"|([0-9]{1,18})')


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
