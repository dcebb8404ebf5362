"""Which endpoints of OpenAI's API `/v1` relays, and what is known of each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

import msgspec

from relayd.relay.openai_streams import StreamProtocol

PREFIX = "/v1"
_ID = r"[^/]+"
_BUILT_IN = [
    (method, re.compile(pattern))
    for method, pattern in (
        ("GET", r"/models(?:/.+)?"),
        ("POST", r"/chat/completions"),
        ("POST", rf"/responses(?:/compact|/{_ID}/cancel)?"),
        ("GET", rf"/responses/{_ID}"),
        ("DELETE", rf"/responses/{_ID}"),
        ("POST", r"/completions|/embeddings|/moderations"),
        ("POST", r"/images/(?:generations|edits|variations)"),
        ("POST", r"/audio/(?:speech|transcriptions|translations)"),
    )
]
_CHAT = re.compile(r"/(?:chat/)?completions")
_OBJECT = re.compile(r"/(responses|conversations|files)(?:/([^/]+))?(/.*)?")
_NO_OBJECTS = frozenset({"compact", "input_tokens"})
"""What stands where else an id does."""
_COSTLY = re.compile(
    r"/(?:chat/completions|responses(?:/compact)?|completions|embeddings|images/.+|audio/.+)"
)
_FREE = re.compile(
    rf"/(?:moderations|responses/(?:input_tokens|{_ID}/cancel)|conversations(?:/.+)?|files|uploads(?:/.+)?)"
)
"""Where a POST costs nothing."""
_WITHOUT_TOKENS_OUT = re.compile(r"/(?:embeddings|moderations)")


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One method and path, allowed here.

    Attributes:
        method: of the request.
        path: below `/v1`, as the client wrote it.
        protocol: of a stream.
        kind: the collection of stored objects, if it is one.
        object_id: the id of such an object in the path.
        creates: whether the answer has the id of a new object.
        costs: whether a model is asked.
        has_output: whether it answers with tokens.
    """

    method: str
    path: str
    protocol: StreamProtocol = StreamProtocol.OTHER
    kind: str | None = None
    object_id: str | None = None
    creates: bool = False
    costs: bool = False
    has_output: bool = True

    @property
    def is_uncounted(self) -> bool:
        """Whether it may cost what relayd cannot count: a batch, a fine-tuning job."""
        return self.method == "POST" and not self.costs and _FREE.fullmatch(self.path) is None

    @property
    def answers_with_text(self) -> bool:
        """Whether its answer is text, not sound or images."""
        return self.protocol is not StreamProtocol.OTHER or self.path.startswith("/audio/trans")

    @property
    def is_models(self) -> bool:
        """Whether models are listed, or one is shown."""
        return self.path.split("/")[1] == "models"


class V1Rules(msgspec.Struct, frozen=True):
    """The operator's rules for `/v1`.

    Args:
        enabled: whether there is anything.
        allow: what is open beside the usual, as `METHOD /v1/path`; `*` stands for any text.
        max_body_bytes: bound of a request's body.
    """

    enabled: bool = True
    allow: tuple[str, ...] = ()
    max_body_bytes: int = 32 << 20

    def find(self, method: str, path: str) -> Endpoint | None:
        """Return the endpoint of a request if it is open."""
        if not self.enabled or not path.startswith(f"{PREFIX}/") or not _is_plain(path):
            return None
        below = path.removeprefix(PREFIX)
        is_open = any(method == known and pattern.fullmatch(below) for known, pattern in _BUILT_IN)
        if not is_open and not _is_allowed(f"{method} {path}", self.allow):
            return None
        return _describe(method, below)


def _is_plain(path: str) -> bool:
    """Return whether a path means the same to every server: nothing in it leads elsewhere once it is decoded.

    Only models have ids with what must be encoded, such as a slash: `/v1/models/meta-llama%2FLlama-3`.
    """
    if "%" in path and not path.startswith(f"{PREFIX}/models/"):
        return False
    decoded = unquote(path)
    if "\\" in decoded or "%" in decoded or any(ord(char) < ord(" ") for char in decoded):
        return False
    return not any(part in {"", ".", ".."} for part in decoded.split("/")[1:])


def _is_allowed(request: str, allow: Iterable[str]) -> bool:
    """Return whether a pattern matches `METHOD /v1/path`; `*` stands for any text."""
    return any(re.fullmatch(".*".join(map(re.escape, entry.split("*"))), request) for entry in allow)


def _describe(method: str, path: str) -> Endpoint:
    protocol = StreamProtocol.OTHER
    kind = object_id = None
    creates = False
    if _CHAT.fullmatch(path):
        protocol = StreamProtocol.CHAT
    elif (found := _OBJECT.fullmatch(path)) is not None:
        kind = found[1]
        object_id = None if found[2] in _NO_OBJECTS else found[2]
        creates = method == "POST" and found[2] is None
        if kind == "responses":
            protocol = StreamProtocol.RESPONSES
    return Endpoint(
        method=method,
        path=path,
        protocol=protocol,
        kind=kind,
        object_id=object_id,
        creates=creates,
        costs=method == "POST" and _COSTLY.fullmatch(path) is not None,
        has_output=_WITHOUT_TOKENS_OUT.fullmatch(path) is None,
    )
