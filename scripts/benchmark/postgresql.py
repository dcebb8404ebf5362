"""A PostgreSQL for one relay, as Debian installs it, with its usual settings: every commit is on disk."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from benchmark.programs import CannotRunError, Program

_START_TIMEOUT_S = 30


def start(folder: Path, core: int) -> Program:
    """Start a server whose files and whose Unix socket are in this folder.

    Raises:
        CannotRunError: it is not installed, or does not start.
    """
    programs = _programs()
    as_user: list[str] = []
    data = folder / "postgresql"
    data.mkdir()
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        os.chown(data, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    files = data / "data"
    subprocess.run(
        [*as_user, programs / "initdb", "-D", files, "-U", "relayd", "-A", "trust", "-E", "UTF8"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=data,
        timeout=_START_TIMEOUT_S,
    )
    command = [*as_user, str(programs / "postgres"), "-D", str(files), "-k", str(data), "-h", ""]
    server = Program(command, core=core, env=os.environ, folder=data)
    try:
        server.wait_listening_at(data / ".s.PGSQL.5432", _START_TIMEOUT_S)
    except BaseException:
        server.stop()
        raise
    return server


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
