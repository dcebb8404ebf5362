"""What `init` leaves behind: files for one person, or a systemd service for the whole machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from shlex import quote
from typing import TextIO

from relayd.config import Settings, load
from relayd.config.schema import ServerSettings
from relayd.files import write_file
from relayd.printable import typeable

ADMIN_GROUP = "relayd-admin"

_UNITS = Path(__file__).parents[1] / "deploy"
# What the shipped units say, to be replaced.
_PROGRAM = "/opt/relayd/current/bin/relayd"
_LISTEN = "ListenStream=127.0.0.1:3666"
# How relayd@.service, one of several instances, differs from relayd.service: `relayd@team` reads
# /etc/relayd/team.toml, and listens where that says instead of on a socket unit.
_INSTANCE = {
    "for chat completions": "for chat completions, %i",
    "Requires=relayd.socket\nAfter=network-online.target relayd.socket\n": "After=network-online.target\n",
    "/etc/relayd/relayd.toml": "/etc/relayd/%i.toml",
    "/etc/relayd/openai_api_key": "/etc/relayd/%i.openai_api_key",
    "Directory=relayd\n": "Directory=relayd-%i\n",
    "/run/relayd/": "/run/relayd-%i/",
}
# What ProtectHome=yes hides from the service.
_HIDDEN = ("/home/", "/root/", "/run/user/")
_COMMAND_TIMEOUT_S = 120
SECRET_MODE = 0o600
PUBLIC_MODE = 0o644

_NEXT_STEPS = """The first client's key (keep it: the file is deleted once the key was used):
    sudo cat /var/lib/relayd/first-key
Let someone operate it without root (they log in again afterwards):
    sudo usermod -aG {group} {user}
