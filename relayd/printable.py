"""Text from outside, made safe to show on a terminal.

A terminal acts on control characters (clear the screen, set the title, even answer as if typed), and
bidirectional and invisible characters make one text look like another. Every text that a client, a
provider or a file contributed passes through here before a person sees it.
"""

from __future__ import annotations

import json

import msgspec

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    r"""Return the text with everything unsafe written as a Python escape: `\x1b`, `\n`, `\u202e`.

    Unsafe is what Unicode calls "other" or "separator", except the space: C0 and C1 controls, DEL,
    bidirectional and zero-width marks, line and paragraph separators, halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def csv_text(text: str) -> str:
    """Return text for CSV: an apostrophe precedes what a spreadsheet would run as a formula (OWASP)."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def printable_json(document: object) -> str:
    r"""Return the document as one line of JSON in ASCII: everything else is a `\u` escape.

    Args:
        document: any value that msgspec can encode.
    """
    text = json.dumps(msgspec.to_builtins(document), separators=(",", ":"))
    # The one ASCII control character that JSON allows inside a string (RFC 8259, section 7).
    return text.replace("\x7f", "\\u007f")
