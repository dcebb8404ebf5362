"""The form of a key."""

from __future__ import annotations

import hashlib
import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.state.keys import ALPHABET, checksum, digest, fingerprint, looks_wrong, new_key


def test_a_new_key_has_the_form_of_the_contract() -> None:
    """Prefix, public id, 43 random characters, checksum; and it passes its own check."""
    key_id, secret = new_key()
    assert re.fullmatch(r"rly_[0-9A-Za-z]{8}_[0-9A-Za-z]{43}[0-9A-Za-z]{6}", secret)
    assert secret[4:12] == key_id
    assert not looks_wrong(secret.encode())


def test_keys_do_not_repeat() -> None:
    """Two hundred new keys have two hundred ids and secrets."""
    keys = [new_key() for _ in range(200)]
    assert len({key_id for key_id, _ in keys}) == 200
    assert len({secret for _, secret in keys}) == 200


def test_the_checksum_is_the_crc_in_base62() -> None:
    """The six characters, read as a base62 number, are the CRC-32 of all before them, padded with zeros."""
    for body in (b"", b"rly_abcdefgh_", b"x" * 56):
        value = 0
        for char in checksum(body):
            value = value * 62 + ALPHABET.index(char)
        assert value == zlib.crc32(body)
        assert len(checksum(body)) == 6


@given(st.integers(4, 61), st.sampled_from(ALPHABET))
def test_any_one_wrong_character_is_noticed(at: int, char: str) -> None:
    """A typo at any place after the prefix makes a key look wrong."""
    key = "rly_" + "k" * 8 + "_" + "s" * 43
    key += checksum(key.encode())
    typo = key[:at] + char + key[at + 1 :]
    assert looks_wrong(typo.encode()) is (typo != key)


@pytest.mark.parametrize(
    "presented",
    [
        b"rly_",
        b"rly_abc",
        b"rly_" + b"a" * 58,
        b"rly_" + b"\xff" * 58,
        pytest.param(new_key()[1].encode() + b"x", id="too long"),
    ],
)
def test_what_only_begins_like_a_key_looks_wrong(presented: bytes) -> None:
    """Our prefix with another length or alphabet can't be one of our keys."""
    assert looks_wrong(presented)


@pytest.mark.parametrize("presented", [b"", b"sk-something-else", b"RLY_abc", b"a" * 62, b"\xff\x00"])
def test_keys_of_another_form_are_not_judged(presented: bytes) -> None:
    """A key that an operator brought along may look like anything."""
    assert not looks_wrong(presented)


def test_only_a_digest_is_kept() -> None:
    """The digest is SHA-256, and eight hex digits of it tell keys apart on a screen."""
    assert digest(b"abc") == hashlib.sha256(b"abc").digest()
    assert fingerprint(digest(b"abc")) == "ba7816bf"
