"""Clients that are written in JavaScript, unmodified, through relayd's `/v1`: the tests of `tests/sdk/node`.

They are at home in `scripts/test --all`, which installs the clients; `scripts/clients` does it by hand.
"""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import pytest

from tests.sdk.harness import V1
from tests.support.programs import require
from tests.support.upstream_api import PNG
from tests.support.upstream_script import WORDS
from tests.wire import wait_until

_NODE = Path(__file__).with_name("node")
_TIMEOUT_S = 600
_MIN_NODE = 20
_PACKAGES = {
    "openai.test.mjs": ["openai", "zod"],
    "ai.test.mjs": ["ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "zod"],
    "langchain.test.mjs": ["@langchain/openai", "@langchain/core"],
}


@pytest.mark.usefixtures("only_large")
@pytest.mark.parametrize("name", _PACKAGES)
def test_a_client_in_javascript_works(request: pytest.FixtureRequest, name: str) -> None:
    """All of its tests pass, and each stream that it left is closed at the provider."""
    require("node")
    version = subprocess.run(
        ["node", "-p", "process.versions.node"], capture_output=True, text=True, check=True
    )
    if int(version.stdout.partition(".")[0]) < _MIN_NODE:
        pytest.skip(f"needs Node {_MIN_NODE} or newer; this is {version.stdout.strip()}")
    missing = [package for package in _PACKAGES[name] if not (_NODE / "node_modules" / package).is_dir()]
    if missing:
        pytest.skip(f"needs {' '.join(missing)}: scripts/clients")
    v1: V1 = request.getfixturevalue("v1")
    beating_v1: V1 = request.getfixturevalue("beating_v1")
    known = len(v1.upstream.requests)
    ran = subprocess.run(
        ["node", "--test", "--test-reporter=spec", name],
        cwd=_NODE,
        env={
            "PATH": os.environ["PATH"],
            "RELAYD_BASE_URL": v1.base_url,
            "RELAYD_BEATING_BASE_URL": beating_v1.base_url,
            "RELAYD_KEY": v1.key,
            "RELAYD_WORDS": WORDS,
            "RELAYD_PNG": base64.b64encode(PNG).decode(),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[ran.stdout.find("failing tests:") :]
    left = [seen for seen in v1.upstream.requests[known:] if b"message=left" in seen.body]
    assert left
    wait_until(lambda: all(seen.closed_by_client_at is not None for seen in left))
