"""`relayd keys`: the key ring, and its changes.

A new key is the only thing on stdout, alone on its line, so that a script can take it; what it means
and the next steps are printed to stderr.
"""

from __future__ import annotations

import io
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from getpass import getpass
from http import HTTPStatus
from typing import TypeVar

from relayd.admin.client import AdminClient, AnswerUnknown, Refused
from relayd.admin.key_search import MAX_CHARS, Verdict, find_owner
from relayd.admin.schema import LIVE_STATES, InstanceRing, KeyChange, KeyInfo, KeyState, Ring
from relayd.commands.console import EXIT_FAILED, Console, ago, left, show, streams_after
from relayd.printable import plural

_DEAD_SHOWN = 5

Change = Callable[..., Awaitable[KeyChange]]
"""A method of the client that lacks only `generation` and `idempotency_key`."""
_TRIES = 5

T = TypeVar("T")


async def list_keys(args: Namespace, console: Console) -> int:
    """Show the live keys, and the latest dead ones."""
    ring = await console.client(args.socket).keys()
    if args.json:
        console.json(ring)
        return 0
    now_s = time.time()
    live = [key for key in ring.keys if key.state in LIVE_STATES]
    dead = [key for key in ring.keys if key.state not in LIVE_STATES]
    rows = [("KEY", "CLIENT", "FINGERPRINT", "STATE")]
    rows += [
        (key.id, key.client, key.fingerprint, _key_state(key, now_s)) for key in live + dead[-_DEAD_SHOWN:]
    ]
    console.table(rows)
    if len(dead) > _DEAD_SHOWN:
        console.note(f"{plural(len(dead) - _DEAD_SHOWN, 'older dead key')} not shown; --json has them.")
    return 0


async def add(args: Namespace, console: Console) -> int:
    """Make a key for a new client."""
    client = console.client(args.socket)
    change = await _change(client, lambda _ring: partial(client.add_key, args.name))
    return _show_new(args, console, change, f"Client {args.name} has the key {change.key.id} now.")


async def import_key(args: Namespace, console: Console) -> int:
    """Give a new client a key of the operator's own, which is read from stdin or asked for."""
    given = getpass("The key, which is not shown: ") if sys.stdin.isatty() else sys.stdin.readline()
    client = console.client(args.socket)
    change = await _change(client, lambda _ring: partial(client.add_key, args.name, given.strip()))
    return _show(
        args, console, change, f"Client {args.name} has the given key now; its id is {change.key.id}."
    )


