"""`relayd doctor` as a command: what is shown, what is asked, how it ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from relayd.doctor.command import DoctorError, parse_url
from relayd.relay.stream import StreamLimits
from tests.doctor.faultproxy import fault_proxy
from tests.e2e.daemon import command, environment
from tests.public.room import KEY, Setup, public_room
from tests.wire import HOST, PATIENCE_S

_SETUP = Setup(limits=StreamLimits(heartbeat_s=1.0), max_body_bytes=2 << 20)


async def _doctor(home: Path, *words: str, stdin: bytes = b"") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command("doctor", *words),
        env=environment(home, {}),
        cwd=home,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), 3 * PATIENCE_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_healthy_relay_is_told_line_by_line(tmp_path: Path) -> None:
    """One line a check, the verdict last, status 0; the key from its file is nowhere shown."""
    (tmp_path / "key").write_text(KEY + "\n")
    async with public_room(_SETUP) as room:
        status, out, err = await _doctor(tmp_path, f"http://{HOST}:{room.port}/", "--key-file", "key")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[1] == "good  relay         relayd answers."
    assert "good  disconnects" in out
    assert lines[-1] == "No fault found."
    assert KEY not in out


async def test_a_fault_is_told_with_its_remedy_and_status_1(tmp_path: Path) -> None:
    """The remedy stands under the fault; the verdict counts."""
    async with public_room(_SETUP) as room, fault_proxy(room.port, "clock") as port:
        status, out, _ = await _doctor(tmp_path, f"http://{HOST}:{port}")
    assert status == 1
    lines = out.splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.startswith("FAULT clock"))
    assert lines[place + 1].strip() == "-> on the machine that is wrong: timedatectl set-ntp true"
    assert lines[-1] == "1 fault found."


async def test_for_programs_it_is_one_document(tmp_path: Path) -> None:
    """--json: every finding with its level; the key may come from stdin."""
    async with public_room(_SETUP) as room:
        url = f"http://{HOST}:{room.port}"
        status, out, _ = await _doctor(tmp_path, url, "--json", "--key-file", "-", stdin=KEY.encode())
    told = json.loads(out)
    assert (status, told["url"], told["faults"]) == (0, url, 0)
    assert {finding["level"] for finding in told["findings"]} == {"good"}
    assert set(told["findings"][0]) == {"check", "level", "said", "todo"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("ftp://x",), "is no address"),
        (("https://nothing.invalid",), "nothing.invalid has no address"),
        (("https://127.0.0.1", "--ca", "none.pem"), "none.pem: No such file"),
        (("https://127.0.0.1", "--ca", "empty.pem"), "holds no certificate"),
        (("http://127.0.0.1:1", "--key-file", "none"), "none: No such file"),
    ],
)
async def test_what_cannot_be_used_is_one_line(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    """Status 1, one sentence on stderr, no traceback."""
    (tmp_path / "empty.pem").touch()
    status, out, err = await _doctor(tmp_path, *words)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert says in err


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("relay.example.com", "https://relay.example.com"),
        ("https://relay.example.com/", "https://relay.example.com"),
        ("https://relay.example.com/chat", "https://relay.example.com"),
        ("http://127.0.0.1:3666/ai/", "http://127.0.0.1:3666/ai"),
        ("https://[::1]:8443", "https://[::1]:8443"),
    ],
)
def test_an_address_may_be_written_as_people_do(text: str, means: str) -> None:
    """Without a scheme HTTPS is meant; the path of /chat itself leads to the relay too."""
    assert parse_url(text).geturl() == means


@pytest.mark.parametrize(
    "text", ["", "https://", "https://x:port", "https://user:secret@x", "https://x?y", "file:///etc/passwd"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """In words that show what one looks like."""
    with pytest.raises(DoctorError, match=r"https://relay\.example\.com"):
        parse_url(text)
