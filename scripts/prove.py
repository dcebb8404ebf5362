"""Follow the README's installation in a fresh Debian that systemd-nspawn boots.

From apt to an answer over TLS, then what docs/deploy.md promises: an operator without root, a second
instance, a reload, a reboot, an upgrade and the way back.
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
_STEPS = re.compile(r"<!-- scripts/prove: (\w+) -->\s*```sh\n(.*?)```", re.DOTALL)
_NAME = "relay.example.com"
_USER = "alice"
_PROVIDER_KEY = "provider-key-of-the-proof"
_BACKUP = "/root/relayd-backup.db"
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
_BROKEN_UPGRADE = """
cd relayd && echo 'raise SystemExit("broken on purpose")' >> relayd/server.py
! sudo scripts/install
git checkout relayd/server.py
"""
_BROKEN_RELEASE = """
sudo rm /opt/relayd/current/bin/relayd
sudo systemctl restart relayd || true
timeout 60 bash -c 'until systemctl is-failed relayd; do sleep 0.2; done'
cd relayd && sudo scripts/install --rollback && readlink /opt/relayd/current
"""


class ProofError(CommandError):
    """Something that the documentation promises did not happen."""


def _prepare(root: Path, home: Path, pip: dict[str, str]) -> None:
    """Give the tree this machine's way to the registries, a user with sudo, a name, and a repository."""
    write_pip_conf(root / "etc/pip.conf", pip)
    run("chroot", str(root), "update-ca-certificates")
    run("chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", _USER)
    (root / "etc/sudoers.d" / _USER).write_text(f"{_USER} ALL=(ALL) NOPASSWD: ALL\n")
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost machine {_NAME}\n")
    (root / "etc/hostname").write_text("machine\n")
    work, git = home / "work", ["git", "-c", "user.name=proof", "-c", "user.email=proof@invalid"]
    run("git", "-c", "safe.directory=*", "clone", "--quiet", "--no-local", str(_TOP), str(work))
    site = work / "docs/deploy/Caddyfile"
    # No public authority signs for an example's name: Caddy does it itself.
    site.write_text("{\n\tlocal_certs\n}\n" + site.read_text())
    run(*git, "-C", str(work), "commit", "--quiet", "--all", "--message", "Sign for the name ourselves")
    run("git", "clone", "--quiet", "--bare", str(work), str(root / "srv/repository.git"))
    run("chroot", str(root), "chown", "-R", _USER, "/srv/repository.git")


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
            ProofError: it failed, asked something else, or took too long.
        """
        shell = ["su", "--login", _USER, "--command", f"set -euxo pipefail; {script}"]
        words = [*self._inside(), *shell]
        pid, terminal = pty.fork()
        if pid == 0:
            os.execvp(words[0], words)  # noqa: S606 - fixed words
        seen, searched, due = "", 0, list(answers)
        deadline_s = time.monotonic() + _STEP_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if not select.select([terminal], [], [], 1)[0]:
                continue
            try:
                piece = os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # the program has ended
                break
            sys.stdout.write(piece)
            sys.stdout.flush()
            seen += piece
            if due and (at := seen.find(due[0][0], searched)) >= 0:
                searched = at + len(due[0][0])
                os.write(terminal, due.pop(0)[1].encode() + b"\n")
        os.close(terminal)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status or due:
            raise ProofError(f"Status {status}; not asked: {[question for question, _ in due]}")
        return seen.replace("\r\n", "\n")


@contextmanager
def _provider() -> Iterator[str]:
    """Run the offline upstream on this machine; yield its base URL."""
    env = {"RELAYD_DEMO_KEY": _PROVIDER_KEY, "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "relayd.demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process.stdout.readline().strip() if process.stdout else ""
        finally:
            process.terminate()


def _must(seen: str, text: str, claim: str) -> None:
    if text not in seen:
        raise ProofError(f"{claim}: {text!r} was not seen.")
    print(f"--- {claim}", flush=True)


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


def _follow(machine: Machine, url: str) -> None:
    steps = dict(_STEPS.findall((_TOP / "README.md").read_text()))
    install, try_it = _fitted(steps["install"]), _fitted(steps["try"])
    began_s = time.monotonic()
    questions = [("provider's address", url), ("listen on", ""), ("provider's key", _PROVIDER_KEY)]
    machine.type(install, *questions)
    print(f"\n--- installed in {time.monotonic() - began_s:.0f} s", flush=True)
    _trust_caddy(machine)
    # The file goes with the key's first use; who follows the README has read it by then.
    again = try_it.replace(f"$(sudo cat {_FIRST_KEY})", machine.run("cat", _FIRST_KEY).strip())
    seen = machine.type(try_it)
    _must(seen, '"done":true,"error":false,"content":"[DONE]"', "the stream ends as it should")
    _must(seen, "completed      default", "relayd log lists it")
    _must(seen, "No errors found", "relayd doctor finds nothing")
    machine.run("usermod", "-aG", "relayd-admin", _USER)
    _must(machine.type("relayd status"), "serving      http://", "the group needs no sudo")
    seen = machine.type(_SECOND_INSTANCE.format(url=url))
    _must(seen, "serving      http://127.0.0.1:3777", "a second instance runs beside it")
    _must(seen, "[DONE]", "with an address and keys of its own")
    _must(machine.type(_RELOAD), "server.max_streams_per_address is now 7", "it reloads its configuration")
    _restore(machine)
    _must(machine.type(again), "[DONE]", "a restored backup has the keys of its time, and no later one")
    machine.reboot()
    _must(machine.type(again), "[DONE]", "after a reboot it serves by itself")
    _must(machine.type(_BROKEN_UPGRADE), "broken on purpose", "a release that does not start is not used")
    _must(machine.type(again), "[DONE]", "and the one in use serves on")
    newer = machine.type("cd relayd && sudo scripts/install && readlink /opt/relayd/current").split()[-1]
    _must(machine.type(again), "[DONE]", "after an upgrade it serves with the same key")
    if machine.type(_BROKEN_RELEASE).split()[-1] == newer:
        raise ProofError("The rollback changed nothing.")
    _must(machine.type(again), "[DONE]", "after a release that failed, a rollback serves again")


def _restore(machine: Machine) -> None:
    """Back up, make a key that the backup does not have, and restore as docs/operations.md says."""
    steps = dict(_STEPS.findall((_TOP / "docs/operations.md").read_text()))
    units = ("relayd.socket", "relayd")
    machine.run("relayd", "backup", _BACKUP)
    machine.run("relayd", "keys", "add", "too-late")
    machine.run("systemctl", "stop", *units)
    machine.run("bash", "-euc", re.sub(r"(?m)^backup=.*", f"backup={_BACKUP}", steps["restore"]))
    machine.run("systemctl", "start", *units)
    if "too-late" in machine.run("relayd", "keys", "list"):
        raise ProofError("The restored database has a key that was made after the backup.")


def main() -> int:
    """Prove it; return 1 if a step fails."""
    parser = argparse.ArgumentParser(prog="scripts/prove", description=__doc__)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "relayd-proof"
    parser.add_argument("--cache", type=Path, default=cache, help="keeps the bare Debian (%(default)s)")
    parser.add_argument(
        "--mirror", nargs=1, default=[], metavar="URL", help="of Debian; default: debootstrap's own"
    )
    args = parser.parse_args()
    if os.geteuid() or not (shutil.which("debootstrap") and shutil.which("systemd-nspawn")):
        parser.error("This needs root and, on Debian: apt install debootstrap systemd-container")
    pip, bare = pip_settings(), args.cache / f"{RELEASE}-machine"
    with tempfile.TemporaryDirectory(prefix="relayd-proof-", ignore_cleanup_errors=True) as name:
        root = Path(name) / "root"
        try:
            if not bare.exists():
                print(f"Making {bare} ...", flush=True)
                make_tree(bare, include=_PACKAGES, mirror=args.mirror)
            run("cp", "-a", "--reflink=auto", bare, root)
            _prepare(root, Path(name), pip)
            with _provider() as url, Machine(root, local_directories(pip)) as machine:
                _follow(machine, url)
        except CommandError as failure:
            print(f"\nNOT PROVED: {failure}", file=sys.stderr)
            return 1
    print("\nPROVED")
    return 0


if __name__ == "__main__":
    sys.exit(main())
