"""Keep releases of relayd side by side in /opt/relayd, and switch between them without losing the service.

A release must start on the machine's configuration and a copy of its database before it is switched to.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

_REPOSITORY = Path(__file__).resolve().parents[1]
_ROOT = Path(os.environ.get("RELAYD_ROOT", "/"))
"""Of the machine; another for an image or a test."""
_PREFIX = _ROOT / "opt/relayd"
_CURRENT = _PREFIX / "current"
_BEFORE = _PREFIX / "before"
"""Names the release that a rollback returns to."""
_COMMANDS = (Path("bin/relayd"), Path("bin/relayd-tui"))
"""Linked from /usr/local, as what is in share: man pages and shell completions."""
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0
_LOOK_EVERY_S = 0.1
_MAX_SAID_BYTES = 1 << 20
_ANYBODY = 65534


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UNITS = "etc/systemd/system"


class InstallError(Exception):
    """It cannot continue; unless the text says otherwise, the release in use is the same as before."""


class InterruptedInstallError(InstallError):
    """A signal ended it."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One relayd of this machine: relayd.service, or relayd@NAME.service."""

    name: str

    @property
    def config(self) -> Path:
        """Its configuration, which exists."""
        return _ROOT / "etc/relayd" / f"{self.name}.toml"

    @property
    def unit(self) -> str:
        """Its service."""
        return "relayd.service" if self.name == "relayd" else f"relayd@{self.name}.service"

    @property
    def database(self) -> Path:
        """Its database, which may not exist yet: in `state_dir` if that is set, else in the unit's."""
        default = "relayd" if self.name == "relayd" else f"relayd-{self.name}"
        chosen = (
            _unit_variables(self.unit).get("RELAYD_STATE_DIR") or self._state_dir() or f"/var/lib/{default}"
        )
        return _ROOT / chosen.lstrip("/") / "relayd.db"

    def _state_dir(self) -> str:
        return str(self._settings().get("state_dir", ""))

    def _has_shared_database(self) -> bool:
        state = self._settings().get("state")
        return isinstance(state, dict) and bool(state.get("url") or state.get("url_file"))

    def _settings(self) -> Mapping[str, object]:
        try:
            return tomllib.loads(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # a trial start says what is wrong with it
            return {}

    def backup_in(self, release: Path) -> Path:
        """Return where its database is kept as that release left it."""
        return release / "backup" / f"{self.name}.db"

    def back_up(self, release: Path) -> Path:
        """Copy the database beside the release that uses it, also while it is written; return the copy."""
        copy = self.backup_in(release)
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        copy.unlink(missing_ok=True)
        if not self.database.exists():
            print(
                f"{self.config}: nothing is backed up, because there is no database at {self.database}.\n"
                "If this relayd keeps its state elsewhere, back it up before an upgrade: relayd backup FILE"
            )
        else:
            with closing(sqlite3.connect(self.database)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
        return copy

    def restore(self, copy: Path) -> None:
        """Replace the database by a copy, whole or not at all; its owner and its mode stay."""
        old = self.database.stat()
        temporary = self.database.with_name(f"{self.database.name}.restored")
        temporary.unlink(missing_ok=True)
        try:
            # O_EXCL follows no symlink: the directory belongs to the service.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as target, copy.open("rb") as source:
                shutil.copyfileobj(source, target)
                target.flush()
                os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, old.st_mode & 0o777)
                os.fsync(descriptor)
            for suffix in ("-wal", "-shm"):  # of the newer one, whose entries are not for this one
                self.database.with_name(self.database.name + suffix).unlink(missing_ok=True)
            temporary.replace(self.database)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        directory = os.open(self.database.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def start_problem(self, release: Path, copy: Path) -> str:
        """Start a release on this configuration and a copy of the database, and stop it again.

        Returns:
            What it said if it did not start; empty if it did.
        """
        user = None
        if os.geteuid() == 0:  # as the service does: as the owner of its state, once there is one
            user = self.database.stat().st_uid if self.database.exists() else _ANYBODY
        with TemporaryDirectory(prefix="relayd-trial-") as trial:
            if copy.exists():
                shutil.copyfile(copy, f"{trial}/relayd.db")
            if user is not None:
                # The directory last: its owner could put a symlink in a file's place.
                for path in (*Path(trial).iterdir(), Path(trial)):
                    os.chown(path, user, user, follow_symlinks=False)
            # No port, socket or secret of the service that runs meanwhile.
            env = {
                "PATH": os.environ["PATH"],
                "RELAYD_STATE_DIR": trial,
                "RELAYD_ADMIN__SOCKET": f"{trial}/admin.sock",
                "RELAYD_ADMIN__GROUP": "",
                "RELAYD_SERVER__PORT": "0",
                "OPENAI_API_KEY": "not-needed-to-start",
            }
            if self._has_shared_database():
                # A trial must not change its tables while older releases use them.
                env |= {"RELAYD_STATE__URL": "", "RELAYD_STATE__URL_FILE": ""}
            return _start_problem(
                [release / "bin/relayd", "serve", "--config", self.config], trial, env, user
            )


def _start_problem(words: Sequence[str | Path], cwd: str, env: dict[str, str], user: int | None) -> str:
    with TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                words,
                cwd=cwd,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
        except OSError as error:
            return str(error)
        deadline_s, said = time.monotonic() + _START_TIMEOUT_S, b""
        with process:
            try:
                while process.poll() is None and b"serving on" not in said and time.monotonic() < deadline_s:
                    time.sleep(_LOOK_EVERY_S)
                    said = os.pread(log.fileno(), _MAX_SAID_BYTES, 0)
                process.terminate()
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
            except InterruptedInstallError:
                process.kill()  # before the context waits for it
                raise
        said = os.pread(log.fileno(), _MAX_SAID_BYTES, 0)
    if b"serving on" in said:
        return ""
    return said.decode(errors="replace").strip() or f"It said nothing in {_START_TIMEOUT_S:.0f} s."


@cache
def _unit_variables(unit: str) -> Mapping[str, str]:
    if not (_ROOT / "run/systemd/system").is_dir():
        return {}
    shown = _run("systemctl", "show", unit, "--property=Environment").strip()
    pairs = (word.partition("=") for word in shlex.split(shown.removeprefix("Environment=")))
    return {name: value for name, _, value in pairs}


def _instances() -> Iterator[Instance]:
    for config in sorted((_ROOT / "etc/relayd").glob("*.toml")):
        yield Instance(config.stem)


def _run(*words: str | Path, env: Mapping[str, str] | None = None) -> str:
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env) as process:
        output = None
        try:
            while output is None:
                # Python runs a signal's handler only after the system call: none of them may last.
                with suppress(subprocess.TimeoutExpired):
                    output, _ = process.communicate(timeout=_LOOK_EVERY_S)
        except BaseException:
            process.kill()
            raise
    said = output.decode(errors="replace")
    if process.returncode:
        raise InstallError(f"{' '.join(map(str, words))} failed:\n{said.strip()}")
    return said


def _interrupt(number: int, _frame: object) -> None:
    for each in _SIGNALS:  # another one must not interrupt the cleaning up
        signal.signal(each, signal.SIG_IGN)
    raise InterruptedInstallError(f"interrupted by {signal.Signals(number).name}")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let signals wait until the block has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _switch(release: Path, now: Path | None) -> None:
    """Make a release the one in use, in one step, and record the one that was."""
    following, record = _PREFIX / "next", _PREFIX / "next-before"
    if now:  # written first: a full disk must not fail between the two renames
        record.write_text(f"{now.name}\n")
    following.unlink(missing_ok=True)
    following.symlink_to(release.relative_to(_PREFIX))
    following.replace(_CURRENT)
    if now:
        record.replace(_BEFORE)


def _restart(release: Path, now: Path | None, units: Sequence[str]) -> bool:
    """Restart these units with the release that `_switch` made the one in use.

    Returns:
        Whether a service was restarted, which proves that the release starts.
    """
    services = _services(units)
    if units:
        try:
            _run("systemctl", "reset-failed", *units)
            # Each service starts its socket, which may have failed with it.
            _run("systemctl", "restart", *(services or units))
        except InstallError as error:
            way = f"; scripts/install --rollback returns to {now.name}" if now else ""
            raise InstallError(f"{error}\n{release.name} is in use{way}.") from error
    print(f"{_run(_CURRENT / 'bin/relayd', '--version').strip()} is in use: {release}")
    return bool(services)


def _services(units: Sequence[str]) -> list[str]:
    return [unit for unit in units if unit.endswith(".service")]


def _recorded() -> Path | None:
    """Return the release before, if there is one."""
    if not _BEFORE.exists():
        return None
    return _PREFIX / "releases" / Path(_BEFORE.read_text().strip()).name


def _units() -> list[str]:
    """Return the units that run, or should and failed; those that somebody stopped stay stopped."""
    if not (_ROOT / "run/systemd/system").is_dir():
        return []
    states = "--state=active,activating,reloading,failed"
    patterns = ("relayd.socket", "relayd.service", "relayd@*.service")
    listed = _run("systemctl", "list-units", "--all", "--plain", "--no-legend", states, *patterns)
    return [line.split()[0] for line in listed.splitlines()]


def _build(release: Path) -> None:
    python = release / "bin/python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps")
    _run(os.environ.get("PYTHON", "python3"), "-m", "venv", release)
    _run(*pip, "--require-hashes", "-r", _REPOSITORY / "requirements.txt")
    _run(*pip, "--no-build-isolation", _REPOSITORY)


