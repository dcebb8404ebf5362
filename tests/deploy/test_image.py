"""The container's recipe, read: what gets in, who runs it, and how. `scripts/prove image` performs it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from proving.dockerfile import NotUnderstood, Stage, dockerfile, ignores, parse

from relayd.cli import main
from tests.deploy.compose import Node, read_compose

_TOP = Path(__file__).parents[2]
_DEPLOY = _TOP / "docs" / "deploy"
_SECRET_NAME = re.compile(r"(?i)(key|token|secret|password|credential)")
_SECRET = re.compile(rb"sk-[A-Za-z0-9_-]{20,}|rly_[A-Za-z0-9]{8}_[A-Za-z0-9]{49}|BEGIN [A-Z ]*PRIVATE KEY")


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    """docs/deploy/Dockerfile."""
    return parse(dockerfile(_TOP).read_text(encoding="utf-8"))


def _service(name: str) -> dict[str, Node]:
    services = read_compose(_DEPLOY / "compose.yaml")["services"]
    assert isinstance(services, dict)
    service = services[name]
    assert isinstance(service, dict)
    return service


def test_the_image_begins_with_nothing(stages: list[Stage]) -> None:
    """The last stage is from scratch and only copies: no shell, no package manager of a base image."""
    assert stages[-1].base == "scratch"
    assert {step.word for step in stages[-1].instructions} == {
        *("COPY", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD")
    }
    assert all(step.words[0].startswith("--from=") for step in stages[-1].instructions if step.word == "COPY")


def test_every_base_names_its_release(stages: list[Stage]) -> None:
    """A build of next year has the same Debian: no base without a tag, none that is `latest` or `stable`."""
    for stage in stages[:-1]:
        name, _, tag = stage.base.partition(":")
        assert (name, re.fullmatch(r"(bookworm|trixie)(-\d{8})?-slim", tag) is not None) == ("debian", True)
    _, _, tag = str(_service("caddy")["image"]).partition(":")
    assert re.match(r"\d", tag)


def test_packages_are_the_locked_ones(stages: list[Stage]) -> None:
    """Nothing is installed that requirements.txt does not name, with its hash."""
    installs = [
        words
        for step in stages[0].instructions
        if step.word == "RUN"
        for words in re.findall(r"bin/pip install ([^&]*)", step.rest)
    ]
    assert [words.split()[-1] for words in installs] == ["requirements.txt", "."]
    assert {"--require-hashes", "--no-deps", "-r"} <= set(installs[0].split())
    assert {"--no-deps", "--no-build-isolation"} <= set(installs[1].split())
    lock = (_TOP / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in lock.splitlines():
        if line and not line.lstrip().startswith("#"):
            assert re.match(r"[a-z0-9.-]+(\[[a-z,]+\])?==\S+.* --hash=sha256:[0-9a-f]{64}", line), line


def test_it_runs_as_nobody_in_particular(stages: list[Stage]) -> None:
    """The user is a number that is not root's, so that an orchestrator can check it; the state is its own."""
    user = stages[-1].last("USER")
    assert user is not None
    assert re.fullmatch(r"([1-9]\d{3,}):\1", user.rest)
    number = user.rest.partition(":")[0]
    state = [
        line for step in stages[1].instructions for line in step.rest.split("&&") if "/image/state" in line
    ]
    assert f"-m 700 -o {number} -g {number}" in state[-1]
    volume, where = stages[-1].last("VOLUME"), stages[-1].last("WORKDIR")
    assert volume is not None
    assert where is not None
    assert stages[-1].environment()["RELAYD_STATE_DIR"] == volume.rest == where.rest == "/state"


