"""The container of docs/deploy, built and run by Podman without a daemon, and the compose file."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from debian import CommandError, local_directories, make_tree, pip_settings, run, write_pip_conf

from tests.support.programs import needs, require
from tests.wire import DONE, ask, body, until

_TOP = Path(__file__).parents[2]
_BASE = "docker.io/library/debian:bookworm-slim"
_KEY = "the-key-of-the-container-tests"
_MAX_BYTES = 220_000_000
_STEP_TIMEOUT_S = 600.0
# crun refuses a hybrid cgroup tree, and these containers use none: hide it.
_WITHOUT_CGROUPS = 'umount --recursive /sys/fs/cgroup; mount -t tmpfs none /sys/fs/cgroup; exec "$@"'


@dataclass(frozen=True, slots=True)
class Podman:
    """Podman with a store of its own, in `home`."""

    home: Path

    def words(self, *words: str) -> list[str]:
        """Return a command of Podman."""
        own = ["--root", f"{self.home}/store", "--runroot", f"{self.home}/run", "--storage-driver", "vfs"]
        own += ["--tmpdir", f"{self.home}/libpod", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        return ["unshare", "--mount", "sh", "-c", _WITHOUT_CGROUPS, "sh", "podman", *own, *words]

    def run(self, *words: str) -> str:
        """Run a command of Podman and return its output."""
        return run(*self.words(*words)).strip()


@pytest.fixture(scope="module")
def podman(request: pytest.FixtureRequest) -> Iterator[Podman]:
    """Build the image as docs/deploy.md says, on a base that debootstrap makes."""
    if request.config.getoption("--size") != "large":
        pytest.skip("it takes minutes: --size large")
    require("debootstrap", "podman", "crun")
    if os.geteuid():
        pytest.skip("only root can make a Debian tree")
    with TemporaryDirectory(prefix="relayd-image-") as name:
        # In memory: the driver vfs copies the whole tree for each step, and waits for the disk each time.
        try:
            run("mount", "-t", "tmpfs", "relayd-test", name)
        except CommandError as error:
            pytest.skip(f"cannot mount a tmpfs: {error}")
        try:
            podman = Podman(Path(name))
            _build(podman)
            yield podman
        finally:
            run("umount", "--lazy", name)


def _build(podman: Podman) -> None:
    tree, archive, pip_conf = (podman.home / made for made in ("debian", "debian.tar", "pip.conf"))
    make_tree(tree)
    # The slim image of Debian is without these, too.
    left_out = ["usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"]
    run("tar", "-C", tree, *(f"--exclude=./{path}/*" for path in left_out), "-cf", archive, ".")
    podman.run("import", str(archive), _BASE)
    pip = pip_settings()
    write_pip_conf(pip_conf, pip)
    volumes = [f"--volume={path}:{path}:ro" for path in local_directories(pip)]
    recipe = ["--format=docker", "--layers=false", f"--file={_TOP}/docs/deploy/Dockerfile", "--tag=relayd"]
    options = ["--isolation=chroot", "--pull=never", f"--secret=id=pip,src={pip_conf}", *volumes]
    podman.run("build", *recipe, *options, str(_TOP))


async def test_it_streams_an_answer_with_no_rights_and_nothing_writable(podman: Podman) -> None:
    """From a read-only root, as a user of its own; it reports healthy, and SIGTERM ends it in order."""
    ours = ["--network=host", "--cgroups=disabled", "--health-interval=disable"]
    ours += ["--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"]
    documented = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    env = [f"--env=AUTHORIZATION_KEY={_KEY}", "--env=RELAYD_SERVER__PORT=0"]
    process = await asyncio.create_subprocess_exec(
        *podman.words("run", "--name=served", *ours, *documented, *env, "relayd", "serve", "--demo"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        port = await _port(process)
        reply = await ask(port, _KEY, body("demo"))
        assert reply.lines[-1] == DONE
        assert len(reply.lines) > 2
        assert podman.run("exec", "served", "id", "-u") == "65532"
        root = podman.run("exec", "served", "grep", "-m1", " / ", "/proc/mounts")
        assert root.split()[3].startswith("ro,")
        await until(lambda: _is_healthy(podman))
        podman.run("kill", "--signal=TERM", "served")
        out, _ = await asyncio.wait_for(process.communicate(), _STEP_TIMEOUT_S)
        assert process.returncode == 0, out.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _is_healthy(podman: Podman) -> bool:
    try:
        podman.run("healthcheck", "run", "served")
    except CommandError:  # a busy machine may need longer than a check may take
        return False
    return True


async def _port(process: asyncio.subprocess.Process) -> int:
    assert process.stdout is not None
    seen = ""
    async with asyncio.timeout(_STEP_TIMEOUT_S):
        while line := await process.stdout.readline():
            seen += line.decode()
            if found := re.search(r"serving on http://\S+:([0-9]+)", seen):
                return int(found[1])
    pytest.fail(seen)


def test_the_image_is_small_and_holds_no_tool_that_installs(podman: Podman) -> None:
    """Less than 220 MB with Debian in it, and what only builds the wheel is left behind."""
    assert int(podman.run("image", "inspect", "--format={{.Size}}", "relayd")) < _MAX_BYTES
    mounted = Path(podman.run("image", "mount", "relayd"))
    assert not (mounted / "src").exists()
    assert not list(mounted.glob("opt/relayd/lib/python3*/site-packages/pip"))


@needs("docker-compose")
def test_the_compose_file_is_valid() -> None:
    """Compose itself accepts it, and asks for what the owner has to set."""
    command = ["docker-compose", "-f", str(_TOP / "docs/deploy/compose.yaml"), "config", "--quiet"]
    values = {"OPENAI_API_KEY": "a-key", "RELAYD_DOMAIN": "relay.example.com"}
    for missing in (*values, ""):
        env = {"PATH": os.environ["PATH"]} | {name: values[name] for name in values if name != missing}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
        assert (done.returncode == 0) == (not missing), done.stderr
        assert missing in done.stderr
