"""Whether a request's head says in one way only where the request ends, and nothing that hides.

Two readers that understand one head differently can be made to see different requests (RFC 9112, 11.2).
So what the standard lets a server be lenient about is refused here.
"""

from __future__ import annotations

import re

MAX_TARGET_BYTES = 2048

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# RFC 9112: one empty line may precede (2.2); the target is in origin form, or `*` (3.2); a field's name
# touches its colon (5.1); its value holds no control but a tab (RFC 9110, 5.5), and does not go on in
# the next line (5.2). Possessive throughout, so that no head is looked at twice.
_HEAD = re.compile(
    rb"(?:\r\n)?+"
    rb"(?P<start>(?P<method>" + _TOKEN + rb") (?P<target>/[!-~]*+|\*) HTTP/1\.(?P<minor>[01]))\r\n"
    rb"(?:" + _TOKEN + rb":[\t -~\x80-\xff]*+\r\n)*+"
    rb"\r\n"
)
_FRAMING = re.compile(rb"\n(content[-_]length|transfer[-_]encoding):[ \t]*+([^\r]*+)\r", re.IGNORECASE)
_HOST = re.compile(rb"\nhost:", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,15}")


def head_fault(head: bytes) -> str | None:
    """Why a head, up to and with its empty line, is refused; None where it is sound.

    Refused: line ends other than CRLF, folded lines, controls, names that are no token, versions other
    than 1.0 and 1.1, targets in absolute form or longer than `MAX_TARGET_BYTES`, a Host that is missing
    or there twice, more than one Content-Length or Transfer-Encoding or both, a length that is no plain
    number, a coding other than `chunked`, any coding in HTTP/1.0, and the framing fields spelt with an
    underscore, which CGI-like readers take for the real ones.
    """
    found = _HEAD.fullmatch(head)
    if found is None:
        return "The request's head is not HTTP/1.1 by the letter."
    if found.end("target") - found.start("target") > MAX_TARGET_BYTES:
        return f"The request's target has more than {MAX_TARGET_BYTES} bytes."
    is_1_1 = found["minor"] == b"1"
    hosts = len(_HOST.findall(head))
    if hosts > 1 or (is_1_1 and not hosts):
        # RFC 9112, 3.2.
        return "The request has no Host field, or more than one."
    return _framing_fault(head, chunks_known=is_1_1)


def _framing_fault(head: bytes, *, chunks_known: bool) -> str | None:
    framing = _FRAMING.findall(head)
    if not framing:
        return None
    if len(framing) > 1:
        return "The request says more than once how long its body is."
    name, value = framing[0]
    value = value.rstrip(b" \t")
    if b"_" in name:
        return "The request has a framing field that is spelt with an underscore."
    if name[:1] in b"cC":
        return None if _LENGTH.fullmatch(value) else "The request's Content-Length is no plain number."
    return (
        None
        if chunks_known and value.lower() == b"chunked"
        else "The request's Transfer-Encoding is not possible here."
    )
