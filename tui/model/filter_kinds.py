"""What can be filtered: for each kind of row its fields and what they mean, and filters with a name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from relayd.admin.schema import (
    REQUEST_FIELDS,
    AuditEntry,
    ClientInfo,
    FilterField,
    StreamProgress,
    fields_of,
    holds_key,
    quoted,
)
from tui.model.clients import meters

_RUN = re.compile(r"[A-Za-z0-9_]{16,}")
"""From 16 characters on it may be a key that an operator brought along."""
_COMPARED = re.compile(r"[=<>~]")
_SHORT_NAMES = {"key_id": "key", "key_ids": "key", "ip": "address", "login": "user"}


@dataclass(frozen=True, slots=True)
class NamedFilter:
    """A filter that has a name."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class FilterKind:
    """A kind of row that can be filtered."""

    name: str
    """In the settings: `requests`."""
    one: str
    """What a row is called: `request`."""
    many: str
    fields: Mapping[str, FilterField]
    meanings: Mapping[str, str]
    """What each field is, in a few words, the most useful first."""
    example: str
    built_in: tuple[NamedFilter, ...] = ()
    shared: tuple[str, ...] = ()
    """The fields by which one looks for more rows like the chosen one."""

    def filters(self, saved: Mapping[str, str], row: object | None) -> list[NamedFilter]:
        """Return the filters by name: the saved ones, those of the app, and those for what a row has."""
        found = [NamedFilter(name, text) for name, text in saved.items()]
        found += [named for named in self.built_in if named.name not in saved]
        for name in self.shared if row is not None else ():
            value = next(iter(self.fields[name].read(row)), None)
            title = f"this {_SHORT_NAMES.get(name, name)}"
            if value not in {None, ""} and title not in saved:
                found.append(NamedFilter(title, f"{name}={quoted(str(value))}"))
        return found


def may_hold_key(text: str) -> bool:
    """Return whether a filter may hold a key: it is then not remembered."""
    words = (word for word in text.split() if word.lower().startswith("key") or not _COMPARED.search(word))
    return holds_key(text) or any(map(looks_like_key, words))


def looks_like_key(text: str) -> bool:
    """Return whether a text that is no filter may hold a key."""
    return holds_key(text) or any(map(_is_random, _RUN.findall(text)))


def _is_random(run: str) -> bool:
    return any(char.isdigit() for char in run) and any(char.isalpha() for char in run)


def _used_percent(client: ClientInfo) -> float | None:
    return max((round(100 * meter.share, 1) for meter in meters(client)), default=None)


def _figure(name: str, read: Callable[[Any], float | None], *, is_real: bool = False) -> FilterField:
    return FilterField(name, lambda row: (read(row),), is_number=not is_real, is_real=is_real)


def _chosen(fields: Mapping[str, FilterField], meanings: Mapping[str, str]) -> dict[str, FilterField]:
    return {name: fields[name] for name in meanings}


_REQUEST_MEANINGS = {
    "client": "the client that asked",
    "status": "the HTTP status",
    "outcome": "completed, denied, upstream_error ...",
    "error": "code or text of its error",
    "model": "the model that was asked for",
    "first_token_ms": "time to the first token",
    "duration_ms": "time from its start to its end",
    "phase": "connecting, waiting, streaming or done",
    "ip": "its address, or a network: 10.0.0.0/8",
    "key_id": "the id of its key",
    "path": "/chat, /v1/responses ...",
    "cost_usd": "what it cost, in US dollars",
    "prompt_tokens": "tokens of the prompt",
    "cached_tokens": "those of them from the provider's cache",
    "completion_tokens": "tokens of the answer",
    "deltas": "pieces of the answer so far",
    "bytes_out": "bytes sent to the client",
    "connect_ms": "time to reach the provider",
    "stalled_ms": "time waiting for the client to read",
    "finish_reason": "why the answer ended: stop, length ...",
    "user_agent": "the client's program",
    "origin": "the web page that asked",
    "route": "which key or address of the provider",
    "usage_source": "provider or estimate",
    "started_at": "UTC: started_at>2026-01-31T12",
    "id": "its id",
    "upstream_request_id": "the provider's id of it",
    "seq": "its place in the log",
    "boot_id": "the run of the daemon that served it",
}
REQUESTS = FilterKind(
    "requests",
    "request",
    "requests",
    REQUEST_FIELDS,
    _REQUEST_MEANINGS,
    "status>=500 model~gpt-4   a bare word matches anywhere",
    (
        NamedFilter("errors", "outcome!=completed outcome!=client_closed phase=done"),
        NamedFilter("slow first token", "first_token_ms>2000"),
        NamedFilter("running", "phase!=done"),
        NamedFilter("refused keys", "outcome=denied"),
        NamedFilter("waiting for the client", "stalled_ms>1000"),
    ),
    ("client", "key_id", "model", "ip"),
)

