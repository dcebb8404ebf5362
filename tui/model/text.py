"""Text from outside made harmless, once, where it enters.

Terminals act on C0 and C1 controls, and bidi or zero-width marks make a row read as something else;
Textual writes all of them through. Nothing may be shown that has not passed `neutral`.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import msgspec

from relayd.admin.schema import AuditEntry, KeyInfo, RecordedError, RequestRecord

FIELD_LIMIT = 200
MESSAGE_LIMIT = 500

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SPACES = "\t\n\r\v\f"
_MAX_MARKS = 2
_C0_PICTURES = 0x2400
_DEL = 0x7F
# Printable by Unicode's word, yet without a width or a shape: they shift or empty a column.
_SHAPELESS = frozenset("\u034f\u115f\u1160\u3164\uffa0") | {
    chr(code) for span in (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0)) for code in span
}


def neutral(text: str, limit: int = FIELD_LIMIT) -> str:
    """The text without anything a terminal acts on, cut to `limit` characters with an ellipsis."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text if text.isascii() and text.isprintable() else _neutral(text)


@lru_cache(maxsize=4096)
def _neutral(text: str) -> str:
    shown: list[str] = []
    marks = 0
    for char in text:
        if unicodedata.category(char) in {"Mn", "Me", "Mc"} and char not in _SHAPELESS:
            marks += 1
            if marks <= _MAX_MARKS:
                shown.append(char)
            continue
        marks = 0
        shown.append(_visible(char))
    return "".join(shown)


def _visible(char: str) -> str:
    if char in _SPACES:
        return " "
    if char in _SHAPELESS:
        return _REPLACEMENT
    if char.isprintable():
        return char
    code = ord(char)
    if code < ord(" "):
        return chr(_C0_PICTURES + code)
    if code == _DEL:
        return "␡"
    # Cc above ASCII, Cf (bidi, zero-width, tags), surrogates, private use, odd spaces.
    return " " if unicodedata.category(char) == "Zs" else _REPLACEMENT


def _maybe(text: str | None) -> str | None:
    return None if text is None else neutral(text)


def neutral_record(record: RequestRecord) -> RequestRecord:
    """The same record with every text neutralised, in place."""
    record.id = neutral(record.id)
    record.boot_id = neutral(record.boot_id)
    record.client = _maybe(record.client)
    record.key_id = _maybe(record.key_id)
    record.ip = neutral(record.ip)
    record.origin = _maybe(record.origin)
    record.user_agent = _maybe(record.user_agent)
    record.path = neutral(record.path)
    record.model = _maybe(record.model)
    record.finish_reason = _maybe(record.finish_reason)
    record.upstream_request_id = _maybe(record.upstream_request_id)
    if record.error is not None:
        record.error = RecordedError(neutral(record.error.code), neutral(record.error.message, MESSAGE_LIMIT))
    return record


def neutral_key(key: KeyInfo) -> KeyInfo:
    """The same key with every text that a person or a client chose neutralised."""
    return msgspec.structs.replace(
        key,
        id=neutral(key.id),
        client=neutral(key.client),
        fingerprint=neutral(key.fingerprint),
        first_used_ip=_maybe(key.first_used_ip),
        last_used_ip=_maybe(key.last_used_ip),
    )


def neutral_entry(entry: AuditEntry) -> AuditEntry:
    """The same audit entry with every text neutralised."""
    return msgspec.structs.replace(
        entry,
        action=neutral(entry.action),
        result=neutral(entry.result),
        login=neutral(entry.login),
        client=_maybe(entry.client),
        key_ids=tuple(neutral(key_id) for key_id in entry.key_ids),
        detail=None if entry.detail is None else neutral(entry.detail, MESSAGE_LIMIT),
    )
