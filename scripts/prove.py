"""Follow the documentation's steps, word by word, in fresh Debians that systemd-nspawn boots.

README.md: from apt to an answer over TLS. docs/operations.md and docs/deploy.md: an operator without root, a
second instance, a reload, a daily backup, a restore, a reboot, an upgrade that fails, one that works, and the
way back. docs/migrate.md: from the Node relay's `.env` to a service that takes its key.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from debian import (
    RELEASE,
    CommandError,
    local_directories,
    make_tree,
    pip_settings,
    run,
    write_pip_conf,
)

_TOP = Path(__file__).resolve().parents[1]
# What a freshly rented machine has beside the essential packages.
_PACKAGES = ("systemd-sysv", "dbus", "sudo", "ca-certificates", "curl", "iproute2")
_STEPS = re.compile(r"<!-- (?:scripts/prove: )?(\w+) -->\s*```sh\n(.*?)```", re.DOTALL)
_UNIT_FILES = re.compile(r"write `(/etc/systemd/system/\S+)`.*?```ini\n(.*?)```", re.DOTALL)
_NAME = "relay.example.com"
_USER = "alice"
_PROVIDER_KEY = "provider-key-of-the-proof"
_OLD_KEY = "the-key-of-the-old-relay"
_OLD_PORT, _TRIAL_PORT = 3000, 3667
_FIRST_KEY = "/var/lib/relayd/first-key"
_BOOT_TIMEOUT_S = 120.0
_STEP_TIMEOUT_S = 900.0
_CADDYS_AUTHORITY = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
_SECOND_INSTANCE = """
printf '[server]\\nport = 3777\\n[upstream]\\nbase_url = "%s"\\n' {url} | sudo tee /etc/relayd/team.toml
sudo cp -p /etc/relayd/openai_api_key /etc/relayd/team.openai_api_key
sudo systemctl enable --now relayd@team
relayd status --socket /run/relayd-team/admin.sock
curl -sN http://127.0.0.1:3777/chat -H "Authorization: $(sudo cat /var/lib/relayd-team/first-key)" \\
  -d '{{"messages":[{{"role":"user","content":"Say hi"}}]}}'
"""
_RELOAD = """
sudo sed -i 's/^#* *max_streams_per_address = 50/max_streams_per_address = 7/' /etc/relayd/relayd.toml
sudo systemctl reload relayd
timeout 30 bash -c 'until sudo journalctl --unit relayd | grep "reload: server"; do sleep 0.2; done'
"""
# The newest release does not start, and has left a database that the one before cannot read.
_BROKEN_RELEASE = """
sudo systemctl stop relayd.socket relayd
sudo python3 -c '
import sqlite3
sqlite3.connect("/var/lib/private/relayd/relayd.db").execute("PRAGMA user_version = 1000")'
! sudo systemctl start relayd
"""
_BREAK = '\nraise SystemExit("broken on purpose")\n'


class ProofError(CommandError):
    """Something that the documentation promises did not happen."""


class Repository:
    """The bare repository that the machine clones, and a clone that commits to it."""

    def __init__(self, root: Path, home: Path) -> None:
        self._root, self._work = root, home / "work"
        run("git", "-c", "safe.directory=*", "clone", "--quiet", "--no-local", str(_TOP), str(self._work))
        run("git", "clone", "--quiet", "--bare", str(self._work), str(root / "srv/repository.git"))
        site = self._work / "docs/deploy/Caddyfile"
        # No public authority signs for an example's name: Caddy does it itself.
        self.commit(site, "{\n\tlocal_certs\n}\n" + site.read_text(), "Sign for the name ourselves")

    def path(self, name: str) -> Path:
        """Return a file of the clone."""
        return self._work / name

    def commit(self, path: Path, text: str, message: str) -> None:
        """Write a file and push it."""
        path.write_text(text)
        git = ["git", "-c", "user.name=proof", "-c", "user.email=proof@invalid", "-c", "safe.directory=*"]
        run(*git, "-C", str(self._work), "commit", "--quiet", "--all", "--message", message)
        # Git trusts a repository only of the user who runs it: ours for the push, then the machine's.
        bare = self._root / "srv/repository.git"
        run("chown", "-R", "root", bare)
        run(*git, "-C", str(self._work), "push", "--quiet", str(bare), "HEAD")
        run("chroot", str(self._root), "chown", "-R", _USER, "/srv/repository.git")


def _prepare(root: Path, pip: dict[str, str]) -> None:
    """Give the tree this machine's way to the registries, a user with sudo, and a name."""
    write_pip_conf(root / "etc/pip.conf", pip)
    run("chroot", str(root), "update-ca-certificates")
    run("chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", _USER)
    (root / "etc/sudoers.d" / _USER).write_text(f"{_USER} ALL=(ALL) NOPASSWD: ALL\n")
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost machine {_NAME}\n")
    (root / "etc/hostname").write_text("machine\n")