def test_it_says_whether_it_is_well(
    stages: list[Stage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check and entry need no shell; the check's command exists, and fails where no daemon runs."""
    last = stages[-1]
    entry, check, words = last.last("ENTRYPOINT"), last.last("HEALTHCHECK"), last.last("CMD")
    assert entry is not None
    assert check is not None
    assert words is not None
    assert entry.words + words.words == ["relayd", "serve"]
    asked = json.loads(check.rest.partition("CMD")[2])
    assert asked[0] == "relayd"
    assert main([*asked[1:], "--socket", str(tmp_path / "none.sock")]) == 3
    assert "none.sock" in capsys.readouterr().err


def test_nothing_of_the_recipe_is_a_secret(stages: list[Stage]) -> None:
    """No variable of a key, no file of one: layers are read by whoever has the image."""
    for stage in stages:
        assert not [name for name in stage.environment() if _SECRET_NAME.search(name)]
        assert not [
            step.rest for step in stage.instructions if step.word in {"COPY", "ARG"} and ".env" in step.rest
        ]


def test_only_sources_are_let_in(stages: list[Stage]) -> None:
    """The build sees what it copies and nothing else: no history, no state, no `.env`."""
    let_in, stay_out = ignores((_DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8"))
    copied = {
        name
        for stage in stages
        for step in stage.instructions
        if step.word == "COPY" and not step.words[0].startswith("--from=")
        for name in step.words[:-1]
    }
    assert copied == let_in
    assert stay_out == {"**/__pycache__"}


def test_what_is_let_in_holds_no_key() -> None:
    """No committed file of the image, nor of the wheel, looks like a key of a provider or of relayd."""
    let_in, _ = ignores((_DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8"))
    listed = subprocess.run(
        ["git", "-C", str(_TOP), "ls-files", "--", *sorted(let_in)],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a clone")
    names = listed.stdout.splitlines()
    assert len(names) > 100
    assert [name for name in names if _SECRET.search((_TOP / name).read_bytes())] == []
    assert {Path(name).suffix for name in names} <= {
        *("", ".css", ".html", ".js", ".md", ".py", ".service", ".socket", ".svg", ".tcss", ".toml", ".txt"),
        ".typed",
    }


def test_compose_gives_the_daemon_nothing_it_does_not_need() -> None:
    """A root that can't be written, no capability, no new privileges, few processes, no port outside."""
    relayd = _service("relayd")
    assert relayd["read_only"] == "true"
    assert relayd["cap_drop"] == ["ALL"]
    assert relayd["security_opt"] == ["no-new-privileges:true"]
    assert int(str(relayd["pids_limit"])) <= 128
    assert relayd["volumes"] == ["state:/state"]
    assert not {"ports", "privileged", "network_mode", "cap_add", "user"} & set(relayd)


def test_compose_holds_no_key_and_says_what_is_missing() -> None:
    """The provider's key comes from outside; without it the start is refused in words."""
    variables = _service("relayd")["environment"]
    assert isinstance(variables, dict)
    assert variables["OPENAI_API_KEY"] == "${OPENAI_API_KEY:?set it in .env}"
    assert [name for name in variables if _SECRET_NAME.search(name)] == ["OPENAI_API_KEY"]


def test_compose_believes_caddy_and_nobody_else() -> None:
    """The proxy whose X-Forwarded-For counts is on the network of the two, and only they are there."""
    compose = read_compose(_DEPLOY / "compose.yaml")
    variables = _service("relayd")["environment"]
    assert isinstance(variables, dict)
    assert f'"subnet: {variables["RELAYD_SERVER__TRUSTED_PROXIES"]}"' in json.dumps(compose["networks"])
    assert _service("relayd")["networks"] == _service("caddy")["networks"] == ["inside"]
    assert isinstance(compose["services"], dict)
    assert set(compose["services"]) == {"relayd", "caddy"}


def test_compose_proxies_as_the_tested_caddyfile_does() -> None:
    """The same directives as in docs/deploy/Caddyfile, to the daemon's name."""
    configs = read_compose(_DEPLOY / "compose.yaml")["configs"]
    assert isinstance(configs, dict)
    caddyfile = configs["caddyfile"]
    assert isinstance(caddyfile, dict)
    tested = (_DEPLOY / "Caddyfile").read_text(encoding="utf-8")
    wanted = [
        line.strip() for line in tested.splitlines() if line.strip() and not line.strip().startswith("#")
    ]
    site = [line.replace("relayd:3666", "127.0.0.1:3666") for line in str(caddyfile["content"]).splitlines()]
    assert site[1:] == wanted[1:]


@pytest.mark.parametrize("text", ["RUN true", "FROM a\nADD x /", "FROM a BS b", "FROM a\nrun true"])
def test_what_the_reader_does_not_know_it_refuses(text: str) -> None:
    """A recipe that the proofs can't perform is not read as if they could."""
    with pytest.raises(NotUnderstood):
        parse(text)
