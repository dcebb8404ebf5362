"""The requests of programs that are too large to install, as their public source makes them.

- Open WebUI: `backend/open_webui/routers/openai.py` of github.com/open-webui/open-webui at 671f577264ed
  (`verify_connection`, `generate_chat_completion`, `embeddings`).
- LibreChat: `packages/api/src/endpoints/models.ts` of github.com/danny-avila/LibreChat at 003bf57e7857
  (`fetchModels`); its chats go through LangChain, see `tests/sdk/node/langchain.test.mjs`.
- Codex: `codex-rs/core/src/client.rs` of github.com/openai/codex at edd459a99368
  (`attempt_stream_responses`); below `codex-rs/codex-api/src`, `endpoint/responses_websocket.rs` at
  00033d92fbc3, `endpoint/compact.rs` at 32dab968dca2, `sse/responses.rs` at 0a7fb0d76276 (`process_sse`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from tests.harness import KEY, running_relay
from tests.sdk.harness import V1
from tests.support.upstream_api import MODELS, vector
from tests.support.upstream_script import WORDS
from tests.wire import HOST, PATIENCE_S

_USER = {
    "X-OpenWebUI-User-Name": "Ada",
    "X-OpenWebUI-User-Id": "8b1c",
    "X-OpenWebUI-User-Email": "ada@example.org",
    "X-OpenWebUI-User-Role": "admin",
}
_AIOHTTP = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate", "User-Agent": "Python/3.11 aiohttp/3.12.15"}
_CODEX = {
    "OpenAI-Beta": "responses=experimental",
    "conversation_id": "0199b5a2",
    "session_id": "0199b5a2",
    "originator": "codex_cli_rs",
    "version": "0.46.0",
    "User-Agent": "codex_cli_rs/0.46.0 (Debian 12.0.0; x86_64)",
    "Accept": "text/event-stream",
}


@pytest.fixture
def http(v1: V1) -> Iterator[httpx2.Client]:
    """A client that sends only what it is told to."""
    headers = {"Authorization": f"Bearer {v1.key}"}
    with httpx2.Client(headers=headers, timeout=PATIENCE_S, trust_env=False) as client:
        yield client


def test_open_webui_verifies_its_connection(v1: V1, http: httpx2.Client) -> None:
    """The list has `data` with ids; what it tells of its user goes no further."""
    known = len(v1.upstream.requests)
    reply = http.get(
        f"{v1.base_url}/models", headers={"Content-Type": "application/json", **_AIOHTTP, **_USER}
    )
    assert reply.status_code == 200
    assert [model["id"] for model in reply.json()["data"]] == list(MODELS)
    (asked,) = v1.upstream.requests[known:]
    assert [name for name in asked.headers if name.startswith("x-openwebui")] == []


def test_open_webui_streams_a_chat(v1: V1, http: httpx2.Client) -> None:
    """It passes the lines that begin with `data:` on, after it has looked at status and content type."""
    payload = {
        "model": (model := v1.model()),
        "messages": [{"role": "user", "content": "Say hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Content-Type": "application/json", **_AIOHTTP, **_USER}
    text = ""
    with http.stream(
        "POST", f"{v1.base_url}/chat/completions", content=json.dumps(payload), headers=headers
    ) as r:
        assert "text/event-stream" in r.headers["Content-Type"]
        lines = [line for line in r.iter_lines() if line.startswith("data:")]
    for line in lines[:-1]:
        for choice in json.loads(line.removeprefix("data:"))["choices"]:
            text += choice["delta"].get("content") or ""
    assert (text, lines[-1]) == (WORDS, "data: [DONE]")
    asked = v1.asked_once(model)
    assert asked.body == json.dumps(payload).encode()
    assert "ada@example.org" not in str(asked.headers)


def test_open_webui_shows_a_refusal_and_makes_embeddings(v1: V1, http: httpx2.Client) -> None:
    """The sentence that it shows is in `error.message`."""
    headers = {"Content-Type": "application/json", **_AIOHTTP}
    payload = {"model": v1.model("fault=status,code=429,message=Slow%20down"), "messages": [], "stream": True}
    refused = http.post(f"{v1.base_url}/chat/completions", content=json.dumps(payload), headers=headers)
    assert (refused.status_code, refused.json()["error"]["message"]) == (429, "Slow down")
    payload = {"model": v1.model(), "input": ["one"]}
    made = http.post(f"{v1.base_url}/embeddings", content=json.dumps(payload), headers=headers)
    assert made.json()["data"][0]["embedding"] == vector('"one"')


def test_librechat_fetches_the_models(v1: V1, http: httpx2.Client) -> None:
    """It takes `data[].id`."""
    headers = {"Accept": "application/json, text/plain, */*", "User-Agent": "axios/1.12.2"}
    reply = http.get(f"{v1.base_url}/models", headers=headers)
    assert [item["id"] for item in reply.json()["data"]] == list(MODELS)


@dataclass(slots=True)
class _Turn:
    """What Codex makes of a stream."""

    text: str = ""
    items: list[dict[str, Any]] = field(default_factory=list)
    completed: str | None = None
    error: dict[str, Any] | None = None


def _process_sse(lines: Iterator[str]) -> _Turn:
    """Read events as Codex does: by the `type` in their data; what is no JSON is skipped."""
    turn = _Turn()
    for line in lines:
        if not line.startswith("data:"):
            continue
        event = json.loads(line.removeprefix("data:"))
        if event["type"] == "response.output_text.delta":
            turn.text += event["delta"]
        elif event["type"] == "response.output_item.done":
            turn.items.append(event["item"])
        elif event["type"] == "response.failed":
            turn.error = event["response"]["error"]
        elif event["type"] == "response.completed":
            turn.completed = event["response"]["id"]
    return turn


def _codex_request(model: str) -> dict[str, Any]:
    said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say hi"}]}
    return {
        "model": model,
        "instructions": "You are a coding agent.",
        "input": [said],
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199b5a2",
    }


def test_codex_tries_a_websocket_and_falls_back(v1: V1, http: httpx2.Client) -> None:
    """426 makes it ask by HTTP from then on."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Extensions": "permessage-deflate"}
    reply = http.get(f"{v1.base_url}/responses", headers={**upgrade, **key, **_CODEX})
    assert reply.status_code == 426


