"""`relayd keys`: the ring, and its changes.

A new key is the only thing on stdout, alone on its line, so that a script can take it; what it means
and what comes next is said on stderr.
"""

from __future__ import annotations

import time
import uuid
from argparse import Namespace
from collections.abc import Awaitable, Callable

from relayd.admin.client import AdminClient, AnswerUnknown, Refused
from relayd.admin.schema import KeyChange, KeyInfo, KeyState, Ring
from relayd.commands.console import Console
from relayd.commands.words import counted, key_state, left

_DEAD_SHOWN = 5
_REVOKE_TRIES = 5
_LOST_RACE = 412
_LIVE = (KeyState.ACTIVE, KeyState.RETIRING)

Change = Callable[[Ring, str], Awaitable[KeyChange]]
"""Takes the ring on which it is decided, and the idempotency key."""


async def list_keys(args: Namespace, console: Console) -> int:
    """Show live keys, and the latest dead ones."""
    ring = await console.client(args.socket).keys()
    if args.json:
        console.json(ring)
        return 0
    now_s = time.time()
    live = [key for key in ring.keys if key.state in _LIVE]
    dead = [key for key in ring.keys if key.state not in _LIVE]
    rows = [("KEY", "CLIENT", "FINGERPRINT", "STATE")]
    rows += [
        (key.id, key.client, key.fingerprint, key_state(key, now_s)) for key in live + dead[-_DEAD_SHOWN:]
    ]
    console.table(rows)
    if len(dead) > _DEAD_SHOWN:
        console.note(f"{counted(len(dead) - _DEAD_SHOWN, 'older dead key')} not shown; --json has them.")
    return 0


async def add(args: Namespace, console: Console) -> int:
    """Make a key for a new client."""
    client = console.client(args.socket)
    change = await _change(
        client,
        lambda ring, once: client.add_key(args.name, generation=ring.generation, idempotency_key=once),
    )
    return _show_new(args, console, change, f"Client {args.name} has the key {change.key.id} now.")


async def rotate(args: Namespace, console: Console) -> int:
    """Make a new key for a client; the one it has retires."""
    client = console.client(args.socket)
    change = await _change(
        client,
        lambda ring, once: client.rotate_key(
            _active(ring, args.name).id, grace_s=args.grace, generation=ring.generation, idempotency_key=once
        ),
    )
    old, name = change.old, change.key.client
    said = f"Client {name} has the new key {change.key.id}, which works from now on."
    if old is None or old.expires_at is None:
        return _show_new(args, console, change, said)
    return _show_new(
        args,
        console,
        change,
        said,
        f"The old key {old.id} works until {old.expires_at} ({left(old.expires_at, time.time())}).",
        f"Until then: relayd keys extend {old.id} 1h | relayd keys undo {name} | relayd keys revoke {old.id}",
    )


async def extend(args: Namespace, console: Console) -> int:
    """Let a retiring key work longer."""
    client = console.client(args.socket)
    change = await _change(
        client,
        lambda ring, once: client.extend_key(
            args.id, by_s=args.by, generation=ring.generation, idempotency_key=once
        ),
    )
    until = change.key.expires_at or change.key.created_at
    return _show(
        args, console, change, f"Key {change.key.id} works until {until} ({left(until, time.time())})."
    )


async def undo(args: Namespace, console: Console) -> int:
    """Take back the last rotation of a client."""
    client = console.client(args.socket)
    change = await _change(
        client,
        lambda ring, once: client.undo_key(
            _to_undo(ring, args.name).id, generation=ring.generation, idempotency_key=once
        ),
    )
    gone = "" if change.old is None else f"; {change.old.id} is revoked"
    return _show(args, console, change, f"Key {change.key.id} of {change.key.client} is active again{gone}.")


async def revoke(args: Namespace, console: Console) -> int:
    """End a key now. Naming the key, it is still right after somebody else's change: a lost race is rerun."""
    client = console.client(args.socket)
    for attempt in range(1, _REVOKE_TRIES + 1):
        try:
            change = await _change(
                client,
                lambda ring, once: client.revoke_key(
                    args.id, cut=args.cut, generation=ring.generation, idempotency_key=once
                ),
            )
            break
        except Refused as refusal:
            if refusal.status != _LOST_RACE or attempt == _REVOKE_TRIES:
                raise
    said = f"Key {change.key.id} of {change.key.client} is dead."
    said += (
        f" {counted(change.cut, 'open stream')} ended."
        if args.cut
        else " Streams that it opened go on to their end."
    )
    ring = await client.keys()
    if not any(key.client == change.key.client and key.state in _LIVE for key in ring.keys):
        said += f" {change.key.client} has no key now: relayd keys add {change.key.client}"
    return _show(args, console, change, said)


async def _change(client: AdminClient, change: Change) -> KeyChange:
    """Make a change of the ring as it is now; if the answer is lost, ask once more under the same key."""
    ring, once = await client.keys(), uuid.uuid4().hex
    try:
        return await change(ring, once)
    except AnswerUnknown:
        return await change(ring, once)


def _active(ring: Ring, name: str) -> KeyInfo:
    """The active key of a client; its id does as well."""
    for key in ring.keys:
        if key.state is KeyState.ACTIVE and name in (key.client, key.id):
            return key
    clients = sorted({key.client for key in ring.keys if key.state is KeyState.ACTIVE})
    raise Refused(
        404,
        "no_such_client",
        f"No client {name[:64]!r} has an active key. Clients: {', '.join(clients) or 'none'}.",
    )


def _to_undo(ring: Ring, name: str) -> KeyInfo:
    """The retiring key that a client's latest rotation left; its id, or its successor's, does as well."""
    active = {key.id for key in ring.keys if key.state is KeyState.ACTIVE}
    retiring = [
        key
        for key in ring.keys
        if key.state is KeyState.RETIRING and name in (key.client, key.id, key.replaced_by)
    ]
    if not retiring:
        raise Refused(404, "nothing_to_undo", f"No key of {name[:64]!r} is retiring: nothing can be undone.")
    return max(retiring, key=lambda key: (key.replaced_by in active, key.expires_at or ""))


def _show_new(args: Namespace, console: Console, change: KeyChange, *sentences: str) -> int:
    if args.json:
        console.json(change)
        return 0
    if change.secret is None:
        console.note(
            f"relayd: {sentences[0]} But the answer with the key itself was lost on the way, and it can't be "
            f"shown again. {_way_back(change)}"
        )
        return 1
    console.note(f"{sentences[0]} It is shown only this once:")
    console.err.flush()
    try:
        console.say(change.secret)
        console.out.flush()
    except OSError as error:
        # Nobody has the key now, so nobody may believe that the change is complete.
        console.give_up_output()
        console.note(
            f"relayd: the new key could not be written ({error.strerror}), and it can't be shown again. "
            f"{_way_back(change)}"
        )
        return 1
    for sentence in sentences[1:]:
        console.note(sentence)
    return 0


def _way_back(change: KeyChange) -> str:
    name = change.key.client
    if change.old is not None:
        return f"Take the rotation back: relayd keys undo {name}"
    return f"Rotate it for one that you can see: relayd keys rotate {name} --grace 0s"


def _show(args: Namespace, console: Console, change: KeyChange, sentence: str) -> int:
    if args.json:
        console.json(change)
    else:
        console.say(sentence)
    return 0