class Terminal:
    """A script that runs at a terminal of the machine's user; what it shows is copied to stdout."""

    def __init__(self, words: list[str]) -> None:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.execvp(words[0], words)  # noqa: S606 - fixed words
        self.seen = ""
        self._searched = 0
        self._deadline_s = time.monotonic() + _STEP_TIMEOUT_S

    def wait_for(self, text: str) -> None:
        """Read until a text is shown. Raises ProofError if the script ends before, or takes too long."""
        while (at := self.seen.find(text, self._searched)) < 0:
            if not self._read():
                raise ProofError(f"It ended, and {text!r} was not shown.")
        self._searched = at + len(text)

    def press(self, keys: str) -> None:
        """Type something."""
        os.write(self._terminal, keys.encode())

    def end(self) -> tuple[int, str]:
        """Read until the script ends; return its status and all that it showed."""
        while self._read():
            pass
        os.close(self._terminal)
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return status, self.seen.replace("\r\n", "\n")

    def _read(self) -> bool:
        """Read what is there, or wait a second for it; return False at the end. Raises ProofError."""
        if time.monotonic() > self._deadline_s:
            raise ProofError(f"It takes longer than {_STEP_TIMEOUT_S:.0f} s.")
        if not select.select([self._terminal], [], [], 1)[0]:
            return True
        try:
            piece = os.read(self._terminal, 4096).decode(errors="replace")
        except OSError:  # the program has ended
            return False
        sys.stdout.write(piece)
        sys.stdout.flush()
        self.seen += piece
        return True


class Machine:
    """A booted container; it shares this machine's network."""

    def __init__(self, root: Path, shown: Sequence[Path]) -> None:
        self._log = root.parent / "console.log"
        options = ["--quiet", "--register=no", "--keep-unit", "--resolv-conf=copy-host", "--boot"]
        binds = [f"--bind-ro={path}" for path in shown]
        self._command = ["systemd-nspawn", *options, *binds, f"--directory={root}"]

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline_s = time.monotonic() + _BOOT_TIMEOUT_S
        # A container has units that cannot start; a degraded system has booted, too.
        while not re.search(r"^(running|degraded)$", self._boot_state(), re.MULTILINE):
            if time.monotonic() > deadline_s:
                self.__exit__()
                raise ProofError(f"The machine does not boot; {self._log} says why.")
            time.sleep(0.5)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _boot_state(self) -> str:
        try:
            return self.run("systemctl", "is-system-running")
        except (CommandError, FileNotFoundError, IndexError) as error:
            return str(error)

    def _inside(self) -> list[str]:
        pid = self._process.pid
        leader = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        return ["nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--"]

    def reboot(self) -> None:
        """Shut down and boot again."""
        with suppress(CommandError):  # the machine may be gone before it has answered
            self.run("systemctl", "reboot")
        self._process.wait(_BOOT_TIMEOUT_S)
        self.__enter__()

    def run(self, *words: str) -> str:
        """Run a command as root and return its output."""
        return run(*self._inside(), *words)

    def type(self, script: str, *answers: tuple[str, str]) -> str:
        """Type a script at the user's terminal and return what it showed.

        Args:
            script: ends at the first command that fails.
            answers: a part of each question, and what is typed then.

        Raises:
            ProofError: it failed, did not ask one of the questions, or took too long.
        """
        terminal = self.terminal(script)
        for question, answer in answers:
            terminal.wait_for(question)
            terminal.press(f"{answer}\n")
        status, seen = terminal.end()
        if status:
            raise ProofError(f"Status {status}")
        return seen

    def terminal(self, script: str) -> Terminal:
        """Start a script at the user's terminal; it ends at the first command that fails."""
        return Terminal(
            [*self._inside(), "su", "--login", _USER, "--session-command", f"set -euxo pipefail; {script}"]
        )

    def write(self, path: str, text: str) -> None:
        """Write a file, as root."""
        run(*self._inside(), "sh", "-c", 'mkdir -p "${0%/*}"; printf %s "$1" > "$0"', path, text)


