"""What the scripted provider answers on each path of OpenAI's API: see `reply`.

Text comes from `tests.support.upstream_answers`. The other endpoints answer with bytes that depend on the
request alone, so that a test knows them: `noise` for audio, `PNG` for images, size and digest of an
upload for transcriptions.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, Final

from tests.support.upstream_answers import (
    Answer,
    AnswerStream,
    ChatStream,
    CompletionStream,
    ResponseStream,
)
from tests.support.upstream_script import (
    End,
    Request,
    Script,
    Step,
    as_json,
    broken_off,
    error,
    parse,
    steps_of,
    streamed,
    whole,
)

MODELS: Final = ("demo", "gpt-4o-mini")
PNG: Final = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
"""A picture of one pixel."""
_AUDIO_PIECE_BYTES = 1024
_VECTOR = 4
_MODEL = {"object": "model", "created": 1_700_000_000, "owned_by": "openai"}
_FLAGS = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors"),
    *("violence", "violence/graphic"),
)


@dataclass(slots=True)
class Provider:
    """What the provider remembers between requests."""

    attempts: dict[str, int] = field(default_factory=dict)
    """How often each script's `id` was asked."""
    stored: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Responses, conversations and files, by id."""


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a multipart body."""

    name: str
    filename: str
    data: bytes


class _Refused(Exception):
    """The provider does not do this."""

    def __init__(self, status: int, message: str, **said: str) -> None:
        super().__init__(message)
        self.status = status
        self.said = said


def reply(request: Request, provider: Provider) -> Iterator[Step]:
    """Return the steps of the reply to an authorized request."""
    try:
        for method, pattern, handler in _ROUTES:
            if method == request.method and (found := re.fullmatch(pattern, request.path)):
                return handler(request, provider, *found.groups())
    except _Refused as refused:
        return iter([error(request.n, refused.status, str(refused), **refused.said)])
    return iter([error(request.n, 404, f"Invalid URL ({request.method} {request.path})")])


def body_of(request: Request) -> bytes:
    """Return the body of the answer when nothing breaks it off, without the chunks' frame."""
    played = b"".join(step for step in reply(request, Provider()) if isinstance(step, bytes))
    head, _, sent = played.partition(b"\r\n\r\n")
    if b"\r\nTransfer-Encoding: chunked" not in head:
        return sent
    body = bytearray()
    while size := int(sent.partition(b"\r\n")[0], 16):
        start = sent.index(b"\r\n") + 2
        body += sent[start : start + size]
        sent = sent[start + size + 2 :]
    return bytes(body)


def noise(size: int) -> bytes:
    """Return bytes that look like audio: the same for the same size."""
    return random.Random(size).randbytes(size)  # noqa: S311 - not a secret


def multipart(request: Request) -> dict[str, Part]:
    """Return the fields of a multipart body, by name.

    Raises:
        _Refused: it is not one.
    """
    boundary = re.search(r'boundary="?([^";]+)', request.headers.get("content-type", ""))
    if boundary is None:
        raise _Refused(400, "We could not parse your multipart body.")
    parts = {}
    for raw in request.body.split(b"--" + boundary[1].encode())[1:-1]:
        head, _, data = raw.partition(b"\r\n\r\n")
        name = re.search(rb'\bname="?([^";\r]+)', head)
        filename = re.search(rb'filename="?([^";\r]+)', head)
        if name is None:
            raise _Refused(400, "We could not parse your multipart body.")
        part = Part(name[1].decode(), filename[1].decode() if filename else "", data.removesuffix(b"\r\n"))
        parts[part.name] = part
    return parts


def heard(data: bytes) -> str:
    """Return what the provider understands of an audio file."""
    return f"Heard {len(data)} bytes, {hashlib.sha256(data).hexdigest()[:16]}."


