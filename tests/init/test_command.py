"""`relayd init` itself: its questions, its order, its refusals."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from relayd.config import ConfigError, load
from relayd.init.command import init
from relayd.init.install import Console, InitError
from tests.commands.harness import run
from tests.e2e.daemon import closed_port, command, environment
from tests.support.programs import needs

_KEY = "provider-key-that-init-is-given"
_FLAGS: dict[str, Any] = {
    "system": False,
    "config": None,
    "base_url": None,
    "key_file": None,
    "model": None,
    "host": None,
    "port": None,
    "no_check": True,
    "yes": False,
    "force": False,
    "root": "/",
}


class Person:
    """Answers questions in order, and keeps what was asked and said."""

    def __init__(self, home: Path, answers: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)
        self.out = io.StringIO()
        self.console = Console(
            env={"HOME": str(home), **(env or {})},
            cwd=home,
            out=self.out,
            ask=self._answer if answers else None,
            ask_secret=self._answer,
            read_stdin=lambda: _KEY + "\n",
        )

    def _answer(self, question: str) -> str:
        self.asked.append(question)
        return self._answers.pop(0)


def _init(person: Person, **flags: Any) -> int:
    return init(Namespace(**{**_FLAGS, **flags}), person.console)


def test_what_it_writes_is_what_serve_reads(tmp_path: Path) -> None:
    """Answers and flags are in effect, the key comes from its own private file, nothing is doubtful."""
    person = Person(tmp_path, ["https://provider.example/v1", "4000", _KEY])
    assert _init(person, model="gpt-x") == 0
    settings = load(config_path=None, cli={}, env=person.console.env, cwd=tmp_path)
    assert settings.openai_api_key is not None
    assert settings.openai_api_key.get_secret_value() == _KEY
    assert settings.upstream.base_url == "https://provider.example/v1"
    assert (settings.server.port, settings.chat.default_model) == (4000, "gpt-x")
    assert settings.warnings == ()
    assert settings.openai_api_key_file is not None
    assert settings.openai_api_key_file.stat().st_mode & 0o777 == 0o600
    assert settings.openai_api_key_file.parent.stat().st_mode & 0o777 == 0o700
    assert _KEY not in (tmp_path / "relayd.toml").read_text()
    assert _KEY not in person.out.getvalue()
    assert re.search(r"\nStart it: \S*relayd serve\n$", person.out.getvalue())


def test_the_command_that_starts_it_can_be_pasted(tmp_path: Path) -> None:
    """A shell reads the path of a directory with a space as one word."""
    home = tmp_path / "Jane's relay"
    home.mkdir()
    person = Person(home, ["", "", ""])
    assert _init(person, config="other.toml") == 0
    command_line = person.out.getvalue().partition("\nStart it: ")[2]
    assert shlex.split(command_line)[1:] == ["serve", "--config", str(home / "other.toml"), "--demo"]


def test_enter_keeps_every_default(tmp_path: Path) -> None:
    """Three empty answers: a configuration of defaults, and the demo to start with."""
    person = Person(tmp_path, ["", "", ""])
    assert _init(person) == 0
    assert [line[:24] for line in person.asked] == [
        "The provider's address [",
        "Port to listen on [3666]",
        "The provider's key (not ",
    ]
    lines = (tmp_path / "relayd.toml").read_text().splitlines()
    assert all(line.startswith(("#", "[")) or not line for line in lines)
    assert re.search(r"\nStart it: \S*relayd serve --demo\n$", person.out.getvalue())


def test_what_cannot_be_used_is_asked_again(tmp_path: Path) -> None:
    """A wrong answer costs a sentence that says what is allowed."""
    answers = ["api.example", "https://api.example/v1", "seventy", "70000", "4000", ""]
    person = Person(tmp_path, answers)
    assert _init(person) == 0
    said = person.out.getvalue()
    assert said.count("That cannot be used: ") == 3
    assert 'server.port is "70000", but must be a whole number from 0 to 65535.' in said
    settings = load(config_path=None, cli={}, env=person.console.env, cwd=tmp_path)
    assert (settings.upstream.base_url, settings.server.port) == ("https://api.example/v1", 4000)


def test_what_flags_say_is_not_asked(tmp_path: Path) -> None:
    """Each flag saves its question."""
    person = Person(tmp_path, [""])
    assert _init(person, base_url="https://api.example/v1", port=4000) == 0
    assert [question[:18] for question in person.asked] == ["The provider's key"]


def test_a_key_in_the_environment_stays_there(tmp_path: Path) -> None:
    """It is named, not copied."""
    person = Person(tmp_path, env={"OPENAI_API_KEY": _KEY})
    assert _init(person) == 0
    assert "OPENAI_API_KEY" in person.out.getvalue()
    assert not (tmp_path / ".local").exists()


def test_a_key_from_stdin_needs_nobody(tmp_path: Path) -> None:
    """`--key-file -` is for scripts: no question, no key among the arguments."""
    person = Person(tmp_path)
    assert _init(person, key_file="-") == 0
    assert (tmp_path / ".local/state/relayd/provider-key").read_text() == _KEY + "\n"


def test_what_is_there_already_is_kept_unless_told(tmp_path: Path) -> None:
    """Without --force it refuses before it asks; with it the old file stays beside the new."""
    (tmp_path / "relayd.toml").write_text("# mine\n")
    person = Person(tmp_path, [""])
    with pytest.raises(InitError, match="--force"):
        _init(person)
    assert person.asked == []
    assert _init(Person(tmp_path), force=True) == 0
    assert (tmp_path / "relayd.toml.old").read_text() == "# mine\n"


def test_an_impossible_answer_changes_nothing(tmp_path: Path) -> None:
    """The configuration's own rules judge what is given."""
    with pytest.raises(ConfigError, match=r"server\.port is 70000"):
        _init(Person(tmp_path), port=70000)
    with pytest.raises(ConfigError, match=r"upstream\.base_url"):
        _init(Person(tmp_path), base_url="nonsense")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("answer", "goes_on"), [("n", False), ("", False), ("y", True)])