def _try(release: Path, now: Path) -> None:
    """Back up each database, and start the new release on a copy of it. Raises InstallError."""
    for instance in _instances():
        copy = instance.back_up(now)
        problem = instance.start_problem(release, copy)
        # Where the unit has settings of its own, the release in use does not start like this, either.
        if problem and not instance.start_problem(now, copy):
            raise InstallError(
                f"The new release does not start with {instance.config}, so {now.name} stays:\n{problem}"
            )


def _link(release: Path) -> None:
    """Link the commands, the man pages and the completions of a release from /usr/local."""
    shared = (path.relative_to(release) for path in release.glob("share/**/*") if path.is_file())
    for path in (*_COMMANDS, *shared):
        link = _ROOT / "usr/local" / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(_CURRENT / path)


def _compare_units() -> None:
    """Say which units of this machine differ from those that the release in use writes."""
    config, units = Instance("relayd").config, _ROOT / _UNITS
    installed = sorted(path for path in units.glob("relayd*") if path.suffix in {".service", ".socket"})
    if not installed or not config.exists():
        return
    with TemporaryDirectory(prefix="relayd-units-") as image:
        copy = Path(image, "etc/relayd", config.name)
        copy.parent.mkdir(parents=True)
        shutil.copyfile(config, copy)
        words = ("init", "--system", "--root", image, "--yes", "--no-check")
        try:
            _run(_ROOT / "usr/local" / _COMMANDS[0], *words, env={"PATH": os.environ["PATH"]})
        except InterruptedInstallError:
            raise
        except InstallError as error:
            print(f"The units are not compared with those of this release: {error}")
            return
        ours = ((path, Path(image, _UNITS, path.name)) for path in installed)
        older = [path for path, our in ours if our.exists() and our.read_bytes() != path.read_bytes()]
    if older:
        print(
            f"Unchanged, and not as this release has them: {', '.join(map(str, older))}.\n"
            "To renew them (relayd.toml, the key and what `systemctl edit` added stay as they are):\n"
            "  sudo relayd init --system"
        )


