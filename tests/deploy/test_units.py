"""The systemd units: what they allow, and that systemd itself finds nothing wrong with them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from relayd.config import load
from relayd.init.install import SystemInstall
from tests.support.programs import needs

_IMAGE = SystemInstall(Path("/image"), Path(sys.executable))
_UNITS = {path.name: text for path, text in _IMAGE.unit_files("127.0.0.1", 3666).items()}
_SERVICES = ("relayd.service", "relayd@.service")
_WORST = 1.5
"""nginx, HAProxy and sshd stand at 9.6 as Debian ships them."""

needs_systemd = needs("systemd-analyze")


@needs_systemd
@pytest.mark.parametrize("name", _SERVICES)
def test_the_service_is_exposed_to_little(name: str, tmp_path: Path) -> None:
    """`systemd-analyze security` rates it 1.5 or better."""
    (tmp_path / name).write_text(_UNITS[name])
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(tmp_path / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    rated = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert rated is not None, told
    assert float(rated[1]) <= _WORST, told


def _verified(files: Iterable[Path]) -> tuple[int, str]:
    """Return the status of `systemd-analyze verify`, and what it said."""
    words = ["systemd-analyze", "verify", *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@needs_systemd
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent: no unknown key, no wrong value, no program that is missing."""
    for name in ("relayd.socket", *_SERVICES):
        (tmp_path / name.replace("@.", "@team.")).write_text(_UNITS[name])
    assert _verified(tmp_path.iterdir()) == (0, "")


@needs_systemd
def test_systemd_finds_nothing_wrong_in_the_documented_backup(tmp_path: Path) -> None:
    """The unit and the timer of docs/operations.md, which people copy."""
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    units = re.findall(
        r"write `/etc/systemd/system/(relayd-backup\.\w+)`.*?```ini\n(.*?)```", page, re.DOTALL
    )
    assert [name for name, _ in units] == ["relayd-backup.service", "relayd-backup.timer"]
    for name, unit in units:
        (tmp_path / name).write_text(unit)
    assert _verified(tmp_path.iterdir()) == (0, "")


def test_an_instance_differs_only_in_its_names() -> None:
    """Both units allow the same; the instance's files have its name, and it has no socket unit."""
    alone, instance = (_UNITS[name].splitlines() for name in _SERVICES)
    own = [line for line in instance if line not in alone]
    assert [line.partition("=")[0] for line in own] == [
        "Description",
        "After",
        "ExecStart",
        "LoadCredential",
        "StateDirectory",
        "RuntimeDirectory",
        "Environment",
    ]
    assert all("%i" in line for line in own if not line.startswith("After="))
    assert "relayd.socket" not in "".join(instance)
    assert len(instance) == len(alone) - 1


@pytest.mark.parametrize("name", _SERVICES)
def test_relayd_reads_what_the_unit_gives_it(name: str, tmp_path: Path) -> None:
    """The credential has the name that relayd looks for, and its variables are configuration keys."""
    unit = _UNITS[name]
    credential = re.search(r"(?m)^LoadCredential=(\w+):", unit)
    variables = re.search(r"(?m)^Environment=(.*)$", unit)
    assert credential
    assert variables
    (tmp_path / credential[1]).write_text("provider-key-of-the-unit")
    env = dict(pair.split("=") for pair in variables[1].split())
    # The group need not exist on the machine that runs the tests.
    assert env.pop("RELAYD_ADMIN__GROUP") == "relayd-admin"
    env |= {"STATE_DIRECTORY": "/var/lib/relayd", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    settings = load(config_path=None, cli={}, env=env, cwd=tmp_path, system_config=tmp_path / "none")
    assert settings.openai_api_key is not None
    assert settings.openai_api_key.get_secret_value() == "provider-key-of-the-unit"
    assert str(settings.admin.socket).startswith("/run/relayd")
    assert str(settings.state_dir) == "/var/lib/relayd"
