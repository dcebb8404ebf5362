"""`relayd.config.errors`: how faulty values and several problems are shown."""

from __future__ import annotations

import pytest

from relayd.config.errors import ConfigError, did_you_mean, shown
from relayd.findings import Finding, Severity

SHOWN = [
    (True, "true"),
    (3, "3"),
    (-(2**64), "a huge number"),
    (1.0, "1.0"),
    ('\\"', '"\\\\\\""'),
    ("é", '"é"'),
    ("x" * 61, f'"{"x" * 60}…"'),
    ("a\nb", '"a…"'),
    ("\t\x9b\u200b\U000e0001", r'"\t\x9b\u200b\U000e0001"'),
    ("sk-proj-1", None),
    ("RLY_12345678_x", None),
    ("https://me:pw@host", None),
    ("https://host?key=1", None),
    ([1], "a list"),
    ({}, "a table"),
    (None, "a NoneType"),
]


@pytest.mark.parametrize(("value", "text"), SHOWN)
def test_shown(value: object, text: str | None) -> None:
    """A faulty value is shown short, without control codes, and not at all if it might be a secret."""
    assert shown(value) == text


@pytest.mark.parametrize(("name", "meant"), [("prot", "port"), ("colour", None), ("x" * 100_000, None)])
def test_did_you_mean(name: str, meant: str | None) -> None:
    """Only a near name is proposed."""
    assert did_you_mean(name, ["port", "host"]) == meant


def test_order() -> None:
    """A ConfigError lists a problem a line, in editing order: files by line, .env, environment, arguments."""
    places = ["/etc/relayd/relayd.toml", "relayd.toml:9", "relayd.toml:10", ".env:2", ".env:11"]
    places += ["environment", "command line"]
    error = ConfigError(Finding(Severity.ERROR, place, "x is wrong.") for place in reversed(places))
    assert str(error).splitlines() == [f"{place}: x is wrong." for place in places]
