"""Which paths `/v1` opens, and what is known of each."""

from __future__ import annotations

import pytest

from relayd.public.v1_endpoints import V1Rules
from relayd.relay.openai_streams import StreamProtocol


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /v1/models",
        "GET /v1/models/gpt-4o",
        "GET /v1/models/meta-llama/Llama-3",
        "GET /v1/models/meta-llama%2FLlama-3",
        "POST /v1/chat/completions",
        "POST /v1/responses",
        "GET /v1/responses/resp_1",
        "DELETE /v1/responses/resp_1",
        "POST /v1/responses/resp_1/cancel",
        "POST /v1/responses/compact",
        "POST /v1/completions",
        "POST /v1/embeddings",
        "POST /v1/moderations",
        "POST /v1/images/generations",
        "POST /v1/images/edits",
        "POST /v1/images/variations",
        "POST /v1/audio/speech",
        "POST /v1/audio/transcriptions",
        "POST /v1/audio/translations",
    ],
)
def test_the_usual_endpoints_are_open(request_line: str) -> None:
    """Unless the operator closes all of them."""
    method, path = request_line.split(" ")
    assert V1Rules().find(method, path) is not None
    assert V1Rules(enabled=False).find(method, path) is None


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /v1",
        "GET /v1/",
        "GET /v1/files",
        "POST /v1/files",
        "POST /v1/batches",
        "GET /v1/fine_tuning/jobs",
        "GET /v1/organization/usage",
        "DELETE /v1/models/ft:mine",
        "GET /v1/chat/completions",
        "GET /v1/responses",
        "GET /v1/responses/resp_1/input_items",
        "POST /v1/responses/resp_1/cancel/",
        "GET /v1/responses/..",
        "GET /v1/responses/%2e%2e",
        "GET /v1/responses/..%2ffiles",
        "GET /v1/responses/resp_1%2finput_items",
        "GET /v1/models/%252e%252e",
        "GET /v1/models/a%5cb",
        "GET /v1/models/a%00b",
        "GET /v1/models/../files",
        "GET /v1/models/%2e%2e/files",
        "GET /v1/models//files",
        "GET /v1/models/x%2f..%2f..%2ffiles",
        "POST /v1/chat/completions/",
        "POST /v1/Chat/Completions",
        "POST /v1//chat/completions",
        "POST /v2/chat/completions",
    ],
)
def test_everything_else_is_closed(request_line: str) -> None:
    """Also what another server would take for a path that is not open here."""
    method, path = request_line.split(" ")
    assert V1Rules().find(method, path) is None


def test_the_operator_opens_more() -> None:
    """A pattern's `*` stands for any text; method and path count."""
    rules = V1Rules(allow=("GET /v1/files/*", "* /v1/batches", "POST /v1/responses/input_tokens"))
    opened = ["GET /v1/files/file-1/content", "GET /v1/batches", "POST /v1/responses/input_tokens"]
    closed = ["GET /v1/files", "DELETE /v1/files/file-1", "GET /v1/batches/b", "GET /v1/files/../x"]
    assert all(rules.find(*line.split(" ")) for line in opened)
    assert not any(rules.find(*line.split(" ")) for line in closed)


@pytest.mark.parametrize(
    "path", ["/v1/respons%65s/resp_1", "/v1/ch%61t/completions", "/v1/files/f%69le-1", "/v1/%6dodels/x"]
)
def test_encoded_letters_hide_no_endpoint(path: str) -> None:
    """The rules of an endpoint hold for it however wide the operator opens; only models have such ids."""
    rules = V1Rules(allow=("* /v1/*",))
    assert rules.find("POST", path) is None
    assert rules.find("POST", "/v1/models/meta-llama%2FLlama-3") is not None


@pytest.mark.parametrize(
    ("request_line", "protocol", "kind", "object_id", "creates", "costs"),
    [
        ("POST /v1/chat/completions", StreamProtocol.CHAT, None, None, False, True),
        ("POST /v1/completions", StreamProtocol.CHAT, None, None, False, True),
        ("POST /v1/responses", StreamProtocol.RESPONSES, "responses", None, True, True),
        ("POST /v1/responses/compact", StreamProtocol.RESPONSES, "responses", None, False, True),
        ("GET /v1/responses/resp_1", StreamProtocol.RESPONSES, "responses", "resp_1", False, False),
        ("POST /v1/responses/resp_1/cancel", StreamProtocol.RESPONSES, "responses", "resp_1", False, False),
        ("POST /v1/files", StreamProtocol.OTHER, "files", None, True, False),
        ("GET /v1/files/file-1/content", StreamProtocol.OTHER, "files", "file-1", False, False),
        (
            "POST /v1/conversations/conv_1/items",
            StreamProtocol.OTHER,
            "conversations",
            "conv_1",
            False,
            False,
        ),
        ("POST /v1/embeddings", StreamProtocol.OTHER, None, None, False, True),
        ("POST /v1/moderations", StreamProtocol.OTHER, None, None, False, False),
        ("POST /v1/images/edits", StreamProtocol.OTHER, None, None, False, True),
        ("GET /v1/models/x", StreamProtocol.OTHER, None, None, False, False),
    ],
)
def test_what_an_endpoint_streams_stores_and_costs(
    request_line: str,
    protocol: StreamProtocol,
    kind: str | None,
    object_id: str | None,
    *,
    creates: bool,
    costs: bool,
) -> None:
    """Its path tells."""
    endpoint = V1Rules(allow=("* /v1/*",)).find(*request_line.split(" "))
    assert endpoint is not None
    assert (endpoint.protocol, endpoint.kind, endpoint.object_id) == (protocol, kind, object_id)
    assert (endpoint.creates, endpoint.costs) == (creates, costs)