def test_a_provider_that_fails_stops_it_unless_the_person_goes_on(
    tmp_path: Path, answer: str, *, goes_on: bool
) -> None:
    """The steps are shown; without a yes nothing is written."""
    url = f"http://127.0.0.1:{closed_port()}/v1"
    person = Person(tmp_path, ["", _KEY, answer])
    with nullcontext() if goes_on else pytest.raises(InitError, match=r"^nothing was changed\.$"):
        _init(person, base_url=url, no_check=False)
    assert "ERROR    connect " in person.out.getvalue()
    assert (tmp_path / "relayd.toml").exists() == goes_on


def test_without_a_person_a_provider_that_fails_stops_it(tmp_path: Path) -> None:
    """And the sentence says how to go on all the same."""
    with pytest.raises(InitError, match="--no-check"):
        _init(Person(tmp_path), key_file="-", base_url=f"http://127.0.0.1:{closed_port()}/v1", no_check=False)
    assert list(tmp_path.iterdir()) == []


@needs("systemctl")
def test_for_an_image_the_whole_service_is_laid_out(tmp_path: Path) -> None:
    """Configuration, key and units, enabled for its first boot; a second run renews the units alone."""
    root = tmp_path / "image"
    person = Person(tmp_path)
    assert _init(person, system=True, root=str(root), key_file="-", port=4000) == 0
    key = root / "etc/relayd/openai_api_key"
    assert key.read_text() == _KEY + "\n"
    assert key.stat().st_mode & 0o777 == 0o600
    units = root / "etc/systemd/system"
    assert (units / "sockets.target.wants/relayd.socket").is_symlink()
    assert (units / "multi-user.target.wants/relayd.service").is_symlink()
    unit = units / "relayd.socket"
    assert "ListenStream=127.0.0.1:4000\n" in unit.read_text()
    unit.write_text("an older one")
    again = Person(tmp_path)
    assert _init(again, system=True, root=str(root)) == 0
    assert "Kept" in again.out.getvalue()
    assert "ListenStream=127.0.0.1:4000\n" in unit.read_text()


def _image(tmp_path: Path) -> Path:
    root = tmp_path / "image"
    assert _init(Person(tmp_path), system=True, root=str(root), key_file="-", port=4000) == 0
    return root


