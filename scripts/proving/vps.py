"""The README's steps on an empty Debian: from apt to a stream over TLS, through a reboot and an upgrade."""

from __future__ import annotations

import re
import time
from pathlib import Path

from proving.machine import Machine
from proving.provider import PROVIDER_KEY, provider
from proving.roots import ProofFailed, Supplies, call

_TOP = Path(__file__).parents[2]
_NAME = "relay.example.com"
_USER = "alice"
_BLOCK = re.compile(r"<!-- scripts/prove vps: (\w+) -->\s*```sh\n(.*?)```", re.DOTALL)
# What a freshly rented machine has, beside the essential packages.
_PACKAGES = ("systemd-sysv", "dbus", "sudo", "ca-certificates", "curl", "iproute2")
_TEAM = """
printf '[server]\\nport = 3777\\n[upstream]\\nbase_url = "%s"\\n' {url} | sudo tee /etc/relayd/team.toml
sudo cp -p /etc/relayd/openai_api_key /etc/relayd/team.openai_api_key
sudo systemctl enable --now relayd@team
relayd status --socket /run/relayd-team/admin.sock
curl -sN http://127.0.0.1:3777/chat -H "Authorization: $(sudo cat /var/lib/relayd-team/first-key)" \\
  -d '{{"messages":[{{"role":"user","content":"Say hi"}}]}}'
relayd log --socket /run/relayd-team/admin.sock
"""
_RELOAD = """
sudo sed -i 's/^#* *max_streams_per_address = 50/max_streams_per_address = 7/' /etc/relayd/relayd.toml
sudo systemctl reload relayd
timeout 30 bash -c 'until sudo journalctl --unit relayd | grep "reload: server"; do sleep 0.2; done'
"""
_AUTHORITY = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"


def prove(supplies: Supplies, home: Path) -> None:
    """Do as the README says, and look whether what it promises came true."""
    steps = dict(_BLOCK.findall((_TOP / "README.md").read_text(encoding="utf-8")))
    root = supplies.copy(supplies.bare("vps", _PACKAGES), home / "root")
    _prepare(root, home)
    with provider() as url, Machine(supplies, root) as machine:
        began = time.monotonic()
        machine.type(
            _USER,
            _fitted(steps["install"]),
            [("provider's address", url), ("Listen on", ""), ("provider's key", PROVIDER_KEY)],
        )
        print(f"\n--- installed in {time.monotonic() - began:.0f} s", flush=True)
        _trust(machine)
        seen = machine.type(_USER, _fitted(steps["try"]))
        _must(seen, '"done":true,"error":false,"content":"[DONE]"', "the stream ends as it should")
        _must(seen, "completed      default", "relayd log lists it")
        _must(seen, "No errors found", "relayd doctor finds nothing")
        _as_the_deploy_page_says(machine, url)
        _after_reboot(machine, steps["try"])
        _upgrade_and_back(machine, steps["try"])


def _prepare(root: Path, home: Path) -> None:
    """A user who may sudo, a name that leads here, and a repository to clone."""
    call(["chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", _USER])
    (root / "etc/sudoers.d").mkdir(exist_ok=True)
    (root / "etc/sudoers.d" / _USER).write_text(f"{_USER} ALL=(ALL) NOPASSWD: ALL\n")
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost vps {_NAME}\n")
    (root / "etc/hostname").write_text("vps\n")
    work, bare = home / "work", root / "srv" / "repository.git"
    git = ["git", "-c", "user.name=proof", "-c", "user.email=proof@invalid", "-C", str(work)]
    call(["git", "-c", "safe.directory=*", "clone", "--quiet", "--no-local", str(_TOP), str(work)])
    site = work / "docs/deploy/Caddyfile"
    # No authority of the world signs for an example: Caddy does it itself.
    site.write_text("{\n\tlocal_certs\n}\n" + site.read_text(encoding="utf-8"))
    call([*git, "commit", "--quiet", "--all", "--message", "Sign for the name ourselves"])
    call([*git, "clone", "--quiet", "--bare", ".", str(bare)])
    call(["chroot", str(root), "chown", "-R", _USER, "/srv/repository.git"])


def _fitted(steps: str) -> str:
    return steps.replace("REPOSITORY", "/srv/repository.git").replace("YOUR.NAME", _NAME).strip()


def _trust(machine: Machine) -> None:
    """Let the machine trust Caddy's own authority, once Caddy has made it."""
    deadline = time.monotonic() + 60
    while True:
        try:
            machine.run("cp", _AUTHORITY, "/usr/local/share/ca-certificates/caddy.crt")
        except ProofFailed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            machine.run("update-ca-certificates")
            return


def _as_the_deploy_page_says(machine: Machine, url: str) -> None:
    """Somebody of the group operates it without root; another instance runs beside it."""
    machine.run("usermod", "-aG", "relayd-admin", _USER)
    _must(machine.type(_USER, "relayd status"), "serving      http://", "the group needs no sudo")
    seen = machine.type(_USER, _TEAM.format(url=url))
    _must(seen, "serving      http://127.0.0.1:3777", "another instance runs beside it")
    _must(seen, "[DONE]", "with an address, a key ring and a log of its own")
    seen = machine.type(_USER, _RELOAD)
    _must(seen, "server.max_streams_per_address is 7 now", "it reads its configuration anew")


def _after_reboot(machine: Machine, again: str) -> None:
    machine.reboot()
    seen = machine.type(_USER, _fitted(again))
    _must(seen, "[DONE]", "after a reboot it serves by itself")
    _must(seen, "completed      default", "and the log goes on")


def _upgrade_and_back(machine: Machine, again: str) -> None:
    seen = machine.type(_USER, "cd relayd && sudo scripts/install && readlink /opt/relayd/current")
    newer = seen.split()[-1]
    seen = machine.type(_USER, _fitted(again))
    _must(seen, "[DONE]", "after an upgrade it serves with the same key")
    seen = machine.type(_USER, "cd relayd && sudo scripts/install --rollback && readlink /opt/relayd/current")
    if seen.split()[-1] == newer:
        raise ProofFailed("the rollback changed nothing")
    _must(machine.type(_USER, _fitted(again)), "[DONE]", "and after the way back")


def _must(seen: str, text: str, claim: str) -> None:
    if text not in seen:
        raise ProofFailed(f"{claim}: {text!r} was not seen")
    print(f"--- {claim}", flush=True)
