"""The operator's command, run for real."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from relayd.alerts.alert import Alert, AlertKind, Severity
from relayd.alerts.command import AlertCommand, AlertNews, Relay
from tests.wire import PATIENCE_S, until

ALERT = Alert(
    id="route:main", kind=AlertKind.ROUTE, severity=Severity.WARNING, sentence="cools", since="2026-11-28"
)


def news(text: str = "The route main cools down.") -> AlertNews:
    """One piece of news."""
    return AlertNews(text, "begin", ALERT, Relay("vps1", "http://127.0.0.1:3666", "0"))


def script(text: str, *arguments: Path) -> list[str]:
    """A shell script with its arguments."""
    return ["/bin/sh", "-c", text, "sh", *map(str, arguments)]


@asynccontextmanager
async def running() -> AsyncIterator[AlertCommand]:
    """What runs commands, ended with the block."""
    command = AlertCommand()
    try:
        yield command
    finally:
        await command.close()


async def test_the_command_gets_the_document_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On its standard input, one after the other; the environment has nothing of the provider's key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("HOME", "/home/ada")
    caplog.set_level(logging.INFO, logger="relayd")
    document, environment, done = tmp_path / "document", tmp_path / "env", tmp_path / "done"
    async with running() as command:
        command.tell(script('cat > "$1"; env > "$2"; exit 3', document, environment), news())
        command.tell(script('test -s "$1" && : > "$2"', environment, done), news())
        await until(lambda: done.exists() and caplog.text.count("exit status") > 1)
    told = msgspec.json.decode(document.read_bytes(), type=AlertNews)
    assert told == news()
    assert "HOME=/home/ada" in environment.read_text()
    assert "secret" not in environment.read_text()
    assert "exit status 3 for the begin of route:main" in caplog.text


async def test_a_command_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With what it started; the next one runs. One that can't be run is logged."""
    monkeypatch.setattr("relayd.alerts.command.RUN_S", 0.2)
    after = tmp_path / "after"
    async with running() as command:
        command.tell(script("sleep 1000 & sleep 1000"), news())
        await until(lambda: "killed after 0.2 s, for the begin of route:main" in caplog.text)
        # The others have the time that a busy machine takes.
        monkeypatch.setattr("relayd.alerts.command.RUN_S", PATIENCE_S)
        command.tell(["/nowhere/to/be/found --token canary"], news())
        command.tell(script(': > "$1"', after), news())
        await until(after.exists)
    assert "/nowhere/to/be/found can't be run" in caplog.text
    assert "canary" not in caplog.text


async def test_what_does_not_fit_the_queue_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A slow command must not fill the memory; what waits at the end is named as well."""
    monkeypatch.setattr("relayd.alerts.command.MAX_WAITING", 2)
    begun = tmp_path / "begun"
    async with running() as command:
        command.tell(script(': > "$1"; exec sleep 1000', begun), news())
        await until(begun.exists)
        for _ in range(5):
            command.tell(script("exec sleep 1000"), news())
    assert caplog.text.count("not run for the begin of route:main: 2 others wait") == 3
    assert caplog.text.count("not run for the begin of route:main: relayd stops") == 2


async def test_a_program_that_does_not_start_holds_up_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one on a disk that does not answer: neither the event loop nor the end of the daemon waits."""
    monkeypatch.setattr("relayd.alerts.command.END_WITHIN_S", 0.05)
    begun, may_start = threading.Event(), threading.Event()

    def start(*_: object) -> None:
        begun.set()
        may_start.wait()
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr("relayd.alerts.command._start", start)
    command = AlertCommand()
    try:
        command.tell(["/mnt/dead/program"], news())
        await until(begun.is_set)
        await asyncio.wait_for(asyncio.to_thread(command.tell, ["/mnt/dead/program"], news()), PATIENCE_S)
        await asyncio.wait_for(command.close(), PATIENCE_S)
        assert "it neither starts nor ends" in caplog.text
    finally:
        may_start.set()
    await until(lambda: "not run for the begin of route:main: relayd stops" in caplog.text)
