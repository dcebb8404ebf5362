"""Tests for relayd.config.values: what a single value may be."""

from __future__ import annotations

import grp
import os
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from relayd.config.values import (
    MAX_KEY_CHARS,
    check_authorization_key,
    check_base_url,
    check_group,
    check_host,
    check_name,
    check_network,
    check_origin,
    check_provider_key,
)

GROUP = grp.getgrgid(os.getgid()).gr_name

GOOD = [
    (check_host, ["127.0.0.1", "::", "::1", "localhost", "a-b.example", "x_1", "example.com."]),
    (check_network, ["10.0.0.1", "10.0.0.0/8", "::1", "fd00::/8", "0.0.0.0/0"]),
    (
        check_base_url,
        ["https://api.openai.com/v1", "http://127.0.0.1:8080", "http://[::1]:8080/v1", "https://x"],
    ),
    (
        check_origin,
        ["*", "https://a.example", "http://a.example:8080", "http://[::1]:81", "chrome-extension://abc"],
    ),
    (check_name, ["gpt-4o-mini", "org/model:tag", "ft:gpt-4o:é", "x" * 200]),
    (check_group, ["", GROUP]),
]


@pytest.mark.parametrize(("check", "text"), [(check, text) for check, texts in GOOD for text in texts])
def test_what_is_allowed(check: Callable[[str], str], text: str) -> None:
    """A good value passes unchanged."""
    assert check(text) == text


WRONG_HOSTS = [
    "",
    " ",
    "a b",
    "1.2.3.400",
    "1.2.3",
    "-a",
    "a..b",
    "http://a",
    "a/b",
    "[::1]",
    "é.example",
    "a\n",
]
WRONG_NETWORKS = ["", "localhost", "10.0.0.0/33", "10.0.0.0/8 ", "fe80::%/", "1"]
WRONG_URLS = [
    "", "x", "https://", "https:///v1", "ftp://a", "//a", "https://a:0", "https://a:99999", "https://a:b",
    "https://a b", "https://a\n/v1", "https://[::1", "https://é", "https://a.example\u202e", "\thttps://a",
]  # fmt: skip
WRONG_ORIGINS = [
    "",
    "null",
    "**",
    "*.example",
    "a.example",
    "https://",
    "https://u@a",
    "https://a b",
    "https://é",
]
WRONG_NAMES = ["", "a b", "a\n", "x" * 201, "\u200b"]

WRONG = [
    (check_host, WRONG_HOSTS),
    (check_network, WRONG_NETWORKS),
    (check_base_url, WRONG_URLS),
    (check_origin, WRONG_ORIGINS),
    (check_name, WRONG_NAMES),
]


@pytest.mark.parametrize(("check", "text"), [(check, text) for check, texts in WRONG for text in texts])
def test_what_is_refused(check: Callable[[str], str], text: str) -> None:
    """A wrong value is refused; where nothing can be added to what is allowed, nothing is."""
    with pytest.raises(ValueError, match=r"^$"):
        check(text)


HINTS = [
    (check_host, "127.0.0.1:80", "the port has its own key, server.port"),
    (check_network, "10.1.2.3/8", 'did you mean "10.0.0.0/8"?'),
    (check_base_url, "https://me@h", "it carries a user name or password; the key belongs in OPENAI_API_KEY"),
    (
        check_base_url,
        "https://me:pw@h/v1",
        "it carries a user name or password; the key belongs in OPENAI_API_KEY",
    ),
    (check_base_url, "https://h/v1?a=b", "it carries a query or fragment"),
    (check_base_url, "https://h/v1?", "it carries a query or fragment"),
    (check_base_url, "https://h/v1#a", "it carries a query or fragment"),
    (check_origin, "https://a.example/", 'browsers send "https://a.example"'),
    (check_origin, "https://a.example/x?y#z", 'browsers send "https://a.example"'),
    (check_origin, "HTTPS://A.example", 'browsers send "https://a.example"'),
    (check_origin, "https://a.example:443", 'browsers send "https://a.example"'),
    (check_origin, "http://[::1]:80", 'browsers send "http://[::1]"'),
    (check_group, "no-such-group-here", "this machine has no such group"),
]


@pytest.mark.parametrize(("check", "text", "hint"), HINTS)
def test_hints(check: Callable[[str], str], text: str, hint: str) -> None:
    """A frequent slip is refused with what to write instead."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared as a whole
        check(text)
    assert str(caught.value) == hint


def test_a_slash_at_the_end() -> None:
    """A base URL means the same with and without a slash at its end, and is kept without."""
    assert check_base_url("https://h/v1/") == "https://h/v1"


SECRETS = [
    (check_authorization_key, "x" * 16, None),
    (check_authorization_key, "correct horse battery", None),
    (check_authorization_key, "!" * MAX_KEY_CHARS, None),
    (check_authorization_key, "x" * 15, "it has 15"),
    (check_authorization_key, "", "it has 0"),
    (check_authorization_key, "x" * (MAX_KEY_CHARS + 1), "it has more than 4096"),
    (check_authorization_key, "x" * 16 + "é", "it contains other characters"),
    (check_authorization_key, "x" * 16 + "\t", "it contains other characters"),
    (check_authorization_key, "x" * 16 + "\x7f", "it contains other characters"),
    (check_authorization_key, " " + "x" * 16, "it begins or ends with a space"),
    (check_authorization_key, "Bearer " + "x" * 16, 'it begins with "Bearer ", which belongs to the header'),
    (check_provider_key, "sk-proj_A-1", None),
    (check_provider_key, "", "it is empty"),
    (check_provider_key, "x" * (MAX_KEY_CHARS + 1), "it has more than 4096"),
    (check_provider_key, "sk-1 sk-2", "it contains a space or a line break"),
    (check_provider_key, "sk-1\n", "it contains a space or a line break"),
    (check_provider_key, "sk-é", "it contains other characters"),
    (check_provider_key, "sk-\0", "it contains other characters"),
    (check_provider_key, '"sk-1"', "it is wrapped in quotes"),
]


@pytest.mark.parametrize(("check", "text", "hint"), SECRETS)
def test_secrets(check: Callable[[SecretStr], SecretStr], text: str, hint: str | None) -> None:
    """A secret must be able to stand in a header; what is wrong with it is said without repeating it."""
    secret = SecretStr(text)
    if hint is None:
        assert check(secret) is secret
    else:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared as a whole
            check(secret)
        assert str(caught.value) == hint
