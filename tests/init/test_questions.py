"""The questions of `relayd init`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from relayd.config import Settings, load
from relayd.init.console import Console, Values, ask_settings


def _ask(home: Path, answers: Sequence[str], known: Values | None = None) -> tuple[Values, str, int]:
    """What came of it, what was said, and how many answers are left."""
    left, out = list(answers), io.StringIO()

    def answer(_question: str) -> str:
        return left.pop(0)

    def settings(values: Values) -> Settings:
        return load(
            config_path=None, cli=values, env={"HOME": str(home)}, cwd=home, system_config=home / "none"
        )

    console = Console({}, home, out, answer, answer, str)
    return ask_settings(known or {}, console, settings), out.getvalue(), len(left)


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        ("", {}),
        ("0.0.0.0:8080", {"server.host": "0.0.0.0", "server.port": 8080}),
        ("0.0.0.0", {"server.host": "0.0.0.0"}),
        ("8080", {"server.port": 8080}),
        (":8080", {"server.port": 8080}),
        ("[::1]:8080", {"server.host": "::1", "server.port": 8080}),
        ("[::1]", {"server.host": "::1"}),
        ("::1", {"server.host": "::1"}),
        ("localhost:0", {"server.host": "localhost", "server.port": 0}),
    ],
)
def test_an_address_may_be_typed_as_people_do(typed: str, means: Values, tmp_path: Path) -> None:
    """With a port, without one, or the port alone; IPv6 with brackets and without."""
    assert _ask(tmp_path, ["", typed]) == (means, "", 0)


def test_what_can_not_be_used_is_asked_again(tmp_path: Path) -> None:
    """A wrong answer costs a sentence that says what is allowed, not what was typed before it."""
    found, said, left = _ask(
        tmp_path, ["api.example", "https://api.example/v1", "127.0.0.1:seventy", "localhost:70000", ":4000"]
    )
    assert found == {"upstream.base_url": "https://api.example/v1", "server.port": 4000}
    assert left == 0
    assert [line.partition(", but must be ")[0] for line in said.splitlines()] == [
        'That cannot be used: upstream.base_url is "api.example"',
        'That cannot be used: server.port is "seventy"',
        "That cannot be used: server.port is 70000",
    ]


def test_what_flags_said_is_not_asked(tmp_path: Path) -> None:
    """Each flag saves its question."""
    known: Values = {"upstream.base_url": "https://api.example/v1", "server.port": 4000}
    assert _ask(tmp_path, [], known) == ({}, "", 0)


def test_without_a_person_nothing_is_asked(tmp_path: Path) -> None:
    """The defaults hold."""
    console = Console({}, tmp_path, io.StringIO(), None, str, str)
    assert (
        ask_settings({}, console, lambda values: load(config_path=None, cli=values, env={}, cwd=tmp_path))
        == {}
    )
