"""`relayd clients`: named clients, each with its keys and its bounds."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Awaitable, Callable
from functools import partial

from relayd.admin.client import AdminClient
from relayd.admin.schema import Client, ClientChange, ClientInfo, epoch_s
from relayd.commands.client_options import bounds_in
from relayd.commands.console import Console, ago, show, streams_after, usd
from relayd.commands.keys import have_it, once, retried, show_secret
from relayd.durations import short
from relayd.printable import plural
from relayd.state.bounds import allows

_BOUNDS = tuple(name for name in Client.__struct_fields__ if name not in {"name", "created_at", "removed_at"})
_LABELS = {
    "models": "models {}",
    "endpoints": "endpoints {}",
    "origins": "origins {}",
    "max_streams": "{} at once",
    "requests_per_minute": "{} requests/min",
    "tokens_per_minute": "{} tokens/min",
    "tokens_per_day": "{} tokens/day",
    "tokens_per_month": "{} tokens/month",
    "max_output_tokens": "{} tokens an answer",
    "usd_per_day": "{}/day",
    "usd_per_month": "{}/month",
}


async def list_clients(args: Namespace, console: Console) -> int:
    """Show every client: its keys, what it used, and its bounds."""
    found = await console.client(args.socket).clients()
    if args.json:
        console.json(found)
        return 0
    now_s = time.time()
    rows = [_row(client, now_s) for client in found.clients if client.removed_at is None]
    console.table([("CLIENT", "KEYS", "TODAY", "THIS MONTH", "LAST USE", "BOUNDS"), *rows])
    return 0


async def add(args: Namespace, console: Console) -> int:
    """Make a client with its bounds and its first key, and say how to use it."""
    client = console.client(args.socket)
    # Asked for first: nothing may fail between the change and the key on the screen.
    address = (await client.status()).address
    change = await _change(client, partial(client.add_client, args.name, bounds_in(args, _BOUNDS)))
    if args.json:
        console.json(change)
        return 0
    bounds = _bounds(change.client, time.time()) or "without bounds"
    key_id = "" if change.key is None else f" {change.key.id}"
    sentence = f"Client {args.name} is added ({bounds}), with the key{key_id}."
    way_back = f"Make another, which you can see: relayd keys rotate {args.name} --grace 0s"
    more = [*have_it(change.instances), *_how_to_use(change.client, address)]
    return show_secret(console, change.secret, sentence, way_back, more)


async def set_bounds(args: Namespace, console: Console) -> int:
    """Change the bounds that are named."""
    client = console.client(args.socket)
    change = await _change(client, partial(client.set_client, args.name, bounds_in(args, _BOUNDS)))
    bounds = _bounds(change.client, time.time()) or "none"
    sentence = f"Client {args.name} has these bounds from its next request on: {bounds}."
    return show(args, console, change, " ".join([sentence, *have_it(change.instances)]))


async def remove(args: Namespace, console: Console) -> int:
    """Remove a client; its keys end for good."""
    client = console.client(args.socket)
    change = await _change(client, partial(client.remove_client, args.name, cut=args.cut))
    streams = streams_after(change.cut if args.cut else None)
    keys = plural(len(change.revoked), "key")
    sentence = f"Client {args.name} is removed. Its keys are revoked ({keys}). {streams}"
    return show(args, console, change, " ".join([sentence, *have_it(change.instances)]))


async def _change(client: AdminClient, change: Callable[..., Awaitable[ClientChange]]) -> ClientChange:
    """Change a client that the command names: after another operator's change it is repeated."""

    async def attempt() -> ClientChange:
        return await once(change, (await client.status()).ring.generation)

    return await retried(attempt)


def _row(client: ClientInfo, now_s: float) -> tuple[str, ...]:
    month = usd(client.month.cost_usd)
    if client.usd_per_month is not None:
        month += f" of {usd(client.usd_per_month)}"
    return (
        client.name,
        str(len(client.keys)),
        f"{plural(client.today.requests, 'request')}, {plural(client.today.tokens, 'token')}",
        month,
        "never" if client.last_used_at is None else ago(client.last_used_at, now_s),
        "; ".join(filter(None, (_bounds(client, now_s), client.note))),
    )


def _bounds(client: Client, now_s: float) -> str:
    """Return the bounds in a few words: `models gpt-4o*; 5 at once; $20.00/month; expires in 3d`."""
    given = ((label, getattr(client, name)) for name, label in _LABELS.items())
    words = [label.format(_shown(value)) for label, value in given if value not in (None, ())]
    if client.expires_at is not None:
        left_s = epoch_s(client.expires_at) - now_s
        words.append(f"expires in {short(left_s)}" if left_s > 0 else f"expired {short(-left_s)} ago")
    return "; ".join(words)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return usd(value) if isinstance(value, float) else f"{value:,}"


def _how_to_use(client: Client, address: str) -> list[str]:
    """Return what the owner of the new key needs: base URLs and a request that works."""
    may_chat = allows(client.endpoints, "/chat")
    may_v1 = not client.endpoints or any(glob.startswith(("/v1/", "/*")) for glob in client.endpoints)
    path = "/chat" if may_chat else "/v1/chat/completions"
    model = "" if may_chat else 'model: "gpt-4o-mini", '
    return [
        *([f"Base URL for OpenAI clients: {address}/v1"] if may_v1 else []),
        *([f"URL for web pages:           {address}/chat"] if may_chat else []),
        f"(Behind a reverse proxy, its address takes the place of {address}.)",
        "",
        f'const reply = await fetch("{address}{path}", {{',
        '  method: "POST",',
        '  headers: { Authorization: "Bearer KEY", "Content-Type": "application/json" },',
        f'  body: JSON.stringify({{ {model}messages: [{{ role: "user", content: "Say hello." }}] }}),',
        "});",
        "console.log(await reply.text());",
    ]