def test_codex_takes_a_turn(v1: V1, http: httpx2.Client) -> None:
    """Text, items and the end; of its headers only what the provider needs goes on."""
    request = _codex_request(v1.model())
    with http.stream("POST", f"{v1.base_url}/responses", json=request, headers=_CODEX) as reply:
        turn = _process_sse(reply.iter_lines())
    assert (turn.text, turn.error) == (WORDS, None)
    assert turn.items[0]["content"][0]["text"] == WORDS
    assert turn.completed is not None
    asked = v1.asked_once(request["model"])
    assert json.loads(asked.body) == request
    assert asked.headers["openai-beta"] == "responses=experimental"
    assert {"session_id", "conversation_id", "originator"} & asked.headers.keys() == set()


@pytest.mark.parametrize("fault", ["cut_mid", "cut_fin", "end_early", "bad_json"])
def test_codex_is_told_that_a_turn_broke_off(v1: V1, http: httpx2.Client, fault: str) -> None:
    """By a code that it does not take for final, so that it tries again."""
    request = _codex_request(v1.model(f"fault={fault}"))
    with http.stream("POST", f"{v1.base_url}/responses", json=request, headers=_CODEX) as reply:
        turn = _process_sse(reply.iter_lines())
    assert turn.completed is None
    assert turn.error is not None
    assert turn.error["code"] in {"upstream_failed", "upstream_truncated"}
    assert turn.error["message"]


def test_codex_compacts_a_conversation(v1: V1, http: httpx2.Client) -> None:
    """Its turn fails if the path is missing."""
    whole = _codex_request(v1.model())
    request = {name: whole[name] for name in ("model", "input", "instructions")}
    reply = http.post(f"{v1.base_url}/responses/compact", json=request, headers=_CODEX)
    assert reply.status_code == 200
    assert reply.json()["output"][0]["type"] == "compaction"


async def test_codex_stops_when_its_budget_is_used_up() -> None:
    """`insufficient_quota` is final for it: 429 with that code, and no retry asked for."""
    async with running_relay() as relay, httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        headers = {"Authorization": f"Bearer {KEY}", **_CODEX}
        model = "demo:fault=status,code=429,error=insufficient_quota"
        url = f"http://{HOST}:{relay.port}/v1/responses"
        reply = await client.post(url, json=_codex_request(model), headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "insufficient_quota")
