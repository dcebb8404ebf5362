"""Tests for relayd.config.errors: how faults are shown."""

from __future__ import annotations

import pytest

from relayd.config.errors import ConfigError, Problem, did_you_mean, in_order, shown

SHOWN = [
    (True, "true"),
    (3, "3"),
    (-(2**64), "a huge number"),
    (1.0, "1.0"),
    ("a", '"a"'),
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
    """A faulty value is shown short, without control codes, and not at all when it might be a secret."""
    assert shown(value) == text


def test_did_you_mean() -> None:
    """Only a near name is proposed."""
    assert did_you_mean("prot", ["port", "host"]) == "port"
    assert did_you_mean("colour", ["port", "host"]) is None
    assert did_you_mean("x" * 100_000, ["port"]) is None


def test_order() -> None:
    """Problems come as a person mends them: files from top to bottom, .env, environment, command line."""
    places = [
        "/etc/relayd/relayd.toml",
        "relayd.toml:9",
        "relayd.toml:10",
        ".env:2",
        ".env:11",
        "environment",
    ]
    places.append("command line")
    problems = [Problem(place, "x") for place in places]
    assert in_order(reversed(problems)) == problems


def test_the_error_lists_all() -> None:
    """A ConfigError reads as one line a problem."""
    error = ConfigError([Problem("a:1", "x is wrong.", "x"), Problem("environment", "y is wrong.")])
    assert str(error) == "a:1: x is wrong.\nenvironment: y is wrong."
