"""docs/deploy/Dockerfile without a container engine: its steps in Debian trees, then a look at the result.

What an engine would run is run: as the image's user, on a root that can't be written, with its environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proving.dockerfile import Instruction, Stage, dockerfile, ignores, parse
from proving.roots import ProofFailed, Supplies, call

_TOP = Path(__file__).parents[2]
_MOST_BYTES = 150_000_000
_BASES = {"debian:bookworm-slim": ("slim", ())}
_UNWANTED = (
    *("bin/sh", "bin/bash", "usr/bin/sh", "usr/bin/apt", "usr/bin/dpkg", "usr/bin/perl", "src", "debs"),
    *("opt/relayd/bin/pip", "usr/bin/curl", "root"),
)


def prove(supplies: Supplies, home: Path) -> None:
    """Build, look, run."""
    stages = parse(dockerfile(_TOP).read_text(encoding="utf-8"))
    built: dict[str, Path] = {}
    for stage in stages:
        print(f"--- {stage.base} {stage.name}", flush=True)
        built[stage.name] = _build(stage, built, supplies, home)
    image, last = built[""], stages[-1]
    _look(image)
    _run(image, last, home)


def _build(stage: Stage, built: dict[str, Path], supplies: Supplies, home: Path) -> Path:
    root = home / (stage.name or "final")
    if stage.base == "scratch":
        root.mkdir()
    else:
        supplies.copy(supplies.bare(*_BASES[stage.base]), root)
    where = "/"
    for step in stage.instructions:
        print(f"    {step.word} {step.rest[:90]}", flush=True)
        if step.word == "WORKDIR":
            where = step.rest
            (root / where.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif step.word == "COPY":
            _copy(step, root, where, built)
        elif step.word == "RUN":
            call(supplies.nspawn(root, f"--chdir={where}", "/bin/sh", "-c", step.rest))
    return root


def _copy(step: Instruction, root: Path, where: str, built: dict[str, Path]) -> None:
    words = step.words
    source = _TOP
    if words[0].startswith("--from="):
        source = built[words.pop(0).removeprefix("--from=")]
    else:
        let_in, _ = ignores(dockerfile(_TOP).with_suffix(".dockerignore").read_text(encoding="utf-8"))
        if not set(words[:-1]) <= let_in:
            raise ProofFailed(f"COPY {step.rest}: .dockerignore shuts it out")
    target = root / os.path.join(where, words[-1]).lstrip("/")  # noqa: PTH118 - an absolute target wins
    for name in words[:-1]:
        found = source / name.lstrip("/")
        if found.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copytree(
                found,
                target,
                symlinks=True,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("__pycache__") if source == _TOP else None,
            )
            _keep_owners(found, target)
        else:
            shutil.copy2(found, target / found.name if target.is_dir() else target)


def _keep_owners(found: Path, target: Path) -> None:
    for path in found.rglob("*"):
        info = path.lstat()
        if info.st_uid:
            os.chown(target / path.relative_to(found), info.st_uid, info.st_gid, follow_symlinks=False)


def _look(image: Path) -> None:
    """Small, and nothing in it that helps an intruder."""
    files = [path for path in image.rglob("*") if not path.is_symlink() and path.is_file()]
    size = sum(path.stat().st_size for path in files)
    if size >= _MOST_BYTES:
        raise ProofFailed(f"the image has {size / 1e6:.0f} MB")
    print(f"--- {len(files)} files, {size / 1e6:.0f} MB", flush=True)
    present = [name for name in _UNWANTED if (image / name).exists()]
    risen = [str(path) for path in files if path.stat().st_mode & 0o6000]
    if present or risen:
        raise ProofFailed(f"the image holds {present + risen}")
    print("--- no shell, no package manager, nothing setuid", flush=True)


def _run(image: Path, stage: Stage, home: Path) -> None:
    """Start it as an engine would, ask it for an answer, and stop it."""
    entry, check = stage.last("ENTRYPOINT"), stage.last("HEALTHCHECK")
    user, where = stage.last("USER"), stage.last("WORKDIR")
    if entry is None or check is None or user is None or where is None:
        raise ProofFailed("ENTRYPOINT, HEALTHCHECK, USER or WORKDIR is missing")
    state = home / "state"
    state.mkdir(mode=0o700)
    number = int(user.rest.partition(":")[0])
    os.chown(state, number, number)
    inside = _Inside(image, state, user.rest, stage.environment(), where.rest)
    with inside.daemon(*entry.words, "serve", "--demo") as process:
        health = json.loads(check.rest.partition("CMD")[2])
        deadline = time.monotonic() + 60
        while (done := inside.beside(process, *health)).returncode != 0:
            if time.monotonic() > deadline or process.poll() is not None:
                raise ProofFailed(f"never healthy: {done.stderr}")
            time.sleep(0.5)
        print("--- healthy, by its own check", flush=True)
        added = inside.beside(process, *entry.words, "keys", "add", "web")
        request = urllib.request.Request(
            "http://127.0.0.1:3666/chat",
            b'{"messages":[{"role":"user","content":"hi"}]}',
            {"Authorization": added.stdout.split()[-1]},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the address stands above
            if b'"content":"[DONE]"' not in answer.read():
                raise ProofFailed("no whole answer came")
        print("--- answers; stops when told", flush=True)


class _Inside:
    """The image's root, read-only, in mounts of its own; only /state can be written."""

    def __init__(self, image: Path, state: Path, user: str, env: dict[str, str], where: str) -> None:
        self._enter = ["chroot", f"--userspec={user}", "--groups=", str(image)]
        mounts = [
            f"mount --bind {image} {image}",
            f"mount --bind {state} {image}/state",
            f"mount -t tmpfs tmpfs {image}/dev",
            *(
                f"touch {image}/dev/{name} && mount --bind /dev/{name} {image}/dev/{name}"
                for name in _DEVICES
            ),
            f"mount -o remount,ro,bind {image}",
        ]
        self._mounts = " && ".join(mounts)
        self._env = env
        self._change = f"import os, sys; os.chdir({where!r}); os.execvp(sys.argv[1], sys.argv[1:])"

    def _words(self, *words: str) -> list[str]:
        return [*self._enter, "/usr/bin/python3", "-c", self._change, *words]

    @contextmanager
    def daemon(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Run it; it must end well when it is told to."""
        (self._image / "dev").mkdir(exist_ok=True)
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f'{self._mounts} && exec "$@"', "sh", *self._words(*words)],
            env={**self._env, "PATH": f"{self._env['PATH']}:/usr/bin:/bin:/usr/sbin:/sbin"},
            text=True,
            stderr=sys.stdout,
        )
        try:
            yield process
        finally:
            process.terminate()
            status = process.wait(60)
        if status != 0:
            raise ProofFailed(f"the daemon ended with {status}")

    @property
    def _image(self) -> Path:
        return Path(self._enter[-1])

    def beside(self, process: subprocess.Popen[str], *words: str) -> subprocess.CompletedProcess[str]:
        """Run something else in the same mounts, as `docker exec` does."""
        return subprocess.run(
            ["nsenter", f"--target={process.pid}", "--mount", "--", *self._words(*words)],
            env={**self._env, "PATH": f"{self._env['PATH']}:/usr/bin:/bin:/usr/sbin:/sbin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


_DEVICES = ("null", "urandom", "zero")
