"""The built wheel in an environment of its own: everything it needs is in it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.e2e.daemon import closed_port
from tests.support.programs import require
from tests.wire import HOST, wait_until

_ROOT = Path(__file__).parents[2]
_PATIENCE_S = 300.0
_SHARED = (("", ".1"), ("", ""), ("_", ""), ("", ".fish"))
"""Man page, and completions of bash, zsh and fish."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of `relayd` and `relayd-tui`, installed from the wheel alone.

    What relayd depends on is taken from here, since fetching it again would only test the registry.
    """
    home = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(home), str(_ROOT))
    venv.create(home / "venv", with_pip=False)
    python = home / "venv" / "bin" / "python"
    (wheel,) = home.glob("*.whl")
    _run(*pip, "--python", str(python), "install", "--no-index", "--no-deps", str(wheel))
    # A path in a .pth file is only searched: an installation in place that lies there is not found.
    site = next((home / "venv" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = _run(str(python), "-c", "import relayd, tui; print(relayd.__file__, tui.__file__)", cwd=home)
    assert found.count(str(site)) == 2, found
    return python.parent


def _run(*words: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        words,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
        env=_environment(cwd),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment(home: Path | None) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home or Path.home()), "TERM": "xterm-256color"}


def test_the_wheel_holds_the_two_packages_and_nothing_else(programs: Path) -> None:
    """Every committed file of relayd and tui, man pages, completions, licences; no test, no state."""
    (wheel,) = programs.parents[1].glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        inside = set(packed.namelist())
        metadata = next(name for name in inside if name.endswith(".dist-info/METADATA"))
        home = metadata.removesuffix("METADATA")
        entries = packed.read(f"{home}entry_points.txt").decode()
    licences = {"licenses/LICENSE", "licenses/relayd/public/static/marked.LICENSE"}
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt"} | licences
    sources = {
        str(path.relative_to(_ROOT))
        for package in ("relayd", "tui")
        for path in (_ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in inside if ".data/" not in name} == sources | {home + name for name in about}
    shared = {Path(name).name for name in inside if ".data/data/share/" in name}
    names = ("relayd", "relayd-tui")
    assert shared == {f"{before}{name}{after}" for name in names for before, after in _SHARED}
    assert "relayd = relayd.cli:main\nrelayd-tui = tui.__main__:main" in entries


def test_the_man_page_says_what_the_help_says(programs: Path) -> None:
    """Of every command, word for word; in dashes that can be copied."""
    page = (programs.parent / "share/man/man1/relayd.1").read_text()
    for words in ([], ["keys"], ["keys", "rotate"]):
        help_ = _run(str(programs / "relayd"), *words, "--help")
        shown = page.replace("\\&", "").replace("\\-", "-").replace("\\e", "\\")
        assert help_ in shown


_TYPED = pytest.mark.parametrize(
    ("typed", "meant"), [("ke", "keys"), ("keys ro", "keys rotate"), ("serve --de", "serve --demo")]
)
# A command of the same name shows what the shell made of the line. Words are in two parts, so that the echo
# of what is typed is not taken for what is shown.
_SHOW = "relayd() { echo ty''ped: $* :; }"
_BASH = "PS1=; source {share}/bash-completion/completions/relayd"
_ZSH = "PS1=; fpath=({share}/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -D"


@_TYPED
@pytest.mark.parametrize(
    ("shell", "setup"), [("bash --norc --noprofile -i", _BASH), ("zsh -f -i", _ZSH)], ids=["bash", "zsh"]
)
def test_the_tab_key_completes_what_is_typed(
    shell: str, setup: str, typed: str, meant: str, programs: Path
) -> None:
    """At a terminal, in bash and zsh, with the files of the wheel."""
    words = shell.split()
    require(words[0])
    ours, its = pty.openpty()
    process = subprocess.Popen(
        words, stdin=its, stdout=its, stderr=its, start_new_session=True, env=_environment(programs.parent)
    )
    os.close(its)
    try:
        os.write(ours, f"{setup.format(share=programs.parent / 'share')}; {_SHOW}; echo re''ady\n".encode())
        _read_until(ours, "ready")
        os.write(ours, f"relayd {typed}\t\n".encode())
        assert f"typed: {meant} :" in _read_until(ours, "typed:", " :")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read_until(terminal: int, *texts: str) -> str:
    """Read until these texts have been shown, one after the other."""
    shown, deadline = "", time.monotonic() + _PATIENCE_S
    pattern = re.compile(".*".join(map(re.escape, texts)))
    while not pattern.search(shown):
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 1 << 16).decode(errors="replace")
    return shown


@_TYPED
def test_fish_offers_what_is_meant(typed: str, meant: str, programs: Path) -> None:
    """With the file of the wheel."""
    require("fish")
    source = f"source {programs.parent}/share/fish/vendor_completions.d/relayd.fish"
    offered = _run("fish", "--no-config", "-c", f"{source}; complete -C 'relayd {typed}'")
    assert meant.rsplit(maxsplit=1)[-1] in offered.split()


def test_init_and_serve_come_from_the_wheel(programs: Path, tmp_path: Path) -> None:
    """`relayd init` finds its template and its units, `relayd serve` finds the page."""
    port = closed_port()
    relayd = str(programs / "relayd")
    assert _run(relayd, "--version").startswith("relayd ")
    assert _run(f"{relayd}-tui", "--version").startswith("relayd-tui ")
    _run(relayd, "init", "--yes", "--port", str(port), cwd=tmp_path)
    _run(relayd, "init", "--yes", "--system", "--root", str(tmp_path / "image"), cwd=tmp_path)
    assert f"{relayd} serve" in (tmp_path / "image/etc/systemd/system/relayd.service").read_text()
    with (tmp_path / "stderr").open("wb") as stderr:
        daemon = subprocess.Popen(
            [relayd, "serve", "--demo"], cwd=tmp_path, env=_environment(tmp_path), stderr=stderr
        )
    try:
        wait_until(lambda: "serving on" in (tmp_path / "stderr").read_text())
        with urlopen(f"http://{HOST}:{port}/page.js", timeout=_PATIENCE_S) as page:
            assert b"submit" in page.read()
        assert "relayd" in _run(relayd, "status", cwd=tmp_path)
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(_PATIENCE_S) == 0