def _asked(request: Request) -> dict[str, Any]:
    try:
        asked = json.loads(request.body)
    except ValueError:
        raise _Refused(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(asked, dict) or not isinstance(asked.get("model"), str):
        raise _Refused(400, "you must provide a model parameter")
    return asked


def _script(provider: Provider, model: str) -> Script:
    try:
        script = parse(model)
    except (KeyError, ValueError) as wrong:
        raise _Refused(400, f"The test's script is wrong: {wrong!r}") from None
    if script.fail_times:
        provider.attempts[script.id] = provider.attempts.get(script.id, 0) + 1
        if provider.attempts[script.id] > script.fail_times:
            script = replace(script, fault=frozenset())
    return script


def _answered(kind: type[ChatStream], needed: str, request: Request, provider: Provider) -> Iterator[Step]:
    asked = _asked(request)
    if needed not in asked:
        raise _Refused(400, f"Missing required parameter: '{needed}'.", param=needed)
    script = _script(provider, asked["model"])
    answer = kind(request, script, asked)
    if asked.get("stream"):
        return steps_of(request, script, lambda: streamed(request, script, answer.events()))
    return steps_of(request, script, lambda: whole(request, script, as_json(answer.whole())))


def _respond(request: Request, provider: Provider) -> Iterator[Step]:
    asked = _asked(request)
    previous = asked.get("previous_response_id")
    if previous and previous not in provider.stored:
        said = {"code": "previous_response_not_found", "param": "previous_response_id"}
        raise _Refused(400, f"Previous response with id '{previous}' not found.", **said)
    script = _script(provider, asked["model"])
    answer = ResponseStream(request, script, asked)
    if asked.get("store", True):
        provider.stored[answer.id] = answer.response(answer.status)
    if asked.get("stream"):
        return steps_of(request, script, lambda: streamed(request, script, answer.events()))
    status = "queued" if asked.get("background") else answer.status
    return steps_of(request, script, lambda: whole(request, script, as_json(answer.response(status))))


def _compact(request: Request, provider: Provider) -> Iterator[Step]:
    asked = _asked(request)
    script = _script(provider, asked["model"])
    answer = ResponseStream(request, script, asked)
    items = [{"id": f"cmp_test{request.n}", "type": "compaction", "encrypted_content": "c2VjcmV0"}]
    body = {"id": answer.id, "object": "response.compaction", "created_at": 0, "output": items}
    return steps_of(request, script, lambda: whole(request, script, as_json({**body, "usage": answer.usage})))


def _stored(kind: str, request: Request, provider: Provider, name: str) -> Iterator[Step]:
    found = provider.stored.get(name)
    if found is None or found["object"] != kind:
        raise _Refused(404, f"{kind.capitalize()} with id '{name}' not found.")
    if request.method == "DELETE":
        del provider.stored[name]
        return _json(request, {"id": name, "object": kind, "deleted": True})
    return _json(request, found)


def _cancel(request: Request, provider: Provider, name: str) -> Iterator[Step]:
    found = provider.stored.get(name)
    if found is None:
        raise _Refused(404, f"Response with id '{name}' not found.")
    if not found["background"]:
        raise _Refused(400, "Cannot cancel a synchronous response.")
    found["status"] = "cancelled"
    return _json(request, found)


def _store(kind: str, prefix: str, request: Request, provider: Provider) -> Iterator[Step]:
    """Make a conversation or a file."""
    made: dict[str, Any] = {"id": f"{prefix}test{request.n}", "object": kind, "created_at": 0}
    if kind == "file":
        file = multipart(request)["file"]
        made |= {
            "bytes": len(file.data),
            "filename": file.filename,
            "purpose": "user_data",
            "status": "processed",
        }
    provider.stored[made["id"]] = made
    return _json(request, made)


def _files(request: Request, provider: Provider) -> Iterator[Step]:
    files = [found for found in provider.stored.values() if found["object"] == "file"]
    return _json(request, {"object": "list", "data": files, "has_more": False})


def _models(request: Request, _provider: Provider) -> Iterator[Step]:
    return _json(request, {"object": "list", "data": [{"id": name, **_MODEL} for name in MODELS]})


def _model(request: Request, _provider: Provider, name: str) -> Iterator[Step]:
    if name not in MODELS:
        raise _Refused(404, f"The model '{name}' does not exist", code="model_not_found", param="model")
    return _json(request, {"id": name, **_MODEL})


def _embeddings(request: Request, provider: Provider) -> Iterator[Step]:
    asked = _asked(request)
    script = _script(provider, asked["model"])
    given = asked["input"]
    inputs = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    vectors = [vector(json.dumps(text), asked.get("dimensions") or _VECTOR) for text in inputs]
    as_text = asked.get("encoding_format") == "base64"
    shown = [_base64(struct.pack(f"<{len(v)}f", *v)) if as_text else v for v in vectors]
    data = [{"object": "embedding", "index": i, "embedding": one} for i, one in enumerate(shown)]
    usage = {"prompt_tokens": script.prompt_tokens, "total_tokens": script.prompt_tokens}
    body = {"object": "list", "data": data, "model": asked["model"], "usage": usage}
    return steps_of(request, script, lambda: whole(request, script, as_json(body)))


def vector(text: str, dimensions: int = _VECTOR) -> list[float]:
    """Return the embedding of a text: figures that a 32-bit float holds exactly."""
    return [byte / 256 for byte in hashlib.shake_128(text.encode()).digest(dimensions)]


def _moderations(request: Request, _provider: Provider) -> Iterator[Step]:
    asked = json.loads(request.body)
    inputs = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_FLAGS, False),
        "category_scores": dict.fromkeys(_FLAGS, 0.01),
        "category_applied_input_types": {flag: ["text"] for flag in _FLAGS},
    }
    model = asked.get("model", "omni-moderation-latest")
    return _json(request, {"id": f"modr-test{request.n}", "model": model, "results": [result] * len(inputs)})