@contextmanager
def _provider() -> Iterator[str]:
    """Run the offline upstream on this machine; yield its base URL."""
    env = {"RELAYD_DEMO_KEY": _PROVIDER_KEY, "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "relayd.demo.upstream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process.stdout.readline().strip() if process.stdout else ""
        finally:
            process.terminate()


def _must(seen: str, text: str, claim: str) -> None:
    if text not in seen:
        raise ProofError(f"{claim}: {text!r} was not seen.")
    print(f"--- {claim}", flush=True)


def _answers(seen: str, claim: str) -> None:
    """Raise ProofError if this is not a whole answer; a failure ends with the same line."""
    if '"error":true' in seen:
        raise ProofError(f"{claim}: there was an error instead of an answer.")
    _must(seen, '{"done":true,"error":false,"content":"[DONE]"}', claim)


def _fitted(steps: str) -> str:
    return steps.replace("REPOSITORY", "/srv/repository.git").replace("YOUR.NAME", _NAME).strip()


def _trust_caddy(machine: Machine) -> None:
    deadline_s = time.monotonic() + 60
    while True:
        try:
            machine.run("cp", _CADDYS_AUTHORITY, "/usr/local/share/ca-certificates/caddy.crt")
        except CommandError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.5)
        else:
            machine.run("update-ca-certificates")
            return


def _steps(page: str) -> dict[str, str]:
    return {name: _fitted(step) for name, step in _STEPS.findall((_TOP / page).read_text())}


def _follow(machine: Machine, repository: Repository, url: str) -> None:
    """Install, use, back up, restore, upgrade and go back, as the pages say."""
    steps = _steps("README.md")
    began_s = time.monotonic()
    questions = [("provider's address", url), ("listen on", ""), ("provider's key", _PROVIDER_KEY)]
    machine.type(steps["install"], *questions)
    print(f"\n--- installed in {time.monotonic() - began_s:.0f} s", flush=True)
    _trust_caddy(machine)
    # The file goes with the key's first use; who follows the README has read it by then.
    again = steps["try"].replace(f"$(sudo cat {_FIRST_KEY})", machine.run("cat", _FIRST_KEY).strip())
    seen = machine.type(steps["try"])
    _answers(seen, "the stream ends as it should")
    _must(seen, "completed      default", "relayd log lists it")
    _must(seen, "No errors found", "relayd doctor finds nothing")
    seen = machine.type("sudo relayd check; sudo relayd check --upstream")
    _must(seen, '"/var/lib/relayd"', "relayd check shows the service's state directory")
    _must(seen, "The provider accepts it.", "and asks the provider with the service's key")
    machine.run("usermod", "-aG", "relayd-admin", _USER)
    _must(machine.type("relayd status"), "serving      http://", "the group needs no sudo")
    seen = machine.type(_SECOND_INSTANCE.format(url=url))
    _must(seen, "serving      http://127.0.0.1:3777", "a second instance runs beside it")
    _answers(seen, "with an address and keys of its own")
    _must(machine.type(_RELOAD), "server.max_streams_per_address is now 7", "it reloads its configuration")
    _restore(machine)
    _answers(machine.type(again), "a restored backup has the keys of its time, and no later one")
    machine.reboot()
    _answers(machine.type(again), "after a reboot it serves by itself")
    _upgrade(machine, repository, again)


