"""What a record means, in words: status, cause, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass

from relayd.admin.schema import Outcome, Phase, RequestRecord
from tui.model.units import duration

_CAUSES = {
    "bad_request": "The client sent something relayd can't read.",
    "unauthorized": "The key was missing, wrong, expired or revoked.",
    "model_not_allowed": "The model is not in the allowed list.",
    "too_large": "The request body is over the limit.",
    "busy": "A limit of this key, this address or the server was reached.",
    "draining": "The daemon was stopping, or intake was paused.",
    "upstream_rejected": "The provider refused the request itself.",
    "upstream_limited": "The provider's rate or quota limit was reached, after retries.",
    "upstream_auth": "The provider refused relayd's own key.",
    "upstream_failed": "The provider failed, or its stream broke.",
    "upstream_unreachable": "The provider could not be reached: DNS, connect or TLS.",
    "upstream_timeout": "The provider was silent for too long.",
    "upstream_truncated": "The provider ended the stream before the answer was complete.",
    "cancelled": "An operator cancelled it.",
    "key_revoked": "Its key was revoked with the choice to cut open streams.",
    "over_budget": "A bound of its client in tokens or money was used up.",
    "model_unpriced": "Its client has a bound in money, and the model has no price.",
    "state_unavailable": "The use of a client with bounds could not be stored.",
    "internal": "A fault in relayd; the daemon's log has it under this id.",
}
_OUTCOMES = {
    Outcome.COMPLETED: "Completed.",
    Outcome.CLIENT_CLOSED: "The client went away before the end.",
    Outcome.CLIENT_STALLED: "The client stopped reading and was disconnected.",
    Outcome.DENIED: "Refused before it began.",
    Outcome.REJECTED: "The request itself was refused.",
    Outcome.UPSTREAM_ERROR: "The provider failed.",
    Outcome.CANCELLED: "An operator cancelled it.",
    Outcome.SHUTDOWN: "The daemon stopped while it ran.",
    Outcome.CRASHED: "The daemon crashed while it ran.",
}
_SHORT = {
    Outcome.CLIENT_CLOSED: "gone",
    Outcome.CLIENT_STALLED: "stal",
    Outcome.CANCELLED: "cncl",
    Outcome.SHUTDOWN: "stop",
    Outcome.CRASHED: "lost",
}
_RUNNING = {Phase.CONNECTING: "conn", Phase.WAITING: "wait", Phase.STREAMING: "run"}
_FIRST_ERROR = 400
_KINDS = {
    "chat/completions": "v1 chat",
    "completions": "v1 text",
    "responses": "responses",
    "embeddings": "embedding",
    "moderations": "moderate",
    "images": "images",
    "audio": "audio",
    "models": "models",
}


def state_word(record: RequestRecord) -> str:
    """Return at most four characters: the HTTP status, or a word where the status would mislead."""
    if record.outcome is None:
        return _RUNNING.get(record.phase, "done")
    short = _SHORT.get(record.outcome)
    if short is not None:
        return short
    if record.outcome is not Outcome.COMPLETED and (record.status or 0) < _FIRST_ERROR:
        return "fail"
    return "—" if record.status is None else str(record.status)


def path_kind(path: str) -> str:
    """Return what a path is for in a word: `chat`, `v1 chat`, `audio`; unknown ones as they are."""
    end = path.removeprefix("/v1/")
    if end == path:
        return path.removeprefix("/")
    return _KINDS.get(end) or _KINDS.get(end.split("/")[0]) or end


def cause(record: RequestRecord) -> str:
    """Return why it ended as it did, as a sentence that needs no manual."""
    if record.outcome is None:
        return {
            Phase.CONNECTING: "Connecting to the provider.",
            Phase.WAITING: "Waiting for the first token.",
            Phase.STREAMING: "Streaming.",
        }.get(record.phase, "Ending.")
    if record.outcome is Outcome.DENIED and record.key_id is not None:
        return "Its key has expired or was revoked. This client needs the new key."
    if record.error is not None and record.error.code in _CAUSES:
        return _CAUSES[record.error.code]
    return _OUTCOMES[record.outcome]


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of a request's time."""

    name: str
    ms: int


def time_parts(record: RequestRecord, now_ms: float | None = None) -> tuple[Part, ...]:
    """Return where the time went: connect, wait for the first token, stream, wait for the client.

    The time spent waiting for the client is taken out of the stretch it fell in, so that the parts
    add up to the duration. A running request reaches to `now_ms` after its start.
    """
    total = record.duration_ms if record.duration_ms is not None else int(now_ms or 0)
    connect = min(record.connect_ms if record.connect_ms is not None else 0, total)
    if record.connect_ms is None and record.phase is Phase.CONNECTING:
        connect = total
    first = record.first_token_ms
    wait = max(0, min(first if first is not None else total, total) - connect)
    stream = max(0, total - connect - wait)
    stalled = min(record.stalled_ms, stream)
    return (
        Part("connect", connect),
        Part("first token", wait),
        Part("stream", stream - stalled),
        Part("client", stalled),
    )


def where_the_time_went(record: RequestRecord) -> str:
    """Return the longest part in words."""
    parts = time_parts(record)
    total = sum(part.ms for part in parts)
    if not total:
        return "It took no time worth naming."
    longest = max(parts, key=lambda part: part.ms)
    share = round(100 * longest.ms / total)
    words = {
        "connect": "connecting to the provider",
        "first token": "waiting for the first token",
        "stream": "streaming",
        "client": "waiting for the client to read",
    }[longest.name]
    return f"{share}% of {duration(total)} went on {words}."
