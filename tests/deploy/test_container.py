"""The container of docs/deploy, built and run by Podman without a daemon, and the compose file."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from debian import CommandError, local_directories, make_tree, pip_settings, run, write_pip_conf

from tests.support.programs import needs, require
from tests.wire import DONE, ask, body, until, wait_until

_TOP = Path(__file__).parents[2]
_BASE = "docker.io/library/debian:bookworm-slim"
_KEY = "the-key-of-the-container-tests"
_MAX_BYTES = 235_000_000
_STEP_TIMEOUT_S = 600.0
_COMPOSE = ["docker-compose", "-f", f"{_TOP}/docs/deploy/compose.yaml"]
# Caddy signs for this name itself.
_DOMAIN = "localhost"
# crun refuses a hybrid cgroup tree, and these containers use none: hide it.
_WITHOUT_CGROUPS = 'umount --recursive /sys/fs/cgroup; mount -t tmpfs none /sys/fs/cgroup; exec "$@"'


@dataclass(frozen=True, slots=True)
class Podman:
    """Podman with a store of its own, in `home`."""

    home: Path

    @property
    def own(self) -> list[str]:
        """Its options."""
        store = ["--root", f"{self.home}/store", "--runroot", f"{self.home}/run", "--storage-driver", "vfs"]
        tmp = ["--tmpdir", f"{self.home}/libpod", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        return store + tmp

    def words(self, *words: str) -> list[str]:
        """Return a command of Podman."""
        return ["unshare", "--mount", "sh", "-c", _WITHOUT_CGROUPS, "sh", "podman", *self.own, *words]

    def run(self, *words: str) -> str:
        """Run a command of Podman and return its output."""
        return run(*self.words(*words)).strip()


@pytest.fixture(scope="module")
def podman(request: pytest.FixtureRequest) -> Iterator[Podman]:
    """Build the image as docs/deploy.md says, on a base that debootstrap makes."""
    request.getfixturevalue("only_large")
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
    """Less than 235 MB with Debian in it, and what only builds the wheel is left behind."""
    assert int(podman.run("image", "inspect", "--format={{.Size}}", "relayd")) < _MAX_BYTES
    mounted = Path(podman.run("image", "mount", "relayd"))
    assert not (mounted / "src").exists()
    assert not list(mounted.glob("opt/relayd/lib/python3*/site-packages/pip"))


# A machine of its own for the containers: no port, network or process of theirs is seen outside.
_APART = """
mount --make-rprivate /
umount --recursive /sys/fs/cgroup; mount -t tmpfs none /sys/fs/cgroup
mkdir -p /run/containers; mount -t tmpfs none /run/containers
ip link set lo up
exec "$@"
"""
# No cgroups, as above; and no systemd, which Podman asks to run health checks.
_ENGINE_CONF = """
[containers]
cgroups = "disabled"
[network]
network_config_dir = "{home}/networks"
"""
# What this machine's user may not raise, the image that is built already, and no provider.
_OVERRIDE = """
services:
  relayd:
    image: localhost/relayd
    command: [serve, --demo]
    ulimits: {nofile: 4096, nproc: 4096}
  caddy:
    ulimits: {nofile: 4096, nproc: 4096}
