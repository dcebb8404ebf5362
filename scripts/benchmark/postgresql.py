"""A PostgreSQL for one relay, as Debian installs it, with its usual settings: every commit is on disk."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmark.programs import CannotRunError, on_core

_START_TIMEOUT_S = 30


@contextmanager
def running(folder: Path, core: int) -> Iterator[None]:
    """Run a server whose files and whose Unix socket are in this folder.

    Raises:
        CannotRunError: it is not installed, or does not start.
    """
    data = folder / "postgresql"
    data.mkdir()
    command: list[str] = []
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        os.chown(data, user.pw_uid, user.pw_gid)
        command = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    command += [str(_programs() / "pg_ctl"), "-s", "-D", str(data / "data")]
    try:
        _run(command, "initdb", "-o", "-U relayd -A trust -E UTF8", folder=data)
        with on_core(core):
            _run(command, "start", "-w", "-l", str(data / "log"), "-o", f"-k {data} -h ''", folder=data)
    except subprocess.SubprocessError as error:
        raise CannotRunError(f"PostgreSQL does not start: {error}") from None
    try:
        yield
    finally:
        _run(command, "stop", "-m", "immediate", folder=data)


def _run(command: list[str], *words: str, folder: Path) -> None:
    subprocess.run(
        [*command, *words], check=True, stdout=subprocess.DEVNULL, cwd=folder, timeout=_START_TIMEOUT_S
    )


def url(folder: Path) -> str:
    """Return the URL of the server's database."""
    return f"postgresql://relayd@/postgres?host={folder / 'postgresql'}"


def _programs() -> Path:
    """Return the directory of the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    installed = shutil.which("postgres")
    if installed is not None:
        return Path(installed).parent
    if not found:
        raise CannotRunError("PostgreSQL is not installed; on Debian: apt install postgresql")
    return found[-1]