def _restore(machine: Machine) -> None:
    """Back up each day, make a key that the backup does not have, and restore, as docs/operations.md says."""
    page = (_TOP / "docs/operations.md").read_text()
    for path, unit in _UNIT_FILES.findall(page):
        machine.write(path, unit)
    machine.type("sudo systemctl enable --now relayd-backup.timer")
    _must(machine.run("systemctl", "list-timers"), "relayd-backup.timer", "a timer backs up each day")
    machine.run("systemctl", "start", "relayd-backup.service")
    backup = machine.run("sh", "-c", "ls /var/backups/relayd/*.db").strip()
    machine.type("sudo relayd backup /var/backups/relayd/by-hand.db")
    machine.run("relayd", "keys", "add", "too-late")
    restore = re.sub(r"(?m)^backup=.*", f"backup={backup}", _steps("docs/operations.md")["restore"])
    machine.run("bash", "-euc", restore)
    if "too-late" in machine.run("relayd", "keys", "list"):
        raise ProofError("The restored database has a key that was made after the backup.")


def _upgrade(machine: Machine, repository: Repository, again: str) -> None:
    """Upgrade to a release that does not start, to one that does, and go back, as docs/deploy.md says."""
    steps = _steps("docs/deploy.md")
    upgrade = f"cd relayd\n{steps['upgrade']}"
    server = repository.path("relayd/server.py")
    working = server.read_text()
    repository.commit(server, working + _BREAK, "Break the server")
    status, seen = machine.terminal(upgrade).end()
    if not status:
        raise ProofError("A release that does not start was installed.")
    _must(seen, "broken on purpose", "a release that does not start is not used")
    _answers(machine.type(again), "and the one in use serves on")
    unit = repository.path("relayd/deploy/relayd.service")
    repository.commit(server, working, "Mend the server")
    repository.commit(unit, unit.read_text().replace("TasksMax=1024", "TasksMax=1025"), "Allow a task more")
    seen = machine.type(upgrade)
    _must(seen, "relayd.service, /etc/systemd/system/relayd@.service.", "an upgrade names old units")
    _answers(machine.type(again), "after it, relayd serves with the same key")
    machine.type("sudo relayd init --system")
    _must(machine.run("systemctl", "show", "relayd", "--property=TasksMax"), "=1025", "init renews the units")
    newer = machine.run("readlink", "/opt/relayd/current")
    machine.type(_BROKEN_RELEASE)
    seen = machine.type(f"cd relayd\n{steps['rollback']}")
    if machine.run("readlink", "/opt/relayd/current") == newer:
        raise ProofError("The rollback changed nothing.")
    _must(seen, "Lost since then: requests in the log", "a rollback says what is lost")
    _answers(machine.type(again), "and relayd serves again")


