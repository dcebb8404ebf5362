"""`GET /models` of several providers, as one list."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.provider import UpstreamRequest, UpstreamResponse
from relayd.relay.provider_errors import load_json
from relayd.relay.transport import ConnectionBroken, IncomingResponse

_TIMEOUT_S = 10.0
_MAX_BYTES = 8 << 20

Models = dict[str, dict[str, Any]]
"""Entries of a list of models, by their ids."""


def asks_for_models(request: UpstreamRequest) -> bool:
    """Return whether a request asks for the list of models."""
    return request.method == "GET" and request.target.partition("?")[0] == "/models"


async def read_models(response: UpstreamResponse) -> Models:
    """Return the models in a response that is no refusal, and close it. Raises RelayError if it has none."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            body = await response.body.read(_MAX_BYTES)
    except (ConnectionBroken, TimeoutError):
        body = b""
    finally:
        response.body.close()
    return models_in(body)


def models_in(body: bytes) -> Models:
    """Return the models in a list, with or without an object around it. Raises RelayError if it is none."""
    try:
        document = load_json(body)
    except ValueError:
        document = None
    entries = document.get("data") if isinstance(document, dict) else document
    if not isinstance(entries, list):
        raise RelayError(ErrorCode.UPSTREAM_FAILED, "The provider's list of models cannot be read.")
    return {
        entry["id"]: entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    }


def list_response(models: Models) -> UpstreamResponse:
    """Return the response that lists these models."""
    body = json.dumps({"object": "list", "data": list(models.values())}).encode()
    headers = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
    return UpstreamResponse(None, 200, headers, None, IncomingResponse.whole(200, headers, body))
