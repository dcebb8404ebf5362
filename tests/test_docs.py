"""The documentation holds together: links lead somewhere, translations type the same, faults are as shown."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from relayd.cli import main
from tests.e2e.daemon import environment
from tests.support.programs import PACKAGES, needs

_TOP = Path(__file__).parent.parent
_PAGES = [_TOP / "README.md", *sorted((_TOP / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
_PROVED = re.compile(r"<!-- scripts/prove: (\w+) -->\n```sh\n")
_CONSOLE = re.compile(r"^\*\*(\d+\. [^*]+)\*\*\n\n```console\n(.*?)```$", re.MULTILINE | re.DOTALL)
_CHECK = re.compile(r"\$ ((?:[A-Z_]+=\S* )*)relayd check\n")
_FAULTS: list[tuple[str, str]] = _CONSOLE.findall((_TOP / "docs/configuration.md").read_text())
"""The ten faults of a configuration: a name, and what a console shows."""
_MAX_PICTURE_BYTES = 150_000
_SECRET = re.compile(rb"sk-[A-Za-z0-9_-]{20,}|rly_[A-Za-z0-9]{8}_[A-Za-z0-9]{49}|BEGIN [A-Z ]*PRIVATE KEY")


def _anchors(page: Path) -> set[str]:
    """What a heading is called in an address: lower case, words joined by hyphens."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading that is in it."""
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        leads_to = (page.parent / path).resolve() if path else page
        assert leads_to.exists(), target
        assert not anchor or anchor in _anchors(leads_to), target


def test_every_page_is_reached_from_the_readme() -> None:
    """A reader who follows links finds every page."""
    found, ahead = set[Path](), [_TOP / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in found:
            continue
        found.add(page)
        links = (link.partition("#")[0] for link in _LINK.findall(page.read_text(encoding="utf-8")))
        ahead += [
            (page.parent / link).resolve() for link in links if link.endswith(".md") and "://" not in link
        ]
    assert sorted(set(_PAGES) - found) == []


@pytest.mark.parametrize(
    ("page", "translation"),
    [("README.md", "docs/README.zh-CN.md"), ("docs/migrate.md", "docs/migrate.zh.md")],
)
def test_a_translation_says_to_type_the_same(page: str, translation: str) -> None:
    """The Chinese page has the English one's commands, all of them, in their order."""
    typed = [
        [line.partition(" #")[0].rstrip() for block in _SHELL.findall(text) for line in block.splitlines()]
        for text in ((_TOP / path).read_text(encoding="utf-8") for path in (page, translation))
    ]
    assert typed[0] == typed[1]


def test_the_protocol_has_the_same_fields_and_codes_in_chinese() -> None:
    """Each row of its tables, with the status of a code."""
    rows = [
        re.findall(r"(?m)^\| `([\w.-]+)`(?:.* \| (\d+) \|)?", (_TOP / path).read_text(encoding="utf-8"))
        for path in ("docs/chat.md", "docs/chat.zh.md")
    ]
    assert rows[0] == rows[1]


def test_the_docs_tell_ten_faults() -> None:
    """None is lost by how they are found here."""
    assert len(_FAULTS) == 10


@pytest.mark.parametrize(("name", "console"), _FAULTS)
def test_a_fault_ends_the_check_as_the_docs_show(
    tmp_path: Path,
    name: str,
    console: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`relayd check` prints exactly that on stderr, and exits 1."""
    shown, _, expected = console.partition("relayd check\n")
    assert expected, name
    for file in re.finditer(r"\$ cat (\S+)\n((?:(?!\$ ).*\n)*)", shown):
        (tmp_path / file[1]).write_text(file[2])
    run = _CHECK.search(console)
    assert run is not None
    env = dict(pair.split("=", 1) for pair in run[1].split())
    monkeypatch.chdir(tmp_path)
    for known in os.environ:
        monkeypatch.delenv(known)
    for variable, value in environment(tmp_path, env).items():
        monkeypatch.setenv(variable, value)
    assert main(["check"]) == 1
    assert capsys.readouterr().err == expected


def test_the_proof_finds_the_steps_that_it_follows() -> None:
    """`scripts/prove` takes its steps out of the README by these marks."""
    assert _PROVED.findall(_PAGES[0].read_text(encoding="utf-8")) == ["install", "try"]


def test_pictures_are_small() -> None:
    """A page of the documentation loads on a slow line."""
    sizes = {path.name: path.stat().st_size for path in (_TOP / "docs" / "img").iterdir()}
    assert [name for name, size in sizes.items() if size > _MAX_PICTURE_BYTES] == []
    assert {"page.png", "tui.svg", "tui-requests.svg"} <= set(sizes)


@needs("git")
def test_no_file_that_is_shipped_or_read_holds_a_key() -> None:
    """Nothing committed beside the tests looks like a key of a provider or of relayd."""
    listed = subprocess.run(
        ["git", "-C", str(_TOP), "ls-files", "--", ":!tests"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git clone")
    names = listed.stdout.splitlines()
    assert len(names) > 100
    assert [n for n in names if (_TOP / n).is_file() and _SECRET.search((_TOP / n).read_bytes())] == []


def test_one_command_installs_every_package_that_a_skipped_test_names() -> None:
    """`scripts/test --install` has them all."""
    words = (_TOP / "scripts/test").read_text(encoding="utf-8").split()
    assert set(PACKAGES.values()) - set(words) == set()
