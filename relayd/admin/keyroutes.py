"""`/keys`: the ring, and its changes, each answered after it is on disk."""

from __future__ import annotations

from relayd.admin.base import AdminHandler
from relayd.admin.schema import AddKey, ExtendKey, KeyChange, RevokeKey, Ring, RotateKey
from relayd.state.keyring import RingChange


class _RingHandler(AdminHandler):
    def answer(self, change: RingChange, cut: int = 0) -> None:
        self.set_header("Etag", f'"{change.generation}"')
        self.send_json(
            KeyChange(
                generation=change.generation,
                key=change.key,
                old=change.old,
                secret=change.secret,
                already_done=change.already_done,
                cut=cut,
            )
        )


class KeysHandler(_RingHandler):
    """The whole ring."""

    def get(self) -> None:
        """Every live key and the last dead ones, with the generation as ETag."""
        ring = self.parts.state.ring
        # The generation first: were the ring to change in between, a change based on this answer
        # is refused, and never based on keys that the operator has not seen.
        generation = ring.generation
        self.set_header("Etag", f'"{generation}"')
        self.send_json(Ring(generation, ring.keys()))

    async def post(self) -> None:
        """A first key for a new client."""
        wanted = self.body(AddKey)
        generation, once = self.generation(), self.idempotency_key()
        change = await self.parts.state.ring.add(
            wanted.client, peer=await self.peer(), expected_generation=generation, idempotency_key=once
        )
        self.answer(change)


class RotateHandler(_RingHandler):
    """`/keys/{id}/rotate`."""

    async def post(self, key_id: str) -> None:
        """A new key beside this one, which retires."""
        wanted = self.body(RotateKey)
        generation, once = self.generation(), self.idempotency_key()
        grace_s = self.parts.limits().grace_s if wanted.grace_s is None else wanted.grace_s
        change = await self.parts.state.ring.rotate(
            key_id,
            grace_s=grace_s,
            peer=await self.peer(),
            expected_generation=generation,
            idempotency_key=once,
        )
        self.answer(change)


class ExtendHandler(_RingHandler):
    """`/keys/{id}/extend`."""

    async def post(self, key_id: str) -> None:
        """A later end for a retiring key."""
        wanted = self.body(ExtendKey)
        generation, once = self.generation(), self.idempotency_key()
        change = await self.parts.state.ring.extend(
            key_id,
            by_s=wanted.by_s,
            peer=await self.peer(),
            expected_generation=generation,
            idempotency_key=once,
        )
        self.answer(change)


class UndoHandler(_RingHandler):
    """`/keys/{id}/undo`."""

    async def post(self, key_id: str) -> None:
        """The retiring key active again, its successor revoked."""
        generation, once = self.generation(), self.idempotency_key()
        change = await self.parts.state.ring.undo(
            key_id, peer=await self.peer(), expected_generation=generation, idempotency_key=once
        )
        self.answer(change)


class RevokeHandler(_RingHandler):
    """`/keys/{id}/revoke`."""

    async def post(self, key_id: str) -> None:
        """The end of a key, and with `cut` of its open streams."""
        wanted = self.body(RevokeKey)
        generation, once = self.generation(), self.idempotency_key()
        change = await self.parts.state.ring.revoke(
            key_id,
            cut=wanted.cut,
            peer=await self.peer(),
            expected_generation=generation,
            idempotency_key=once,
        )
        self.answer(change, self.parts.registry.cut_key(change.key.id) if wanted.cut else 0)