@needs("systemctl")
@pytest.mark.parametrize("text", ["", "\n", None])
def test_a_service_whose_key_is_gone_is_asked_for_it_again(tmp_path: Path, text: str | None) -> None:
    """Its file is missing or empty: the configuration stays, the key is asked for, the service starts."""
    root = _image(tmp_path)
    key, config = root / "etc/relayd/openai_api_key", root / "etc/relayd/relayd.toml"
    before = config.read_text()
    key.unlink()
    if text is not None:
        key.write_text(text)
    person = Person(tmp_path, ["a-new-key-of-the-provider"])
    assert _init(person, system=True, root=str(root)) == 0
    assert key.read_text() == "a-new-key-of-the-provider\n"
    assert key.stat().st_mode & 0o777 == 0o600
    assert config.read_text() == before
    assert "The service starts" in person.out.getvalue()
    # Without a person, the unit gets the file that it needs, and is not started to fail.
    key.unlink()
    alone = Person(tmp_path)
    assert _init(alone, system=True, root=str(root)) == 0
    assert key.read_text().strip() == ""
    assert "There is no provider key yet" in alone.out.getvalue()
    assert "systemctl" in alone.out.getvalue()


def _spoil(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _put_behind_a_file(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.touch()


_SPOILT: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": lambda path: _spoil(path, b""),
    "not text": lambda path: _spoil(path, b"\xff\xfe\x00"),
    "a directory": _make_directory,
    "a dangling link": _make_dangling,
    "behind a file": _put_behind_a_file,
}


@needs("systemctl")
@pytest.mark.parametrize("spoil", _SPOILT.values(), ids=_SPOILT)
@pytest.mark.parametrize(
    "name",
    [
        "image/etc/relayd/relayd.toml",
        "image/etc/relayd/openai_api_key",
        "image/etc/systemd/system/relayd.service",
        "image/etc/sysusers.d/relayd.conf",
        "keys/given",
    ],
)
def test_whatever_it_finds_it_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[Path], None]
) -> None:
    """Each path that it reads or writes may be missing or spoilt: it works, or names the path in one line."""
    monkeypatch.chdir(tmp_path)
    root = _image(tmp_path)
    given = tmp_path / "keys/given"
    given.parent.mkdir()
    given.write_text(_KEY)
    spoil(tmp_path / name)
    words = ["--system", "--root", str(root), "--yes", "--no-check", "--key-file", str(given)]
    for force in ([], ["--force"]):
        ran = run("init", *words, *force)
        assert ran.status in {0, 1}, ran
        if ran.status:
            first, *others = ran.err.splitlines()
            assert others == [], ran.err
            assert Path(name).name in first or Path(name).parent.name in first or "--key-file" in first


def test_its_failures_are_one_line_and_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key file that is not there is named, without a traceback."""
    monkeypatch.chdir(tmp_path)
    ran = run("init", "--yes", "--key-file", str(tmp_path / "none"))
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == f"relayd: {tmp_path / 'none'}: No such file or directory\n"


def test_at_a_terminal_the_key_is_not_shown(tmp_path: Path) -> None:
    """Typed into a real terminal, the key never comes back; the rest is asked in plain sight."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        command("init", "--no-check"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=tmp_path,
        env=environment(tmp_path, {"TERM": "xterm"}),
        start_new_session=True,
    )
    os.close(terminal)
    seen = _talk(controller, [("address [", ""), ("listen on [", ""), ("empty: later): ", _KEY)])
    assert process.wait(20) == 0
    os.close(controller)
    assert _KEY not in seen
    assert (tmp_path / ".local/state/relayd/provider-key").read_text() == _KEY + "\n"


def _talk(terminal: int, answers: Sequence[tuple[str, str]]) -> str:
    """Wait for each question and type its answer; returns all that was shown."""
    seen, left = "", list(answers)
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline, seen
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other side is closed
            return seen
        if not piece:
            return seen
        seen += piece.decode()
        if left and left[0][0] in seen:
            os.write(terminal, (left.pop(0)[1] + "\n").encode())
