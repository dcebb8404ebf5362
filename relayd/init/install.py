"""What `init` leaves behind: files for one person, or a service for the whole machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from relayd.config import Settings, load
from relayd.files import write_file
from relayd.init import service
from relayd.init.console import Console, InitError, Values

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644

_NEXT_STEPS = """The first client's key (read it, then delete the file):
    sudo cat /var/lib/relayd/first-key
Let someone operate it without root (they log in again afterwards):
    sudo usermod -aG {group} {user}
See what it does:
    relayd status, relayd log -f, relayd-tui"""


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

    def keep(self, _console: Console) -> int:
        """Refuse to replace an existing configuration. Raises InitError."""
        raise InitError(
            f"{self.config} exists already; --force replaces it, and keeps the old one beside it."
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
        _write_config(self.config, config, console)

    def finish(self, settings: Settings, console: Console) -> int:
        """Say how to start the daemon; returns the exit status."""
        option = "" if self.config == console.cwd / "relayd.toml" else f" --config {self.config}"
        demo = "" if settings.openai_api_key is not None else " --demo"
        console.say(f"\nStart it: relayd serve{option}{demo}")
        return 0


@dataclass(frozen=True, slots=True)
class SystemInstall:
    """An installation for the whole machine, as a service.

    Attributes:
        machine: the machine, or the image of one.
        host: the address that the socket unit listens on.
        port: its port.
    """

    machine: service.Machine
    host: str
    port: int

    @property
    def config(self) -> Path:
        """The relayd.toml to write."""
        return self.machine.inside("/etc/relayd/relayd.toml")

    @property
    def key_file(self) -> Path:
        """Where the unit takes the provider's key from."""
        return self.machine.inside("/etc/relayd/openai_api_key")

    def keep(self, console: Console) -> int:
        """Keep an existing configuration and renew the units, as after an upgrade; returns the status."""
        console.say(f"Kept {self.config} and the key as they are; --force replaces both.")
        server = load(config_path=self.config, cli={}, env={}, cwd=self.config.parent).server
        has_key = bool(self.key_file.read_text(encoding="utf-8").strip())
        return self._start(server.host, server.port, console, has_key=has_key)

    def values(self, _key: str) -> Values:
        """Return nothing: the unit passes the key as a credential."""
        return {}

    def write(self, config: str, key: str, console: Console) -> None:
        """Write the key and the configuration; the unit needs the key's file even while it is empty."""
        self.config.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_file(self.key_file, key + "\n", mode=SECRET_MODE)
        console.say(f"Wrote {self.key_file}, which only root can read.")
        _write_config(self.config, config, console)

    def finish(self, settings: Settings, console: Console) -> int:
        """Install the units and start them; returns the exit status. Raises InitError."""
        return self._start(self.host, self.port, console, has_key=settings.openai_api_key is not None)

    def _start(self, host: str, port: int, console: Console, *, has_key: bool) -> int:
        for path, text in service.files(self.machine, host=host, port=port).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, text, mode=PUBLIC_MODE)
            console.say(f"Wrote {path}.")
        commands = service.commands(self.machine)
        if not has_key:
            console.say(f"\nThere is no provider key yet: put it into {self.key_file}, then run")
            console.say("\n".join(f"    {' '.join(words)}" for words in commands))
            return 0
        service.run_all(commands)
        if self.machine.is_live:
            console.say(f"\nrelayd runs, and starts at every boot. It serves on http://{host}:{port}\n")
        else:
            console.say("\nThe service starts when this system boots.\n")
        user = console.env.get("SUDO_USER", "NAME")
        console.say(_NEXT_STEPS.format(group=service.ADMIN_GROUP, user=user))
        return 0


def _write_config(path: Path, text: str, console: Console) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    old = keep_old(path)
    write_file(path, text, mode=PUBLIC_MODE)
    console.say(f"Wrote {path}." + (f" The one before is {old.name}." if old else ""))


def keep_old(path: Path) -> Path | None:
    """Rename a file to a free name beside it and return that; None if there is no file."""
    if not path.exists():
        return None
    old, number = path.with_name(path.name + ".old"), 1
    while old.exists():
        number += 1
        old = path.with_name(f"{path.name}.old{number}")
    return path.rename(old)