class _Events(AnswerStream):
    """Named events around pieces of a picture, of speech or of a transcript."""

    def __init__(
        self,
        request: Request,
        script: Script,
        pieces: list[str],
        *,
        name: str,
        key: str,
        last: dict[str, Any],
    ) -> None:
        self._given = pieces
        super().__init__(request, replace(script, deltas=None), {"model": ""})
        self._name, self._key, self._last = name, key, last
        self._index = count()

    def decide(self) -> Answer:
        return Answer(self._given)

    def delta(self, piece: str) -> bytes:
        index = {"partial_image_index": next(self._index)} if "image" in self._name else {}
        return self.event({"type": self._name, self._key: piece, **index})

    def end(self) -> bytes:
        return b"" if self.script.finish == "none" else self.event(self._last)


def _images(request: Request, provider: Provider) -> Iterator[Step]:
    is_json = request.headers.get("content-type", "").startswith("application/json")
    fields = {} if is_json else multipart(request)
    asked = (
        _asked(request) if is_json else {name: part.data.decode("latin-1") for name, part in fields.items()}
    )
    script = _script(provider, asked.get("model", "demo"))
    details = {"image_tokens": 0, "text_tokens": 2}
    used = {"input_tokens": 2, "input_tokens_details": details, "output_tokens": 5, "total_tokens": 7}
    picture = _base64(PNG)
    if asked.get("stream") in {True, "true"}:
        looks = {"background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024"}
        last = {
            "type": "image_generation.completed",
            "b64_json": picture,
            "created_at": 0,
            **looks,
            "usage": used,
        }
        names = {"name": "image_generation.partial_image", "key": "b64_json"}
        events = _Events(request, script, [picture, picture], **names, last=last)
        return steps_of(request, script, lambda: streamed(request, script, events.events()))
    data = [{"b64_json": picture}] * int(asked.get("n") or 1)
    body = as_json({"created": 0, "data": data, "usage": used})
    return steps_of(request, script, lambda: whole(request, script, body))


