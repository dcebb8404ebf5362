"""The routes of the clients: all of them, and their changes, each answered after it is on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec.structs import asdict

from relayd.admin.context import period_use
from relayd.admin.errors import AdminError
from relayd.admin.handlers import json_list
from relayd.admin.key_handlers import RingHandler
from relayd.admin.schema import ClientInfo
from relayd.state.budget import Use
from relayd.state.records import LIVE_STATES
from relayd.state.state import State

_UNUSED = Use()


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
