"""What the tests' own event loop lets pass and what it does not; run as a real pytest process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

INNER = """
import asyncio, logging, time
import pytest

async def test_passes(tmp_path):
    await asyncio.sleep(0)
    assert type(asyncio.get_running_loop()).__module__ == "uvloop"

async def test_task_that_is_ending_passes():
    task = asyncio.create_task(asyncio.sleep(0.05))

async def test_expected_error_passes(io_loop):
    io_loop.expect_error("asked for")
    asyncio.get_running_loop().call_exception_handler({"message": "asked for"})

async def test_leaked_task():
    test_leaked_task.kept = asyncio.create_task(asyncio.sleep(3600), name="the-leak")

async def test_loop_exception():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.01)

async def test_lost_exception():
    async def fail():
        raise LookupError("lost on purpose")
    asyncio.create_task(fail())
    await asyncio.sleep(0)

async def test_error_log():
    logging.getLogger("tornado.application").error("handler failed")

async def test_missing_error(io_loop):
    io_loop.expect_error("never comes")

async def test_assertion_and_leak():
    test_assertion_and_leak.kept = asyncio.create_task(asyncio.sleep(3600), name="second")
    assert 1 == 2

@pytest.mark.timeout(seconds=0.2)
async def test_too_slow():
    await asyncio.sleep(3600)

@pytest.mark.timeout(seconds=0.1)
async def test_blocked():
    time.sleep(3600)

@pytest.mark.timeout(seconds=0.1)
async def test_refuses_to_end():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def test_after_all_that():
    await asyncio.sleep(0)
"""


INNER_CONFTEST = """
import json
import tests.support.loop
from tests.conftest import *

tests.support.loop.ENDING_S = 1.0
tests.support.loop.HARD_LIMIT_MARGIN_S = 0.5

def pytest_runtest_logreport(report):
    with open("reports", "a") as reports:
        verdict = report.longreprtext if report.failed else ""
        reports.write(json.dumps([report.nodeid.partition("::")[2], verdict]) + "\\n")
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each inner test's verdict: "" when it passed, else the text of its failure."""
    folder = tmp_path_factory.mktemp("inner")
    (folder / "test_inner.py").write_text(INNER)
    (folder / "conftest.py").write_text(INNER_CONFTEST)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    run = subprocess.run(
        [*command, f"--rootdir={folder}", str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    texts: dict[str, str] = {}
    for line in (folder / "reports").read_text().splitlines():
        name, text = json.loads(line)
        texts[name] = texts.get(name, "") + text
    return texts


@pytest.mark.parametrize(
    "name",
    [
        "test_passes",
        "test_task_that_is_ending_passes",
        "test_expected_error_passes",
        "test_after_all_that",
    ],
)
def test_good_test_passes(verdicts: dict[str, str], name: str) -> None:
    """A test that leaves nothing behind passes, also after others that were ended by force."""
    assert verdicts[name] == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test_leaked_task", "the-leak"),
        ("test_loop_exception", "ZeroDivisionError"),
        ("test_lost_exception", "lost on purpose"),
        ("test_error_log", "handler failed"),
        ("test_missing_error", "never comes"),
        ("test_assertion_and_leak", "assert 1 == 2"),
        ("test_too_slow", "ran over its 0.2 s"),
        ("test_blocked", "the loop was blocked"),
        ("test_refuses_to_end", "refused to end"),
    ],
)
def test_bad_test_fails_and_says_why(verdicts: dict[str, str], name: str, said: str) -> None:
    """What a test leaves behind or never ends fails it, and the report names it."""
    assert said in verdicts[name]