async def find(args: Namespace, console: Console) -> int:
    """Say whose key it is that is read from stdin or asked for; only its digest goes to the daemon."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Around the key there may be anything: a log, a core dump.
        sys.stdin.reconfigure(errors="replace")
    given = getpass("The key, which is not shown: ") if sys.stdin.isatty() else sys.stdin.read(MAX_CHARS)
    client = console.client(args.socket)
    found = await find_owner(given, client.find_key, (await client.keys()).keys)
    is_known = found.verdict is Verdict.KNOWN
    if args.json:
        console.json(found)
    elif found.key is None or not is_known:
        console.note(f"relayd: {found.sentence}")
    else:
        console.say(found.sentence)
        console.say(f"{found.key.id} is {_key_state(found.key, time.time())}.")
        if found.key.state in LIVE_STATES:
            console.tell(f"End it now: relayd keys revoke {found.key.id} --cut")
    return 0 if is_known else EXIT_FAILED


async def rotate(args: Namespace, console: Console) -> int:
    """Make a new key for a client; the current one retires."""
    client = console.client(args.socket)
    change = await _change(
        client,
        lambda ring: partial(client.rotate_key, _active_key(ring, args.name).id, grace_s=args.grace),
    )
    old, name = change.old, change.key.client
    sentences = [f"Client {name} has the new key {change.key.id}, which works from now on."]
    if old is not None and old.expires_at is not None:
        choices = (f"extend {old.id} 1h", f"undo {name}", f"revoke {old.id}")
        sentences += [
            f"The old key {old.id} works until {old.expires_at} ({left(old.expires_at, time.time())}).",
            f"Until then: {' | '.join(f'relayd keys {choice}' for choice in choices)}",
        ]
    return _show_new(args, console, change, *sentences)


async def extend(args: Namespace, console: Console) -> int:
    """Let a retiring key work longer."""
    client = console.client(args.socket)
    change = await _change(
        client,
        lambda ring: partial(client.extend_key, _key_id(ring, args.id, [KeyState.RETIRING]), by_s=args.by),
    )
    until = change.key.expires_at or change.key.created_at
    return _show(
        args, console, change, f"Key {change.key.id} works until {until} ({left(until, time.time())})."
    )


async def undo(args: Namespace, console: Console) -> int:
    """Take back the last rotation of a client."""
    client = console.client(args.socket)
    change = await _change(client, lambda ring: partial(client.undo_key, _key_to_undo(ring, args.name).id))
    gone = "" if change.old is None else f"; {change.old.id} is revoked"
    return _show(args, console, change, f"Key {change.key.id} of {change.key.client} is active again{gone}.")


async def revoke(args: Namespace, console: Console) -> int:
    """End a key now.

    The command names the key, so it stays right after another operator's change: a lost race is repeated.
    """
    client = console.client(args.socket)

    def choose(ring: Ring) -> Change:
        return partial(client.revoke_key, _key_id(ring, args.id, LIVE_STATES), cut=args.cut)

    change = await retried(partial(_change, client, choose))
    name = change.key.client
    streams = streams_after(change.cut if args.cut else None)
    sentence = f"Key {change.key.id} of {name} is revoked. {streams}"
    if not any(key.client == name and key.state in LIVE_STATES for key in (await client.keys()).keys):
        sentence += f" {name} has no key now: `relayd keys add {name}` makes one."
    return _show(args, console, change, sentence)


async def _change(client: AdminClient, choose: Callable[[Ring], Change]) -> KeyChange:
    """Change the current keys once."""
    ring = await client.keys()
    return await once(choose(ring), ring.generation)


def _key_id(ring: Ring, name: str, states: Collection[KeyState]) -> str:
    """Return the id of a key, which may also be named by its client if no other key can be meant."""
    if any(key.id == name for key in ring.keys):
        return name
    keys = [key for key in ring.keys if key.client == name and key.state in states]
    if len(keys) > 1:
        choices = ", ".join(f"{key.id} ({key.state.value})" for key in keys)
        raise Refused(
            HTTPStatus.CONFLICT, "several_keys", f"{name[:64]} has {len(keys)} keys; name one: {choices}."
        )
    # A name that is neither is refused by the daemon, in its words for an unknown id.
    return keys[0].id if keys else name


def _active_key(ring: Ring, name: str) -> KeyInfo:
    """Return the active key of a client, which may also be named by the id of the key."""
    for key in ring.keys:
        if key.state is KeyState.ACTIVE and name in (key.client, key.id):
            return key
    clients = sorted({key.client for key in ring.keys if key.state is KeyState.ACTIVE})
    raise Refused(
        HTTPStatus.NOT_FOUND,
        "no_such_client",
        f"No client {name[:64]!r} has an active key. Clients: {', '.join(clients) or 'none'}.",
    )


def _key_to_undo(ring: Ring, name: str) -> KeyInfo:
    """Return the retiring key of a client's latest rotation, also by its own id or its successor's."""
    active = {key.id for key in ring.keys if key.state is KeyState.ACTIVE}
    retiring = [
        key
        for key in ring.keys
        if key.state is KeyState.RETIRING and name in (key.client, key.id, key.replaced_by)
    ]
    if not retiring:
        raise Refused(
            HTTPStatus.NOT_FOUND,
            "nothing_to_undo",
            f"No key of {name[:64]!r} is retiring: nothing can be undone.",
        )
    return max(retiring, key=lambda key: (key.replaced_by in active, key.expires_at or ""))


def _show(args: Namespace, console: Console, change: KeyChange, sentence: str) -> int:
    return show(args, console, change, " ".join([sentence, *have_it(change.instances)]))


def _show_new(args: Namespace, console: Console, change: KeyChange, *sentences: str) -> int:
    if args.json:
        console.json(change)
        return 0
    more = [*sentences[1:], *have_it(change.instances)]
    return show_secret(console, change.secret, sentences[0], _way_back(change), more)


def show_secret(
    console: Console, secret: str | None, sentence: str, way_back: str, more: Sequence[str]
) -> int:
    """Write a new key alone to stdout, and the rest beside it; return the exit status.

    Args:
        console: where to write.
        secret: the key; None if the answer that had it was lost.
        sentence: what has happened; it ends with the key.
        way_back: what to do if the key can't be shown.
        more: lines that follow the key.
    """
    if secret is None:
        console.note(
            f"relayd: {sentence} But the answer with the key itself was lost on the way, and it can't be "
            f"shown again. {way_back}"
        )
        return EXIT_FAILED
    console.note(f"{sentence} It is shown only this once:")
    console.err.flush()
    try:
        console.say(secret)
        console.out.flush()
    except OSError as error:
        # The key is lost, so the change must not look complete.
        console.discard_output()
        console.note(
            f"relayd: the new key could not be written ({error.strerror}), and it can't be shown again. "
            f"{way_back}"
        )
        return EXIT_FAILED
    for line in more:
        console.note(line)
    return 0


def _way_back(change: KeyChange) -> str:
    name = change.key.client
    if change.old is not None:
        return f"Take the rotation back: relayd keys undo {name}"
    return f"Make another, which you can see: relayd keys rotate {name} --grace 0s"


def _key_state(key: KeyInfo, now_s: float) -> str:
    """Return `retiring, 42m left, last used 3s ago from 1.2.3.4`."""
    if key.state is KeyState.RETIRING and key.expires_at is not None:
        state = f"retiring, {left(key.expires_at, now_s)}"
    elif key.state is KeyState.ACTIVE:
        state = f"active, made {ago(key.created_at, now_s)}"
    else:
        end = key.revoked_at or key.expires_at
        state = key.state.value if end is None else f"{key.state.value} {ago(end, now_s)}"
    if key.last_used_at is None:
        return f"{state}, never used"
    return f"{state}, last used {ago(key.last_used_at, now_s)} from {key.last_used_ip}"


async def once(change: Callable[..., Awaitable[T]], generation: int) -> T:
    """Make a change; if the answer is lost, ask again with the same idempotency key.

    Args:
        change: a method of the client that lacks only `generation` and `idempotency_key`.
        generation: of the ring that the change was decided on.
    """
    request = partial(change, generation=generation, idempotency_key=uuid.uuid4().hex)
    try:
        return await request()
    except AnswerUnknown as unknown:
        try:
            return await request()
        except Refused as refusal:
            if refusal.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            # That the second did not happen says nothing of the first.
            raise unknown from refusal


async def retried(attempt: Callable[[], Awaitable[T]]) -> T:
    """Make a change that stays right after another operator's: a lost race is repeated.

    Args:
        attempt: reads the generation anew each time.
    """
    for _ in range(_TRIES - 1):
        try:
            return await attempt()
        except Refused as refusal:
            if refusal.status != HTTPStatus.PRECONDITION_FAILED:
                raise
    return await attempt()


def have_it(instances: Sequence[InstanceRing]) -> list[str]:
    """Return the sentence on which instances have a change; none if there is only one."""
    count = len(instances)
    if count <= 1:
        return []
    late = [instance.name for instance in instances if not instance.has_it]
    if not late:
        return [f"All {count} instances have it."]
    sentence = f"{count - len(late)} of {count} instances have it; not yet: {', '.join(late)}."
    return [f"{sentence} `relayd status` shows when all do."]
