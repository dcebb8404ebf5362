"""docs/migrate.md, as it is typed: the old relay's `.env`, its key, and the answers that the page shows."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.upstream import fault_upstream_url
from tests.wire import PATIENCE_S

_TEXT = (Path(__file__).parents[2] / "docs/migrate.md").read_text(encoding="utf-8")
_STEPS = dict(re.findall(r"<!-- (\w+) -->\n```sh\n(.*?)```", _TEXT, re.DOTALL))
_PROVIDER_KEY = "sk-the-key-of-the-provider"
_OLD_KEY = "the-key-of-the-old-relay"


@pytest.fixture
def old_relay(tmp_path: Path) -> Path:
    """The directory of the old relay, with `.env`, beside an installed clone; `sudo` is the user's own."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed; on Debian: apt install curl")
    run = f"exec {sys.executable} -m relayd"
    for name, script in (
        ("relayd/scripts/serve", f'{run} serve --demo-without-key "$@"'),
        ("bin/relayd", f'{run} "$@"'),
        ("bin/sudo", 'exec "$@"'),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    (tmp_path / "old-relay").mkdir()
    (tmp_path / "old-relay/.env").write_text(
        f"OPENAI_API_KEY={_PROVIDER_KEY}\nAUTHORIZATION_KEY={_OLD_KEY}\nSERVER_PORT=3000\nNODE_ENV=production\n"
    )
    return tmp_path / "old-relay"


def _environment(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "RELAYD_UPSTREAM__BASE_URL": fault_upstream_url(_PROVIDER_KEY),
    }


def _type(step: str, directory: Path, stdin: str = "") -> str:
    """Type a step of the page and return its output."""
    return subprocess.run(
        ["bash", "-euc", step],
        cwd=directory,
        env=_environment(directory.parent),
        input=stdin,
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    ).stdout


@contextmanager
def _trial(old_relay: Path) -> Iterator[int]:
    """Type the page's first step, on a free port and beside the clone that is there; yield the port."""
    step = _STEPS["try"].replace("git clone REPOSITORY relayd\n", "").replace("3667", "0")
    process = subprocess.Popen(
        ["timeout", f"{2 * PATIENCE_S}", "bash", "-euc", step],
        cwd=old_relay.parent,
        env=_environment(old_relay.parent),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.fullmatch(r"relayd \S+ serving on http://127\.0\.0\.1:(\d+)  state \S+  admin \S+\n", said)
        assert found, said
        yield int(found[1])
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)


def test_the_old_env_and_its_key_work_as_the_page_says(old_relay: Path) -> None:
    """The trial answers the old key, names an unknown field as shown, and takes another old key."""
    with _trial(old_relay) as port:
        assert port != 3000
        ask = _STEPS["ask"].replace("3667", str(port))
        answer = _type(ask, old_relay).splitlines()
        assert answer[-1] == '{"done":true,"error":false,"content":"[DONE]"}'
        assert all('"error":false' in line for line in answer)
        refusal = _type(ask.replace("]}'", '],"conversation_id":"7"}\''), old_relay)
        assert refusal.splitlines()[0] in _TEXT
        other = ask.replace("$AUTHORIZATION_KEY", "Bearer another-key-of-old-pages")
        assert "unauthorized: " in _type(other, old_relay)
        _type(_STEPS["import"], old_relay, "another-key-of-old-pages\n")
        assert _type(other, old_relay).splitlines() == answer


def test_a_short_key_is_refused_as_the_page_says(old_relay: Path) -> None:
    """The sentence is the one that the page shows."""
    env = old_relay / ".env"
    env.write_text(env.read_text().replace(_OLD_KEY, "hunter22"))
    with pytest.raises(subprocess.CalledProcessError):
        _type(f"{_STEPS['switch'].strip()} 2> said", old_relay)
    assert (old_relay / "said").read_text() in _TEXT
