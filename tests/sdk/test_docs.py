"""The examples of docs/v1.md work as they stand there, with the reader's address and key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.sdk.harness import V1
from tests.support.programs import require
from tests.support.upstream_script import WORDS

_HERE = Path(__file__).parent
_PAGE = _HERE.parents[1] / "docs" / "v1.md"
_TIMEOUT_S = 120


def _blocks(heading: str) -> list[str]:
    """Return the code below a heading."""
    section = re.search(rf"(?ms)^## {re.escape(heading)}$(.*?)(?=^## )", _PAGE.read_text(encoding="utf-8"))
    assert section is not None
    found: list[str] = re.findall(r"```\w*\n(.*?)```", section[1], re.DOTALL)
    return found


def _with_address(code: str, v1: V1) -> str:
    assert "https://YOUR.NAME/v1" in code or "rly_YOUR_KEY" in code
    return code.replace("https://YOUR.NAME/v1", v1.base_url).replace("rly_YOUR_KEY", v1.key)


def _run(*command: str, cwd: Path = _HERE, env: dict[str, str] | None = None) -> str:
    ran = subprocess.run(
        command,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_example_for_curl_streams_an_answer(v1: V1) -> None:
    """As server-sent events."""
    require("curl")
    (code,) = _blocks("curl")
    answer = _run("sh", "-c", _with_address(code, v1))
    assert '"content":"relay "' in answer
    assert answer.endswith("data: [DONE]\n\n")


def test_the_example_for_python_prints_an_answer(v1: V1) -> None:
    """All of it."""
    (code,) = _blocks("openai-python")
    assert _run(sys.executable, "-c", _with_address(code, v1)) == WORDS


@pytest.mark.usefixtures("only_large")
@pytest.mark.parametrize("heading", ["openai-node", "Vercel AI SDK"])
def test_the_examples_for_node_print_an_answer(request: pytest.FixtureRequest, heading: str) -> None:
    """All of it."""
    require("node")
    if not (_HERE / "node" / "node_modules" / "ai").is_dir():
        pytest.skip("needs openai and ai: scripts/clients")
    (code,) = _blocks(heading)
    code = _with_address(code, request.getfixturevalue("v1"))
    assert _run("node", "--input-type=module", "-e", code, cwd=_HERE / "node") == WORDS


def test_the_example_for_llm_prints_an_answer(
    request: pytest.FixtureRequest, llm: Path, tmp_path: Path
) -> None:
    """With the model and the key that it sets up."""
    v1: V1 = request.getfixturevalue("v1")
    models, commands = _blocks("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(_with_address(models, v1))
    env = {
        "HOME": str(tmp_path),
        "LLM_USER_PATH": str(tmp_path),
        "PATH": f"{llm.parent}:{os.environ['PATH']}",
    }
    assert _run("sh", "-ec", _with_address(commands, v1), env=env).strip() == WORDS.strip()


def test_the_example_for_codex_is_toml() -> None:
    """And names the provider that it declares."""
    (code,) = _blocks("Codex")
    config = tomllib.loads(code)
    assert config["model_providers"][config["model_provider"]]["supports_websockets"] is False