def _speech(request: Request, provider: Provider) -> Iterator[Step]:
    asked = _asked(request)
    script = _script(provider, asked["model"])
    audio = noise(script.size or 8 << 10)
    pieces = [audio[at : at + _AUDIO_PIECE_BYTES] for at in range(0, len(audio), _AUDIO_PIECE_BYTES)]
    if asked.get("stream_format") == "sse":
        used = {"input_tokens": 2, "output_tokens": len(pieces), "total_tokens": 2 + len(pieces)}
        last = {"type": "speech.audio.done", "usage": used}
        names = {"name": "speech.audio.delta", "key": "audio"}
        events = _Events(request, script, [_base64(piece) for piece in pieces], **names, last=last)
        return steps_of(request, script, lambda: streamed(request, script, events.events()))
    return steps_of(request, script, lambda: streamed(request, script, _binary(script, pieces), "audio/mpeg"))


def _binary(script: Script, pieces: list[bytes]) -> Iterator[Step]:
    if "stall_first" in script.fault:
        yield End.SILENCE
    for k, piece in enumerate(pieces):
        yield script.interval_ms / 1000 if k else 0.0
        if k == script.after:
            yield from broken_off(script)
        yield piece


def _transcriptions(request: Request, provider: Provider) -> Iterator[Step]:
    fields = multipart(request)
    if "file" not in fields or "model" not in fields:
        raise _Refused(400, "Missing required parameter: 'file' or 'model'.")
    script = _script(provider, fields["model"].data.decode())
    text = heard(fields["file"].data)
    details = {"text_tokens": 0, "audio_tokens": 14}
    used: dict[str, Any] = {"type": "tokens", "input_tokens": 14, "output_tokens": 4, "total_tokens": 18}
    used["input_token_details"] = details
    if "stream" in fields and fields["stream"].data == b"true":
        last = {"type": "transcript.text.done", "text": text, "usage": used}
        names = {"name": "transcript.text.delta", "key": "delta"}
        events = _Events(request, script, re.findall(r"\S+\s*", text), **names, last=last)
        return steps_of(request, script, lambda: streamed(request, script, events.events()))
    if fields.get("response_format", Part("", "", b"json")).data in {b"text", b"srt", b"vtt"}:
        plain = f"{text}\n".encode()
        return steps_of(request, script, lambda: whole(request, script, plain, "text/plain; charset=utf-8"))
    body = as_json({"text": text, "usage": used})
    return steps_of(request, script, lambda: whole(request, script, body))


def _json(request: Request, body: object) -> Iterator[Step]:
    return whole(request, Script(), as_json(body))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


_RESPONSE = r"/v1/responses/(resp_\w+)"
_ROUTES: Final[tuple[tuple[str, str, Callable[..., Iterator[Step]]], ...]] = (
    ("POST", "/v1/chat/completions", partial(_answered, ChatStream, "messages")),
    ("POST", "/v1/completions", partial(_answered, CompletionStream, "prompt")),
    ("POST", "/v1/responses", _respond),
    ("POST", "/v1/responses/compact", _compact),
    ("GET", _RESPONSE, partial(_stored, "response")),
    ("DELETE", _RESPONSE, partial(_stored, "response")),
    ("POST", f"{_RESPONSE}/cancel", _cancel),
    ("POST", "/v1/conversations", partial(_store, "conversation", "conv_")),
    ("GET", r"/v1/conversations/(\w+)", partial(_stored, "conversation")),
    ("DELETE", r"/v1/conversations/(\w+)", partial(_stored, "conversation")),
    ("POST", "/v1/files", partial(_store, "file", "file-")),
    ("GET", "/v1/files", _files),
    ("GET", r"/v1/files/([\w-]+)", partial(_stored, "file")),
    ("DELETE", r"/v1/files/([\w-]+)", partial(_stored, "file")),
    ("GET", "/v1/models", _models),
    ("GET", r"/v1/models/(.+)", _model),
    ("POST", "/v1/embeddings", _embeddings),
    ("POST", "/v1/moderations", _moderations),
    ("POST", "/v1/images/(?:generations|edits|variations)", _images),
    ("POST", "/v1/audio/speech", _speech),
    ("POST", "/v1/audio/(?:transcriptions|translations)", _transcriptions),
)