See what it does:
    relayd status, relayd log -f, relayd-tui"""

Values = dict[str, object]
"""Configuration by dotted key."""


class InitError(Exception):
    """`init` cannot continue; nothing was changed unless the text says so."""


@dataclass(frozen=True, slots=True)
class Console:
    """Where `init` reads and writes.

    Attributes:
        env: the environment.
        cwd: where relayd.toml goes.
        out: where messages go.
        ask: asks a question and returns the answer; None if there is no person to answer.
        ask_secret: the same, without showing what is typed.
        read_stdin: returns all of stdin, for `--key-file -`.
    """

    env: Mapping[str, str]
    cwd: Path
    out: TextIO
    ask: Callable[[str], str] | None
    ask_secret: Callable[[str], str]
    read_stdin: Callable[[], str]

    def say(self, line: str = "") -> None:
        """Write a line to the person."""
        self.out.write(typeable(line) + "\n")


def program(argv0: str) -> Path:
    """Return the program that the service is to run: this one, by the name that it was called by."""
    own = Path(sys.prefix) / "bin" / "relayd"
    called = Path(shutil.which(argv0) or own)
    # A link in /usr/local/bin stays right when the release behind it changes.
    return called if called.resolve() == own.resolve() else own


def refuse_hidden(chosen: Path) -> None:
    """Raise InitError if the program is in a home directory, where the service cannot see it."""
    if str(chosen.resolve()).startswith(_HIDDEN):
        raise InitError(
            f"relayd is in {chosen.resolve().parent}, which a service cannot see. Install it for the whole "
            "machine first: sudo scripts/install in its clone, or for a wheel sudo env PIPX_HOME=/opt/pipx "
            "PIPX_BIN_DIR=/usr/local/bin pipx install relayd-….whl"
        )


def run_all(commands: Sequence[Sequence[str]]) -> None:
    """Run these commands in order. Raises InitError with the output of the command that fails."""
    for words in commands:
        try:
            done = subprocess.run(  # noqa: S603 - fixed words
                words, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InitError(f"{' '.join(words)} failed: {error}") from error
        if done.returncode != 0:
            reason = (done.stderr or done.stdout).strip() or f"status {done.returncode}"
            raise InitError(f"{' '.join(words)} failed: {reason} (see: journalctl -u relayd -n 20)")


@dataclass(frozen=True, slots=True)
class UserInstall:
    """An installation for one person.

    Attributes:
        config: the relayd.toml.
        key_file: where the provider's key goes: beside the state, because the directory of `config` may be
            a repository.
        key_is_in_environment: whether the key stays there instead.
    """

    config: Path
    key_file: Path
    key_is_in_environment: bool

    def keep(self, _console: Console, _new_key: Callable[[], str]) -> int:
        """Refuse to replace an existing configuration. Raises InitError."""
        raise InitError(
            f"{self.config} exists already; --force replaces it, and keeps a copy of the old one."
        )

    def values(self, key: str) -> Values:
        """Return what the configuration must say about the key."""
        return {"openai_api_key_file": str(self.key_file)} if key and not self.key_is_in_environment else {}

    def write(self, config: str, key: str, console: Console) -> None:
        """Write the key and the configuration. Raises OSError."""
        # The key first: a configuration must not name a file that does not exist.
        if key and not self.key_is_in_environment:
            self.key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(self.key_file, key + "\n", mode=SECRET_MODE)
            console.say(f"Wrote {self.key_file}, which only you can read.")
        _write(self.config, config, console)

    def finish(self, settings: Settings, console: Console) -> int:
        """Say how to start the daemon; returns the exit status."""
        option = "" if self.config == console.cwd / "relayd.toml" else f" --config {quote(str(self.config))}"
        demo = "" if settings.openai_api_key is not None else " --demo"
        console.say(f"\nStart it: relayd serve{option}{demo}")
        return 0


@dataclass(frozen=True, slots=True)
class SystemInstall:
    """An installation for the whole machine, as a service.

    Attributes:
        root: `/`, or the directory of an image that is being made, where nothing is started.
        program: what the service runs.
    """

    root: Path
    program: Path

    @property
    def config(self) -> Path:
        """The relayd.toml to write."""
        return self.root / "etc/relayd/relayd.toml"

    @property
    def key_file(self) -> Path:
        """Where the unit takes the provider's key from."""
        return self.root / "etc/relayd/openai_api_key"

    @property
    def is_live(self) -> bool:
        """Whether systemd runs here, and can start the service now."""
        return self.root == Path("/") and Path("/run/systemd/system").is_dir()

    def keep(self, console: Console, new_key: Callable[[], str]) -> int:
        """Keep an existing configuration, and its key if there is one; renew the units, as after an upgrade.

        Returns:
            The exit status.

        Raises:
            InitError: it cannot continue.
            ConfigError: the configuration cannot be used.
            OSError: a file cannot be read or written.
        """
        settings = load(config_path=self.config, cli={}, env={}, cwd=self.config.parent)
        has_key = self._has_key()
        if has_key:
            console.say(f"Kept {self.config} and the key as they are; --force replaces both.")
        else:
            console.say(f"Kept {self.config} as it is; --force replaces it.")
            key = new_key() if settings.provider_key_remedy else ""
            self._write_key(key, console)
            has_key = bool(key) or not settings.provider_key_remedy
        return self._start(settings.server, console, has_key=has_key)

    def _has_key(self) -> bool:
        try:
            return bool(self.key_file.read_bytes().strip())
        except FileNotFoundError:
            return False

    def values(self, _key: str) -> Values:
        """Return nothing: the unit passes the key as a credential."""
        return {}

    def write(self, config: str, key: str, console: Console) -> None:
        """Write the key and the configuration."""
        self._write_key(key, console)
        _write(self.config, config, console)

    def finish(self, settings: Settings, console: Console) -> int:
        """Install the units and start them; returns the exit status. Raises InitError."""
        return self._start(settings.server, console, has_key=settings.openai_api_key is not None)

    def unit_files(self, host: str, port: int) -> dict[Path, str]:
        """Return the files of the group and the units, with this address in the socket unit."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        socket_unit = (_UNITS / "relayd.socket").read_text(encoding="utf-8")
        service_unit = (_UNITS / "relayd.service").read_text(encoding="utf-8")
        service_unit = instance_unit = service_unit.replace(_PROGRAM, str(self.program))
        for alone, instance in _INSTANCE.items():
            instance_unit = instance_unit.replace(alone, instance)
        units = self.root / "etc/systemd/system"
        return {
            self.root / "etc/sysusers.d/relayd.conf": f"g {ADMIN_GROUP} - -\n",
            units / "relayd.socket": socket_unit.replace(_LISTEN, f"ListenStream={address}"),
            units / "relayd.service": service_unit,
            units / "relayd@.service": instance_unit,
        }

    def start_commands(self) -> list[list[str]]:
        """Return what starts the service, now and at every boot; for an image, at its first boot."""
        names = ["relayd.socket", "relayd.service"]
        if not self.is_live:
            return [["systemctl", f"--root={self.root}", "enable", *names]]
        return [
            ["systemd-sysusers", "/etc/sysusers.d/relayd.conf"],
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", *names],
            ["systemctl", "restart", *names],
        ]

    def _write_key(self, key: str, console: Console) -> None:
        """Write the key's file; the unit needs it even while it is empty."""
        self.key_file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_file(self.key_file, key + "\n", mode=SECRET_MODE)
        console.say(f"Wrote {self.key_file}, which only root can read.")

    def _start(self, server: ServerSettings, console: Console, *, has_key: bool) -> int:
        for path, text in self.unit_files(server.host, server.port).items():
            _write(path, text, console)
        commands = self.start_commands()
        if not has_key:
            console.say(f"\nThere is no provider key yet: put it into {self.key_file}, then run")
            console.say("\n".join(f"    {' '.join(words)}" for words in commands))
            return 0
        run_all(commands)
        if self.is_live:
            url = f"http://{server.host}:{server.port}"
            console.say(f"\nrelayd runs, and starts at every boot. It serves on {url}\n")
        else:
            console.say("\nThe service starts when this system boots.\n")
        user = console.env.get("SUDO_USER", "NAME")
        console.say(_NEXT_STEPS.format(group=ADMIN_GROUP, user=user))
        return 0


def _write(path: Path, text: str, console: Console) -> None:
    """Write a file that everybody may read; keep what was there if that was different."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        is_same = path.read_bytes() == text.encode()
    except OSError:
        is_same = False
    old = None if is_same else keep_old(path)
    write_file(path, text, mode=PUBLIC_MODE)
    console.say(f"Wrote {path}." + (f" The previous one is {old.name}." if old else ""))


def keep_old(path: Path) -> Path | None:
    """Rename a file to a free name beside it and return that; None if there is no file."""
    if not path.exists():
        return None
    names = (path.with_name(f"{path.name}.old{number or ''}") for number in count())
    return path.rename(next(name for name in names if not name.exists()))
