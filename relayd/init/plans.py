"""What `init` leaves behind: for one person in a directory, or for the whole machine as a service."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from relayd.config import Settings, load
from relayd.init import service
from relayd.init.desk import Desk, InitError
from relayd.init.files import PUBLIC_MODE, SECRET_MODE, keep_old, write

_KEY_NAME = "provider-key"


class Plan(Protocol):
    """Where the configuration and the key go, and what follows."""

    @property
    def config(self) -> Path:
        """The relayd.toml to write."""
        ...

    def keep(self, desk: Desk) -> int:
        """What to do where it is there already; returns the exit status. Raises InitError."""
        ...

    def values(self, key: str) -> dict[str, object]:
        """What the configuration must say about the key."""
        ...

    def write(self, text: str, key: str, desk: Desk) -> None:
        """Write both. Raises OSError."""
        ...

    def finish(self, settings: Settings, desk: Desk) -> int:
        """Whatever comes then; returns the exit status. Raises ServiceError."""
        ...


@dataclass(frozen=True, slots=True)
class OwnPlan:
    """For one person, in a directory.

    Attributes:
        config: the relayd.toml.
        key_file: where the provider's key goes, unless it stays in the environment.
        key_stays: whether it does.
    """

    config: Path
    key_file: Path
    key_stays: bool

    @classmethod
    def at(cls, config: Path, settings: Settings, *, key_stays: bool) -> OwnPlan:
        """The key goes where the state is: out of the directory, which may be anyone's repository."""
        return cls(config, settings.state_dir / _KEY_NAME, key_stays)

    def keep(self, _desk: Desk) -> int:
        """Never without being told."""
        raise InitError(f"{self.config} is there already; --force replaces it, and keeps the old one beside.")

    def values(self, key: str) -> dict[str, object]:
        """Where the key is."""
        return {"openai_api_key_file": str(self.key_file)} if key and not self.key_stays else {}

    def write(self, text: str, key: str, desk: Desk) -> None:
        """The key first: a configuration that names it must not be there without it."""
        if key and not self.key_stays:
            self.key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write(self.key_file, key + "\n", mode=SECRET_MODE)
            desk.say(f"Wrote {self.key_file}, which only you can read.")
        _write_config(self.config, text, desk)

    def finish(self, settings: Settings, desk: Desk) -> int:
        """Say how to start it."""
        named = "" if self.config == desk.cwd / "relayd.toml" else f" --config {self.config}"
        demo = "" if settings.openai_api_key is not None else " --demo"
        desk.say(f"\nStart it: relayd serve{named}{demo}")
        return 0


@dataclass(frozen=True, slots=True)
class SystemPlan:
    """For the whole machine, as a service.

    Attributes:
        machine: where to.
        host: the address that its socket listens on.
        port: its port.
    """

    machine: service.Machine
    host: str
    port: int

    @classmethod
    def on(cls, machine: service.Machine, host: str, port: int) -> SystemPlan:
        """Raises InitError where this user may not change the machine, ServiceError where it can't work."""
        if machine.root == Path("/"):
            if os.geteuid() != 0:
                raise InitError(
                    "--system changes the whole machine; run it as root: sudo relayd init --system"
                )
            service.refuse_hidden(machine.program)
        return cls(machine, host, port)

    @property
    def config(self) -> Path:
        """The relayd.toml to write."""
        return self.machine.inside("/etc/relayd/relayd.toml")

    @property
    def key_file(self) -> Path:
        """Where the unit takes the provider's key from."""
        return self.machine.inside("/etc/relayd/openai_api_key")

    def keep(self, desk: Desk) -> int:
        """After an upgrade: the units may have changed, the configuration stays."""
        desk.say(f"Kept {self.config} and the key as they are; --force replaces both.")
        server = load(config_path=self.config, cli={}, env={}, cwd=self.config.parent).server
        return self._start(server.host, server.port, desk, has_key=bool(self.key_file.read_text().strip()))

    def values(self, _key: str) -> dict[str, object]:
        """Nothing: the unit passes the key as a credential."""
        return {}

    def write(self, text: str, key: str, desk: Desk) -> None:
        """Both into /etc/relayd; the key's file is there even while it is empty, for the unit to find."""
        self.config.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write(self.key_file, key + "\n", mode=SECRET_MODE)
        desk.say(f"Wrote {self.key_file}, which only root can read.")
        _write_config(self.config, text, desk)

    def finish(self, settings: Settings, desk: Desk) -> int:
        """Install the units and start them."""
        return self._start(self.host, self.port, desk, has_key=settings.openai_api_key is not None)

    def _start(self, host: str, port: int, desk: Desk, *, has_key: bool) -> int:
        for path in service.install(self.machine, host=host, port=port):
            desk.say(f"Wrote {path}.")
        wanted = service.commands(self.machine)
        if not has_key:
            desk.say(f"\nThere is no provider key yet: put it into {self.key_file}, then run")
            desk.say("\n".join(f"    {' '.join(words)}" for words in wanted))
            return 0
        service.carry_out(wanted)
        if self.machine.is_live:
            desk.say(f"\nrelayd runs, and starts at every boot. It serves on http://{host}:{port}\n")
        else:
            desk.say("\nThe service starts when this system boots.\n")
        desk.say(_NEXT.format(group=service.ADMIN_GROUP, user=desk.env.get("SUDO_USER", "NAME")))
        return 0


_NEXT = """The first client's key (read it, then delete the file):
    sudo cat /var/lib/relayd/first-key
Who may operate it without root (they log in again afterwards):
    sudo usermod -aG {group} {user}
What it does:
    relayd status, relayd log -f, relayd-tui"""


def _write_config(path: Path, text: str, desk: Desk) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    old = keep_old(path)
    write(path, text, mode=PUBLIC_MODE)
    desk.say(f"Wrote {path}." + (f" The one before is {old.name}." if old else ""))