def install() -> None:
    """Build a release, try it, switch to it, and remove all but the one before.

    The one before that stays, too, until a service has started with the new release.
    """
    now = _CURRENT.resolve() if _CURRENT.exists() else None
    release = _PREFIX / "releases" / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    release.parent.mkdir(parents=True, exist_ok=True)
    for directory in (_PREFIX, release.parent):
        directory.chmod(0o755)
    try:
        _build(release)
        if now:
            _try(release, now)
    except BaseException:
        shutil.rmtree(release, ignore_errors=True)
        raise
    with _uninterrupted():
        _link(release)
        units, kept = _units(), {release, now, _recorded()}
        _switch(release, now)
        if _restart(release, now, units):
            kept = {release, now}
    _compare_units()
    for old in release.parent.iterdir():
        if old not in kept:
            shutil.rmtree(old)


def roll_back() -> None:
    """Return to the release before, with its own copy of a database that it can no longer read."""
    now, before = _CURRENT.resolve(), _recorded()
    if before is None or before == now or not before.exists():
        raise InstallError(f"There is no release before this one in {_PREFIX}.")
    units = _units()
    unreadable: dict[Instance, Path] = {}
    for instance in _instances():
        newest, older = instance.back_up(now), instance.backup_in(before)
        problem = instance.start_problem(before, newest)
        if not problem:
            continue
        if newest.exists() and older.exists() and not instance.start_problem(before, older):
            unreadable[instance] = older
        elif not instance.start_problem(now, newest):
            raise InstallError(
                f"{before.name} starts with {instance.config} neither on the newest database nor on its own "
                f"copy, so {now.name} stays:\n{problem}"
            )
    with _uninterrupted():
        if unreadable:
            _switch_with_databases(before, now, unreadable, units)
        else:
            _switch(before, now)
        for instance, older in unreadable.items():
            at = datetime.fromtimestamp(older.stat().st_mtime, UTC)
            print(
                f"{before.name} cannot read {instance.database}: "
                f"its copy of {at:%Y-%m-%dT%H:%M:%SZ} is back.\n"
                "Lost since then: requests in the log, changes of clients, bounds and keys, and what was "
                "used. Keys revoked since then work again; revoke them.\n"
                f"The newer database is kept: {instance.backup_in(now)}"
            )
        _restart(before, now, units)


