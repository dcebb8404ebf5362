"""No key in plaintext: not in a file, a log line, the process's own description, or an error."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from relayd.admin.client import AdminClient
from relayd.admin.schema import KeyState
from tests.commands.harness import relayd
from tests.e2e.daemon import KEY, Daemon, command, environment
from tests.wire import PATIENCE_S, Wire, ask, body, post, until

_GIVEN = "given-key-from-a-credential-file"
_PROVIDER = "provider-key-from-a-credential-file"


_SHOWING = ("log", "keys list", "status", "log --json")


def _serve(home: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with (home / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            command("serve", "--demo"), cwd=home, env=environment(home, env), stderr=stderr
        )


def _told(root: Path) -> bytes:
    """Every byte of every file below, symbolic links left out."""
    files = [file for file in sorted(root.rglob("*")) if file.is_file() and not file.is_symlink()]
    return b"".join(file.read_bytes() for file in files)


async def test_with_credentials_no_key_is_anywhere_but_where_it_was_given(tmp_path: Path) -> None:
    """Files of the state, log lines, environ, cmdline: not the given, the provider's, nor a rotated key."""
    credentials, home = tmp_path / "credentials", tmp_path / "home"
    credentials.mkdir(mode=0o700)
    home.mkdir()
    (credentials / "authorization_key").write_text(_GIVEN + "\n")
    (credentials / "openai_api_key").write_text(_PROVIDER + "\n")
    state, socket = home / "state", home / "state" / "admin.sock"
    env = {
        "CREDENTIALS_DIRECTORY": str(credentials),
        "RELAYD_STATE_DIR": str(state),
        "RELAYD_SERVER__PORT": "0",
    }
    process = _serve(home, env)
    try:
        await until(lambda: "serving on" in (home / "stderr").read_text())
        port = int((home / "stderr").read_text().split("serving on http://127.0.0.1:")[1].split()[0])
        secrets = [_GIVEN, _PROVIDER]
        for name in ("default", "default"):
            ran = await relayd(socket, "keys", "rotate", name, "--grace", "1m")
            secrets.append(ran.out.strip())
        added = await relayd(socket, "keys", "add", "web")
        secrets.append(added.out.strip())
        tried = (*secrets, secrets[-1][:-1], None)
        await asyncio.gather(*(ask(port, key, body("demo")) for key in tried))
        of_process = Path(f"/proc/{process.pid}")
        told = (of_process / "environ").read_bytes() + (of_process / "cmdline").read_bytes()
        told += _told(home)
        answers = [await relayd(socket, *words.split()) for words in _SHOWING]
        told += "".join(ran.out + ran.err for ran in answers).encode()
        configuration = await AdminClient(socket).configuration()
        assert f"set ({len(_GIVEN)} characters)" in {setting.value for setting in configuration.settings}
        told += str(configuration).encode()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0
        told += _told(home)
    finally:
        process.kill()
        process.wait(10)
    assert len(secrets) == len(set(secrets)) == 5
    assert [secret for secret in secrets if secret.encode() in told] == []
    # The search itself can find: the ids of the keys are public.
    assert secrets[-1].split("_")[1].encode() in told


async def test_after_a_rotation_the_old_key_in_the_environment_stays_dead(tmp_path: Path) -> None:
    """A restart does not revive it, and the log says which key it is and why it is ignored."""
    with Daemon(tmp_path) as daemon:
        client = AdminClient(daemon.state_dir / "admin.sock")
        ring = await client.keys()
        change = await client.rotate_key(
            ring.keys[0].id, grace_s=0, generation=ring.generation, idempotency_key="once"
        )
        assert change.secret is not None
        assert daemon.stop() == 0
        before = len(daemon.stderr)
        daemon.start()
        said = daemon.stderr[before:]
        assert f"AUTHORIZATION_KEY is key {ring.keys[0].id}, expired since " in said
        assert "it no longer works and is ignored" in said
        old = await ask(daemon.port, KEY, body("demo"))
        assert (old.status, old.header("X-Relayd-Error")) == (401, "unauthorized")
        new = await ask(daemon.port, change.secret, body("demo:deltas=1,interval_ms=0"))
        assert new.status == 200
        states = [key.state for key in (await client.keys()).keys]
        assert states == [KeyState.EXPIRED, KeyState.ACTIVE]


async def test_a_second_daemon_for_the_same_state_is_refused_in_words(tmp_path: Path) -> None:
    """It says that the directory is in use; the first one continues."""
    with Daemon(tmp_path) as daemon:
        second = await asyncio.to_thread(
            subprocess.run,
            command("serve", "--demo"),
            cwd=tmp_path,
            env=environment(tmp_path, {"RELAYD_STATE_DIR": str(daemon.state_dir)}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (second.returncode, "Another relayd uses the state directory" in second.stderr) == (1, True)
        assert "Traceback" not in second.stderr
        assert (await AdminClient(daemon.state_dir / "admin.sock").status()).pid == daemon.pid
        assert daemon.stop() == 0
    assert not (daemon.state_dir / "admin.sock").exists()


async def test_a_drain_over_the_socket_ends_the_daemon_like_a_signal(tmp_path: Path) -> None:
    """The command says what is open, that goes on until its client leaves, and the exit status is 0."""
    with Daemon(tmp_path) as daemon:
        async with await Wire.open(daemon.port) as wire:
            reply = await wire.begin(post(KEY, body("demo:deltas=10000,interval_ms=50")))
            ran = await relayd(daemon.state_dir / "admin.sock", "drain")
            assert "1 open stream may take 30 s more" in ran.out
            await wire.first_piece(reply)
        assert await asyncio.to_thread(daemon.wait) == 0
