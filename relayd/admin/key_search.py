"""Whose key a text is. The daemon is asked with digests alone: the text itself stays in this process."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from relayd.admin.schema import KeyInfo
from relayd.state.keys import (
    CHECKSUM_CHARS,
    ID_CHARS,
    MIN_GIVEN_CHARS,
    PREFIX,
    SECRET_CHARS,
    digest,
    looks_wrong,
)

MAX_CHARS = 4096
"""The longest text that is looked at: a key with what stands around it where it was found."""
_MAX_FORMS = 48
"""Each is a question to the daemon."""

_OURS = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{ID_CHARS}}})_[0-9A-Za-z]*")
_WHOLE = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{ID_CHARS}}})_[0-9A-Za-z]{{{SECRET_CHARS + CHECKSUM_CHARS}}}")
_BREAKS = re.compile(r"[^0-9A-Za-z_]+")
"""What no key of ours has, but a mail or a terminal may put between its lines: `= `, `> `, `\\`."""
_PROVIDER = re.compile(r"\bsk-[A-Za-z0-9_-]{4,}")
_AROUND = "\"'`,;:()<>[]{}*"
_MARKS = re.compile(r"[^\w.~+-]+")


class Verdict(StrEnum):
    """What a text turned out to be."""

    KNOWN = "known"
    """A key of this relay, live or dead."""
    ID_KNOWN = "id_known"
    """Not a key, but the id in it is that of one."""
    MISTYPED = "mistyped"
    """It begins like a key of a relayd, and its length or checksum is wrong."""
    PROVIDER = "provider"
    """It has the form of a provider's key."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """Whose key it is, in a sentence that has nothing secret in it."""

    verdict: Verdict
    sentence: str
    key: KeyInfo | None = None
    """The key, or the one with the same id."""


async def find_owner(
    text: str, ask: Callable[[str], Awaitable[KeyInfo | None]], keys: Iterable[KeyInfo]
) -> Finding:
    """Return whose key a text is, or what else it is.

    Args:
        text: a key, perhaps with `Bearer`, quotes or a variable's name around it.
        ask: returns the key with a digest (hexadecimal), such as `AdminClient.find_key`.
        keys: those that are known, to compare ids.
    """
    text = text[:MAX_CHARS]
    for form in _forms(text):
        key = await ask(digest(form.encode(errors="replace")).hex())
        if key is not None:
            return Finding(Verdict.KNOWN, f"It is the key {key.id} of the client {key.client}.", key)
    ours = _WHOLE.search(_BREAKS.sub("", text)) or _OURS.search(text)
    if ours is not None:
        return _not_ours(ours, keys)
    if _PROVIDER.search(text):
        return Finding(
            Verdict.PROVIDER,
            "This has the form of a provider's key (sk-…), not of one of relayd's. Revoke it at the provider."
            " If it is the one that this relay uses, give the relay a new one.",
        )
    return Finding(Verdict.UNKNOWN, "No key of this relay, live or dead, is this text.")


def _not_ours(found: re.Match[str], keys: Iterable[KeyInfo]) -> Finding:
    """Return what a text is that has the form of a key, and is none of this relay."""
    same_id = next((key for key in keys if key.id == found[1]), None)
    if same_id is not None:
        return Finding(
            Verdict.ID_KNOWN,
            f"The id {same_id.id} is that of a key of {same_id.client}, but the rest differs: a typo, or a"
            " forgery. It opens nothing.",
            same_id,
        )
    if looks_wrong(found[0].encode()):
        return Finding(
            Verdict.MISTYPED,
            f"This begins like a key of a relayd ({PREFIX}…), but its length or checksum is wrong: it was cut"
            " off or mistyped.",
        )
    return Finding(
        Verdict.UNKNOWN, "This is a well-formed key of a relayd, but not of this one: no key here has its id."
    )


def _forms(text: str) -> list[str]:
    """Return what the key in a text may be, the likeliest first.

    A key of ours is known by its form, also with a break in it or with something behind it. One that was
    brought along may have any: it is all of the text, or a word, or what stands between marks in it.
    """
    ours = [match[0] for form in (text, _BREAKS.sub("", text)) for match in _WHOLE.finditer(form)]
    words = text.split()
    brought = [text.strip(), "".join(words)]
    for word in reversed(words):
        value = word.partition("=")[2]
        brought += word, word.strip(_AROUND), value, value.strip(_AROUND), *reversed(_MARKS.split(word))
    forms = [*ours, *(form for form in brought if len(form) >= MIN_GIVEN_CHARS)]
    return list(dict.fromkeys(forms))[:_MAX_FORMS]