_STREAM_MEANINGS = {
    "client": "the client that asked",
    "model": "the model that was asked for",
    "phase": "connecting, waiting or streaming",
    "waiting_for": "upstream or client",
    "age_ms": "time since its start",
    "deltas": "pieces of the answer so far",
    "last_delta_ms": "time since the last piece",
    "first_token_ms": "time to the first token",
    "stalled_ms": "time waiting for the client to read",
    "bytes_out": "bytes sent to the client",
    "ip": "its address, or a network: 10.0.0.0/8",
    "key_id": "the id of its key",
    "instance": "the process that serves it",
    "id": "its id",
}
STREAMS = FilterKind(
    "inflight",
    "stream",
    "streams",
    _chosen(fields_of(StreamProgress, "progress."), _STREAM_MEANINGS),
    _STREAM_MEANINGS,
    "client=web last_delta_ms>3000   a bare word matches anywhere",
    (
        NamedFilter("no token yet", "phase!=streaming"),
        NamedFilter("silent for 3 s", "last_delta_ms>3000"),
        NamedFilter("waiting for the client", "waiting_for=client"),
        NamedFilter("open for a minute", "age_ms>60000"),
    ),
    ("client", "key_id", "model", "ip", "instance"),
)

_CLIENT_MEANINGS = {
    "client": "its name",
    "note": "its note",
    "used_percent": "of the bound of which most is used",
    "requests_today": "requests today",
    "tokens_today": "tokens today",
    "usd_today": "US dollars today",
    "requests_month": "requests this month",
    "tokens_month": "tokens this month",
    "usd_month": "US dollars this month",
    "open_streams": "requests open now",
    "keys": "the ids of its live keys",
    "last_used_at": "UTC: last_used_at<2026-01-31",
    "models": "which models it may use",
    "endpoints": "which paths it may use",
    "origins": "which web pages may ask",
    "max_streams": "bound: requests at once",
    "requests_per_minute": "bound",
    "tokens_per_minute": "bound",
    "tokens_per_day": "bound",
    "tokens_per_month": "bound",
    "usd_per_day": "bound",
    "usd_per_month": "bound",
    "max_output_tokens": "bound: tokens of an answer",
    "created_at": "UTC",
    "expires_at": "UTC; when its keys end",
    "removed_at": "UTC",
}
CLIENTS = FilterKind(
    "clients",
    "client",
    "clients",
    _chosen(
        {
            **fields_of(ClientInfo),
            "client": FilterField("client", lambda row: (row.name,)),
            "used_percent": _figure("used_percent", _used_percent, is_real=True),
            "requests_today": _figure("requests_today", lambda row: row.today.requests),
            "tokens_today": _figure("tokens_today", lambda row: row.today.tokens),
            "usd_today": _figure("usd_today", lambda row: row.today.cost_usd, is_real=True),
            "requests_month": _figure("requests_month", lambda row: row.month.requests),
            "tokens_month": _figure("tokens_month", lambda row: row.month.tokens),
            "usd_month": _figure("usd_month", lambda row: row.month.cost_usd, is_real=True),
        },
        _CLIENT_MEANINGS,
    ),
    _CLIENT_MEANINGS,
    "used_percent>=80 or note~Ada   a bare word matches anywhere",
    (
        NamedFilter("near a bound", "used_percent>=80"),
        NamedFilter("used today", "requests_today>0"),
        NamedFilter("open now", "open_streams>0"),
    ),
)

_AUDIT_MEANINGS = {
    "action": "rotate, revoke, set_client, note ...",
    "client": "the client it was about",
    "login": "who did it",
    "result": "done, or the code of the refusal",
    "detail": "grace, bounds, the text of a note ...",
    "key_ids": "the ids of its keys",
    "at": "UTC: at>2026-01-31T12",
    "uid": "the number of the user",
    "pid": "the process that asked",
    "generation": "of the key ring after it",
    "seq": "its place in the log",
    "boot_id": "the run of the daemon",
}
AUDIT = FilterKind(
    "audit",
    "audit entry",
    "audit entries",
    _chosen(fields_of(AuditEntry), _AUDIT_MEANINGS),
    _AUDIT_MEANINGS,
    "action=rotate client=web   a bare word matches anywhere",
    (
        NamedFilter("notes", "action=note"),
        NamedFilter("refused", "result!=done"),
        NamedFilter(
            "keys",
            "action=rotate or action=revoke or action=undo or action=extend or action=add or action=import",
        ),
        NamedFilter("clients", "action~_client"),
    ),
    ("client", "login", "action", "key_ids"),
)
