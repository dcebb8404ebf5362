"""Asks the demo upstream over a raw socket, and reads its event streams by the letter of the standard."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from relayd.demo import DemoUpstream
from tests.wire import Reply, Wire, post

PATH = "/v1/chat/completions"


def port_of(upstream: DemoUpstream) -> int:
    """The port that an upstream listens on."""
    return int(upstream.base_url.split(":")[2].removesuffix("/v1"))


def question(model: str, text: str = "hi", *, stream: bool = True, usage: bool = False) -> bytes:
    """The JSON of a chat-completions request."""
    fields: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}]}
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": usage}}
    return json.dumps(fields).encode()


def chat(payload: bytes, *, key: str = "demo", demo: str | None = None) -> bytes:
    """The bytes of a chat-completions request; `demo` is the X-Demo header."""
    return post(f"Bearer {key}", payload, {"X-Demo": demo} if demo else None, path=PATH)


async def ask(upstream: DemoUpstream, payload: bytes, *, key: str = "demo", demo: str | None = None) -> Reply:
    """Send one request on a connection of its own and read all of the answer."""
    async with await Wire.open(port_of(upstream)) as wire:
        wire.send(chat(payload, key=key, demo=demo))
        return await wire.reply()


def event_data(body: bytes) -> list[bytes]:
    """The data of each event of a stream; WHATWG HTML, section 9.2.6, byte for byte.

    An event without its blank line at the end is no event.
    """
    lines = re.split(rb"\r\n|\r|\n", body.removeprefix(b"\xef\xbb\xbf"))
    found: list[bytes] = []
    data: list[bytes] = []
    for line in lines[:-1]:
        if not line:
            if data:
                found.append(b"\n".join(data))
            data = []
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
    return found


def payloads(body: bytes) -> list[dict[str, Any]]:
    """The JSON of each event; `[DONE]` must be the last one and is left out."""
    data = event_data(body)
    assert data[-1] == b"[DONE]", data[-1]
    return [json.loads(item) for item in data[:-1]]


def text_of(chunks: Sequence[dict[str, Any]], field: str = "content") -> str:
    """What the deltas of the first choice add up to."""
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk.get("choices")]
    return "".join(delta.get(field) or "" for delta in deltas)


def finish_of(chunks: Sequence[dict[str, Any]]) -> str | None:
    """The one finish reason; None where there is none."""
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk.get("choices")]
    found = [reason for reason in reasons if reason is not None]
    assert len(found) < 2, found
    return found[0] if found else None