def _switch_with_databases(
    before: Path, now: Path, copies: Mapping[Instance, Path], units: Sequence[str]
) -> None:
    """Stop the units, restore these copies and switch.

    Raises:
        InstallError: It failed; the databases are put back, and the units are started again.
    """
    kept: dict[Instance, Path] = {}
    restored: list[Instance] = []
    try:
        if units:
            _run("systemctl", "stop", *units)
        for instance in copies:  # once more: the service has written during the trials
            kept[instance] = instance.back_up(now)
        for instance, older in copies.items():
            instance.restore(older)
            restored.append(instance)
        _switch(before, now)
    except (InstallError, OSError, sqlite3.Error) as error:
        said = [f"{now.name} stays: {error}"]
        for instance in restored:
            try:
                instance.restore(kept[instance])
            except OSError as again:
                said.append(f"{instance.database} is still the older copy: {again}")
        said += [f"The newest database is kept: {copy}" for copy in kept.values()]
        if units:
            try:
                _run("systemctl", "start", *(_services(units) or units))
            except InstallError as again:
                said.append(str(again))
        raise InstallError("\n".join(said)) from error


def main() -> int:
    """Install, upgrade or go back; return 1 if that is not possible."""
    parser = ArgumentParser(prog="scripts/install", description=__doc__)
    parser.add_argument("--rollback", action="store_true", help="return to the release before")
    args = parser.parse_args()
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        roll_back() if args.rollback else install()
    except InterruptedInstallError as error:
        used = f"{_CURRENT.resolve().name} is in use" if _CURRENT.exists() else "nothing is installed"
        print(f"scripts/install: {error}; {used}.", file=sys.stderr)
        return 1
    except (InstallError, OSError, sqlite3.Error) as error:
        print(f"scripts/install: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
