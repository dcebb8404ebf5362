"""The form of a key: `rly_<8-char id>_<43 base62 characters><6-char checksum>`.

The prefix lets secret scanners find a leaked key, and the checksum (CRC-32 of all before it, in
base62, padded with zeros) distinguishes a typo from a wrong key, as in GitHub's token format:
https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib

PREFIX = "rly_"
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
ID_CHARS = 8
SECRET_CHARS = 43
"""43 base62 characters carry 256 bits."""
CHECKSUM_CHARS = 6
MIN_GIVEN_CHARS = 16
"""The shortest key that an operator may bring along."""
MAX_GIVEN_CHARS = 4096
"""The longest one, which fits with room to spare into the 16 KiB of a request's headers."""

_KEY_IN_TEXT = re.compile(r"\b(?:rly_[0-9A-Za-z]{8}_|sk-)[0-9A-Za-z_*.-]{4,}")
_FORM = re.compile(rb"rly_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}")


def new_id() -> str:
    """Return a random id of eight base62 characters; it is public."""
    return _random(ID_CHARS)


def new_key() -> tuple[str, str]:
    """Return a new key from the system's random source: its public id, and the secret key itself."""
    key_id = new_id()
    body = f"{PREFIX}{key_id}_{_random(SECRET_CHARS)}"
    return key_id, body + checksum(body.encode())


def looks_wrong(presented: bytes) -> bool:
    """Return whether this has our prefix, but not the length, alphabet and checksum that make a key."""
    if not presented.startswith(PREFIX.encode()):
        return False
    if not _FORM.fullmatch(presented):
        return True
    return checksum(presented[:-CHECKSUM_CHARS]) != presented[-CHECKSUM_CHARS:].decode("ascii")


def holds_key(text: str) -> bool:
    """Return whether a text has what looks like a key of ours or of a provider, or a part of one."""
    return _KEY_IN_TEXT.search(text) is not None


def checksum(body: bytes) -> str:
    """Return the CRC-32 of the body as six base62 characters."""
    left, digits = zlib.crc32(body), ""
    for _ in range(CHECKSUM_CHARS):
        left, digit = divmod(left, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits


def digest(presented: bytes) -> bytes:
    """Return the SHA-256 of a key: all that is ever stored or compared."""
    return hashlib.sha256(presented).digest()


def fingerprint(key_digest: bytes) -> str:
    """Return the first eight hex digits of a digest, to tell keys apart on a screen."""
    return key_digest.hex()[:8]


def _random(chars: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(chars))
