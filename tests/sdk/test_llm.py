"""Simon Willison's `llm`, unmodified, through relayd's `/v1`, configured as docs/v1.md says."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sdk.harness import HEARTBEATS, V1
from tests.support.upstream_api import PNG
from tests.support.upstream_script import WORDS

_TIMEOUT_S = 120
Ask = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ask(request: pytest.FixtureRequest, llm: Path, tmp_path: Path) -> Ask:
    """Run `llm` with models that relayd serves; its files are in a home of its own."""
    beating_v1: V1 = request.getfixturevalue("beating_v1")
    home = tmp_path / "llm"
    home.mkdir()

    def run(words: str, *arguments: str, responses: bool = False) -> subprocess.CompletedProcess[str]:
        entry = {
            "model_id": "relayd",
            "model_name": beating_v1.model(words),
            "api_base": beating_v1.base_url,
            "api_key_name": "relayd",
            "supports_tools": True,
            "supports_schema": True,
            "vision": True,
            "responses": responses,
        }
        # JSON is YAML.
        (home / "extra-openai-models.yaml").write_text(json.dumps([entry]))
        (home / "keys.json").write_text(json.dumps({"relayd": beating_v1.key}))
        return subprocess.run(
            [str(llm), "-m", "relayd", *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LLM_USER_PATH": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )

    return run


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize("arguments", [(), ("--no-stream",)])
def test_a_prompt_is_answered(ask: Ask, arguments: tuple[str, ...], *, responses: bool) -> None:
    """Streamed with heartbeats in it, and whole."""
    ran = ask(HEARTBEATS, *arguments, "Say hi", responses=responses)
    assert (ran.returncode, ran.stdout.strip()) == (0, WORDS.strip()), ran.stderr


@pytest.mark.parametrize("responses", [False, True])
def test_tools_schemas_and_images_work(ask: Ask, tmp_path: Path, *, responses: bool) -> None:
    """A tool is called and its result answered, a schema is followed, a picture is sent."""
    called = ask("", "-T", "llm_version", "--td", "Which version?", responses=responses)
    assert (called.returncode, called.stdout.strip()) == (0, WORDS.strip()), called.stderr
    assert "Tool call: llm_version" in called.stderr
    followed = ask("", "--schema", "name, inhabitants int", "Where?", responses=responses)
    assert json.loads(followed.stdout) == {"name": "Paris", "inhabitants": 3}
    picture = tmp_path / "dot.png"
    picture.write_bytes(PNG)
    shown = ask("text=echo", "-a", str(picture), "What?", responses=responses)
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert f"[image of {len(url)} characters]" in shown.stdout


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize(
    "words", ["fault=cut_mid", "fault=cut_fin", "fault=end_early", "fault=status,code=400"]
)
def test_what_fails_is_an_error(ask: Ask, words: str, *, responses: bool) -> None:
    """The command's exit status says so, and a sentence why."""
    ran = ask(words, "Say hi", responses=responses)
    assert ran.returncode == 1, ran.stdout
    assert ran.stderr.startswith("Error: ")