def _move(machine: Machine, url: str) -> None:
    """Move from the Node relay, as docs/migrate.md says."""
    steps = _steps("docs/migrate.md")
    settings = {"OPENAI_API_KEY": _PROVIDER_KEY, "AUTHORIZATION_KEY": _OLD_KEY, "SERVER_PORT": _OLD_PORT}
    settings["RELAYD_UPSTREAM__BASE_URL"] = url
    env = "".join(f"{name}={value}\n" for name, value in settings.items())
    machine.type(steps["packages"])
    machine.type(f"mkdir old-relay; printf '{env}' > old-relay/.env".replace("\n", "\\n"))
    ask = f"cd old-relay\n{steps['ask']}"
    began_s = time.monotonic()
    with _served(machine, steps["try"], _TRIAL_PORT):
        _answers(machine.type(ask), "beside the old relay, its .env and its key work")
    asked = ask.replace(str(_TRIAL_PORT), str(_OLD_PORT))
    with _served(machine, f"cd old-relay\n{steps['switch']}", _OLD_PORT):
        _answers(machine.type(asked), "on the old port, too")
    for block, shown in (
        ("host", 'host                    = "0.0.0.0"'),
        ("proxy", "# proxy: set (from .env:"),
    ):
        added = f"cp .env env; echo '{steps[block]}' >> .env; ../relayd/.venv/bin/relayd check; mv env .env"
        _must(machine.type(f"cd old-relay\n{added}"), shown, f"the {block} of .env is read")
    questions = [
        ("provider's address", url),
        ("listen on", str(_OLD_PORT)),
        ("provider's key", _PROVIDER_KEY),
    ]
    machine.type(f"cd old-relay\n{steps['keep']}", *questions)
    if "unauthorized" not in machine.type(asked):
        raise ProofError("The service knows the old key before it was imported.")
    machine.type(steps["import"], ("which is not shown", _OLD_KEY))
    _answers(machine.type(asked), "the service takes the old key once it is imported")
    print(f"\n--- moved in {time.monotonic() - began_s:.0f} s", flush=True)
    machine.type("sudo relayd keys rotate old --grace 7d")
    _answers(machine.type(asked), "and for seven days after a new one was made")


@contextmanager
def _served(machine: Machine, script: str, port: int) -> Iterator[None]:
    """Type what serves at a terminal, and end it with Ctrl-C."""
    terminal = machine.terminal(script)
    terminal.wait_for(f"serving on http://127.0.0.1:{port}")
    yield
    terminal.press("\x03")
    terminal.end()


@contextmanager
def _fresh(bare: Path, pip: dict[str, str]) -> Iterator[tuple[Machine, Repository]]:
    """Boot a copy of a bare Debian."""
    with tempfile.TemporaryDirectory(prefix="relayd-proof-", ignore_cleanup_errors=True) as name:
        root = Path(name) / "root"
        run("cp", "-a", "--reflink=auto", bare, root)
        _prepare(root, pip)
        repository = Repository(root, Path(name))
        with Machine(root, local_directories(pip)) as machine:
            yield machine, repository


def main() -> int:
    """Prove it; return 1 if a step fails."""
    parser = argparse.ArgumentParser(prog="scripts/prove", description=__doc__)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "relayd-proof"
    parser.add_argument("--cache", type=Path, default=cache, help="keeps the bare Debian (%(default)s)")
    parser.add_argument(
        "--mirror", nargs=1, default=[], metavar="URL", help="of Debian; default: debootstrap's own"
    )
    parser.add_argument("--only", choices=("install", "move"), help="the README's way, or docs/migrate.md's")
    args = parser.parse_args()
    if os.geteuid() or not (shutil.which("debootstrap") and shutil.which("systemd-nspawn")):
        parser.error("This needs root and, on Debian: apt install debootstrap systemd-container")
    pip, bare = pip_settings(), args.cache / f"{RELEASE}-machine"
    try:
        if not bare.exists():
            print(f"Making {bare} ...", flush=True)
            make_tree(bare, include=_PACKAGES, mirror=args.mirror)
        with _provider() as url:
            if args.only != "move":
                with _fresh(bare, pip) as (machine, repository):
                    _follow(machine, repository, url)
            if args.only != "install":
                with _fresh(bare, pip) as (machine, _):
                    _move(machine, url)
    except CommandError as failure:
        print(f"\nNOT PROVED: {failure}", file=sys.stderr)
        return 1
    print("\nPROVED")
    return 0


if __name__ == "__main__":
    sys.exit(main())
