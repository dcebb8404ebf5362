"""`relayd cancel`, `pause`, `resume` and `drain`."""

from __future__ import annotations

from argparse import Namespace

from relayd.admin.schema import Status
from relayd.commands.console import Console, counted


async def cancel(args: Namespace, console: Console) -> int:
    """End one open stream."""
    await console.client(args.socket).cancel(args.id)
    if args.json:
        console.json({"id": args.id, "cancelled": True})
    else:
        console.say(f"Cancelled {args.id}: its client is told so, and the provider's stream is closed.")
    return 0


async def pause(args: Namespace, console: Console) -> int:
    """Take no new work."""
    status = await console.client(args.socket).pause()
    count = _open_streams(status)
    return _answer(
        args,
        console,
        status,
        f"Paused: new requests get 503; {counted(count, 'open stream')} {'goes' if count == 1 else 'go'} on "
        "to the end. `relayd resume` takes new ones again.",
    )


async def resume(args: Namespace, console: Console) -> int:
    """Take new work again."""
    status = await console.client(args.socket).resume()
    return _answer(args, console, status, f"Live: new requests are taken at {status.address}.")


async def drain(args: Namespace, console: Console) -> int:
    """Let the open streams finish, then stop the daemon."""
    status = await console.client(args.socket).drain()
    count = _open_streams(status)
    rest = (
        f"{counted(count, 'open stream')} may take {status.drain_timeout_s:g} s more, then relayd stops."
        if count
        else "no stream is open, so relayd stops now."
    )
    return _answer(args, console, status, f"Draining: new requests get 503; {rest}")


def _answer(args: Namespace, console: Console, status: Status, sentence: str) -> int:
    if args.json:
        console.json(status)
    else:
        console.say(sentence)
    return 0


def _open_streams(status: Status) -> int:
    streams = status.streams
    return streams.connecting + streams.waiting + streams.streaming
