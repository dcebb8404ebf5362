"""A fresh Debian tree, and this machine's way to the package registries for what is installed in it."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

RELEASE = "bookworm"
_TIMEOUT_S = 900.0
_AUTHORITIES = Path("usr/local/share/ca-certificates")


class CommandError(Exception):
    """A command failed; the text has its output."""


def run(*words: str | Path) -> str:
    """Run a command and return its output.

    Raises:
        CommandError: it failed, or takes longer than a step of an installation may.
    """
    try:
        done = subprocess.run(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(str(error)) from error
    if done.returncode:
        raise CommandError(f"{' '.join(map(str, words))}\n{done.stdout[-4000:]}")
    return done.stdout


def make_tree(tree: Path, *, include: Sequence[str] = (), mirror: Sequence[str] = ()) -> None:
    """Make a fresh Debian with debootstrap, as root; its apt trusts and asks what this machine's does.

    Args:
        tree: its directory, made only when all is in it.
        include: packages beside the essential ones.
        mirror: at most one, instead of debootstrap's own.
    """
    part = tree.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    tree.parent.mkdir(parents=True, exist_ok=True)
    packages = [f"--include={','.join(include)}"] if include else []
    run("debootstrap", "--variant=minbase", *packages, RELEASE, part, *mirror)
    shutil.copytree("/etc/apt/apt.conf.d", part / "etc/apt/apt.conf.d", dirs_exist_ok=True)
    (part / _AUTHORITIES).mkdir(parents=True, exist_ok=True)
    for authority in (Path("/") / _AUTHORITIES).glob("*.crt"):
        shutil.copy(authority, part / _AUTHORITIES)
    part.rename(tree)


def pip_settings() -> dict[str, str]:
    """Return how this machine's pip reaches its registry."""
    keys = {"index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "cert"}
    settings = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        if (key := name.rpartition(".")[2]) in keys:
            settings[key] = " ".join(str(ast.literal_eval(value)).split())
    return settings


def write_pip_conf(path: Path, settings: dict[str, str]) -> None:
    """Write these settings as a pip.conf."""
    path.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))


def local_directories(pip: dict[str, str]) -> list[Path]:
    """Return the directories of this machine that pip reads; an index points to files beside its pages."""
    paths = [Path(value.removeprefix("file://")) for value in pip.get("find-links", "").split()]
    for key in ("index-url", "extra-index-url"):
        urls = pip.get(key, "").split()
        paths += [Path(url.removeprefix("file://")).parent for url in urls if url.startswith("file:")]
    return [path for path in paths if path.is_dir()]
