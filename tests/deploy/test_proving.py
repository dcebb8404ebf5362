"""What scripts/prove takes along from the machine it runs on."""

from __future__ import annotations

from pathlib import Path

import pytest
from proving.host import directories, pip_settings
from proving.roots import ProofFailed
from proving.terminal import at_terminal


def test_pips_settings_count_as_pip_counts_them() -> None:
    """The environment wins over files, `install` over `global`; what reaches no registry stays out."""
    told = (
        ":env:.disable-pip-version-check='1'\n"
        ":env:.index-url='https://one.example/simple'\n"
        "global.index-url='https://two.example/simple'\n"
        "global.extra-index-url='\\nfile:///srv/a/simple\\nfile:///srv/b/simple'\n"
        "global.default-timeout='180'\n"
        "install.timeout='60'\n"
    )
    assert pip_settings(told) == {
        "index-url": "https://one.example/simple",
        "extra-index-url": "file:///srv/a/simple file:///srv/b/simple",
        "timeout": "60",
    }
    assert pip_settings("") == {}


def test_directories_that_pip_reads_are_shown_inside(tmp_path: Path) -> None:
    """A directory of wheels, and an index with the files beside it; nothing of the network."""
    (tmp_path / "index" / "simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    settings = {
        "index-url": "https://example.com/simple",
        "extra-index-url": f"file://{tmp_path}/index/simple file:///nowhere/at-all/simple",
        "find-links": f"{tmp_path}/wheels",
    }
    assert directories(settings) == (tmp_path / "index", tmp_path / "wheels")


def test_questions_are_answered_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Each answer waits for its question; a question that never came fails the proof."""
    script = 'read -p "Name? " a; read -p "Name? " b; echo "$a and $b"'
    seen = at_terminal(["bash", "-c", script], [("Name?", "one\n"), ("Name?", "two\n")])
    assert seen.endswith("one and two\n")
    assert "one and two" in capsys.readouterr().out
    with pytest.raises(ProofFailed, match=r"unasked: \['Age'\]"):
        at_terminal(["true"], [("Age", "3\n")], shown=False)
    with pytest.raises(ProofFailed, match="status 3"):
        at_terminal(["sh", "-c", "exit 3"], shown=False)
