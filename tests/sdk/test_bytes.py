"""What reaches the client is what the provider sent, byte for byte, on every path; and the other way."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.sdk.harness import SHAPES, V1
from tests.support.upstream_api import noise
from tests.wire import PATIENCE_S

_CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Grüße, 世界 \ud83d"}]}
_USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
_BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/chat/completions", _CHAT),
    "chat stream": ("/chat/completions", {**_CHAT, **_USAGE, "stream": True}),
    "completion": ("/completions", {"prompt": "Say hi"}),
    "completion stream": ("/completions", {"prompt": "Say hi", **_USAGE, "stream": True}),
    "response": ("/responses", {"input": "Say hi"}),
    "response stream": ("/responses", {"input": "Say hi", "stream": True}),
    "compact": ("/responses/compact", {"input": "Say hi"}),
    "embedding": ("/embeddings", {"input": ["one", "two"]}),
    "moderation": ("/moderations", {"input": "Say hi"}),
    "image": ("/images/generations", {"prompt": "A dot"}),
    "image stream": ("/images/generations", {"prompt": "A dot", "stream": True}),
    "speech": ("/audio/speech", {"input": "Say hi", "voice": "alloy"}),
    "speech stream": ("/audio/speech", {"input": "Say hi", "voice": "alloy", "stream_format": "sse"}),
}


def _ask(v1: V1, path: str, **sent: Any) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {v1.key}", **sent.pop("headers", {})}
    with httpx2.Client(trust_env=False, timeout=PATIENCE_S) as client:
        return client.post(v1.base_url + path, headers=headers, **sent)


@pytest.mark.parametrize("name", _BODIES)
def test_a_json_request_and_its_answer_pass_unchanged(v1: V1, name: str) -> None:
    """Also with spaces where no encoder would put them, and half a surrogate pair."""
    path, fields = _BODIES[name]
    model = v1.model()
    body = json.dumps({"model": model, **fields}, indent=3).encode()
    reply = _ask(v1, path, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 200
    asked = v1.asked_once(model)
    assert asked.body == body
    assert reply.content == asked.answer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["chat stream", "response stream"])
def test_a_stream_of_any_form_passes_unchanged(v1: V1, name: str, shape: str) -> None:
    """Comments, ids, paddings and line ends are the provider's own."""
    path, fields = _BODIES[name]
    model = v1.model(f"fault={shape}")
    body = json.dumps({"model": model, **fields})
    reply = _ask(v1, path, content=body, headers={"Content-Type": "application/json"})
    assert reply.content == v1.asked_once(model).answer


@pytest.mark.parametrize("path", ["/audio/transcriptions", "/audio/translations"])
@pytest.mark.parametrize("stream", ["true", "false"])
def test_an_upload_and_its_answer_pass_unchanged(v1: V1, path: str, stream: str) -> None:
    """With the file first or last."""
    model = v1.model()
    fields: dict[str, Any] = {"model": (None, model), "stream": (None, stream)}
    file: dict[str, Any] = {"file": ("speech.mp3", noise(200_000), "audio/mpeg")}
    for files in ({**fields, **file}, {**file, **fields}):
        known = len(v1.upstream.requests)
        upload = httpx2.Request("POST", v1.base_url, files=files)
        body = upload.read()
        reply = _ask(v1, path, content=body, headers={"Content-Type": upload.headers["Content-Type"]})
        (asked,) = v1.upstream.requests[known:]
        assert asked.body == body
        assert (reply.status_code, reply.content) == (200, asked.answer)


def test_headers_of_the_owner_stay_behind(v1: V1) -> None:
    """Both ways: cookies, organisation and limits of the account; what SDKs read comes through."""
    model = v1.model()
    sent = {"Cookie": "a=b", "OpenAI-Organization": "org-of-the-client", "X-Forwarded-For": "192.0.2.7"}
    reply = _ask(v1, "/responses", json={"model": model, "input": "Hi"}, headers=sent)
    asked = v1.asked_once(model)
    assert {"openai-organization", "x-forwarded-for", "user-agent"} & asked.headers.keys() == set()
    assert "cookie" not in asked.request.headers
    names = {name.lower() for name in reply.headers}
    assert {"set-cookie", "openai-organization", "openai-project"} & names == set()
    assert [name for name in names if name.startswith("x-ratelimit")] == []
    assert reply.headers["openai-version"] == "2020-10-01"
    assert reply.headers["openai-processing-ms"] == "12"
    assert not reply.headers["x-request-id"].startswith("req_demo")
