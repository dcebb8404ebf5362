"""Debian file trees: made once by debootstrap, copied for each use, entered by systemd-nspawn."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proving import host

RELEASE = "bookworm"


class ProofFailed(Exception):
    """What was to be proved does not hold; the text says what was seen."""


@dataclass(frozen=True, slots=True)
class Supplies:
    """Where things come from.

    Attributes:
        cache: keeps the bare trees between runs.
        pip: how this machine's pip reaches its registry.
    """

    cache: Path
    pip: Mapping[str, str]

    def bare(self, name: str, packages: Sequence[str]) -> Path:
        """A tree with these packages beside the essential ones; made where it is not in the cache."""
        root = self.cache / f"{RELEASE}-{name}"
        if not root.exists():
            print(f"Making {root} ...", flush=True)
            part = root.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(parents=True, exist_ok=True)
            include = [f"--include={','.join(packages)}"] if packages else []
            # Where this machine has the release itself, its mirror is one that can be reached.
            mirrors = [url for url, suite in host.apt_sources(RELEASE) if suite == RELEASE]
            call(["debootstrap", "--variant=minbase", *include, RELEASE, str(part), *mirrors[:1]])
            part.rename(root)
        return root

    def copy(self, bare: Path, to: Path) -> Path:
        """A copy that may be changed."""
        call(["cp", "-a", "--reflink=auto", str(bare), str(to)])
        host.hand_over(to, RELEASE, self.pip)
        for shown in self._shown:
            (to / str(shown).lstrip("/")).mkdir(parents=True, exist_ok=True)
        if (to / "usr/sbin/update-ca-certificates").exists():
            call(["chroot", str(to), "update-ca-certificates"])
        return to

    @property
    def _shown(self) -> tuple[Path, ...]:
        return host.directories(self.pip)

    def nspawn(self, root: Path, *words: str) -> list[str]:
        """The command that enters a tree, with this machine's network."""
        binds = [f"--bind-ro={bind}" for bind in self._shown]
        options = ["--quiet", "--register=no", "--keep-unit", "--resolv-conf=copy-host", *binds]
        return ["systemd-nspawn", *options, f"--directory={root}", *words]


def call(words: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
    """Run a command, in this environment or with what reaches the network; returns what it said.

    Raises:
        ProofFailed: it failed.
    """
    done = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=_environment() if env is None else env,
    )
    if done.returncode != 0:
        raise ProofFailed(f"{' '.join(words)}\n{done.stdout[-4000:]}")
    return done.stdout


def _environment() -> dict[str, str]:
    """Nothing of the caller's but what reaches the network."""
    kept = ("PATH", "HOME", "http_proxy", "https_proxy", "no_proxy")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C.UTF-8"}