"""


@dataclass(frozen=True, slots=True)
class Engine:
    """Podman as a service, which Compose takes for Docker, in namespaces of its own."""

    url: str
    leader: int

    def run(self, *words: str) -> str:
        """Run a command of Podman and return its output."""
        return run("podman", "--remote", "--url", self.url, *words).strip()

    def curl(self, *words: str) -> str:
        """Ask one of the published ports."""
        return run("nsenter", f"--target={self.leader}", "--net", "curl", "--silent", "--insecure", *words)

    def holds(self, *words: str) -> bool:
        """Return whether a command of Podman succeeds."""
        try:
            self.run(*words)
        except CommandError:
            return False
        return True


@contextmanager
def _engine(podman: Podman) -> Iterator[Engine]:
    conf, socket = podman.home / "containers.conf", podman.home / "podman.sock"
    conf.write_text(_ENGINE_CONF.format(home=podman.home))
    (podman.home / "networks").mkdir()
    service = ["podman", *podman.own, "system", "service", "--time=0", f"unix://{socket}"]
    apart = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    said = podman.home / "engine.log"
    with said.open("wb") as log:
        process = subprocess.Popen(
            [*apart, "sh", "-c", _APART, "sh", *service],
            env={"PATH": os.environ["PATH"], "CONTAINERS_CONF": str(conf), "DISABLE_HC_SYSTEMD": "true"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: socket.exists() or process.poll() is not None)
        assert process.poll() is None, said.read_text()
        yield Engine(f"unix://{socket}", int(children.read_text().split()[0]))
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(2 * _STEP_TIMEOUT_S)
async def test_the_two_services_of_the_compose_file_serve_together(podman: Podman) -> None:
    """Caddy starts when relayd is healthy, answers over TLS, and tells relayd the client's address."""
    require("docker-compose", "ip", "iptables", "curl", "/usr/lib/cni/dnsname")
    recipe, override = podman.home / "Dockerfile.caddy", podman.home / "override.yaml"
    recipe.write_text(f"FROM {_BASE}\nRUN apt-get update && apt-get install -y caddy\n")
    options = ["--format=docker", "--layers=false", "--isolation=chroot", "--pull=never", f"--file={recipe}"]
    tag = "--tag=docker.io/library/caddy:2"
    await asyncio.to_thread(podman.run, "build", *options, tag, str(podman.home))
    override.write_text(_OVERRIDE)
    with _engine(podman) as engine:
        up = await asyncio.create_subprocess_exec(
            *[*_COMPOSE, "-f", str(override), "-p", "both", "up", "-d", "--no-build"],
            env={"PATH": os.environ["PATH"], "DOCKER_HOST": engine.url, "RELAYD_DOMAIN": _DOMAIN}
            | {"OPENAI_API_KEY": "not-asked"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(_STEP_TIMEOUT_S):
            ended = asyncio.create_task(up.communicate())
            while not ended.done():  # Compose waits for this, which systemd would run every 30 s
                await asyncio.to_thread(engine.holds, "healthcheck", "run", "both_relayd_1")
                await asyncio.sleep(0.1)
        assert up.returncode == 0, (await ended)[0].decode()
        waiting = ["--retry", "100", "--retry-connrefused", "--retry-delay", "1"]
        assert await asyncio.to_thread(engine.curl, *waiting, f"https://{_DOMAIN}/healthz")
        made = await asyncio.to_thread(engine.run, "exec", "both_relayd_1", "relayd", "keys", "add", "web")
        key = next(line for line in made.splitlines() if line.startswith("rly_"))
        asked = [
            f"https://{_DOMAIN}/chat",
            "--header",
            f"Authorization: {key}",
            "--data",
            body("demo").decode(),
        ]
        lines = [json.loads(line) for line in (await asyncio.to_thread(engine.curl, *asked)).splitlines()]
        assert lines[-1] == DONE
        assert len(lines) > 2
        assert not any(line["error"] for line in lines)
        log = await asyncio.to_thread(engine.run, "exec", "both_relayd_1", "relayd", "log", "--json")
        gateway = "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}"
        client = await asyncio.to_thread(engine.run, "inspect", f"--format={gateway}", "both_caddy_1")
        assert json.loads(log.splitlines()[-1])["ip"] == client


@needs("docker-compose")
@pytest.mark.parametrize(
    ("file", "more"), [("compose.yaml", {}), ("postgresql/compose.yaml", {"DATABASE_PASSWORD": "a-word"})]
)
def test_the_compose_file_is_valid(file: str, more: dict[str, str]) -> None:
    """Compose itself accepts it, and asks for what the owner has to set."""
    command = ["docker-compose", "-f", f"{_TOP}/docs/deploy/{file}", "config", "--quiet"]
    values = {"OPENAI_API_KEY": "a-key", "RELAYD_DOMAIN": "relay.example.com", **more}
    for missing in (*values, ""):
        env = {"PATH": os.environ["PATH"]} | {name: values[name] for name in values if name != missing}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
        assert (done.returncode == 0) == (not missing), done.stderr
        assert missing in done.stderr
