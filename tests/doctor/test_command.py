"""`relayd doctor` as a command: what is shown, what is asked, how it ends."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from relayd.doctor.command import DoctorError, parse_url
from tests.doctor.fault_proxy import fault_proxy
from tests.e2e.daemon import KEY, Daemon, command, environment
from tests.wire import HOST, PATIENCE_S


async def _doctor(
    home: Path, *words: str, stdin: bytes = b"", env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command("doctor", *words),
        env=environment(home, env or {}),
        cwd=home,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), 3 * PATIENCE_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_good_relay_is_told_line_by_line(tmp_path: Path, daemon: Daemon) -> None:
    """One line a check, the verdict last, status 0; the key from its file is not shown."""
    (tmp_path / "key").write_text(KEY + "\n")
    status, out, err = await _doctor(tmp_path, f"http://{HOST}:{daemon.port}/", "--key-file", "key")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[2] == "ok       relay         relayd answers."
    assert "ok       disconnects" in out
    assert lines[-1] == "No errors found."
    assert KEY not in out


async def test_an_error_is_told_with_its_remedy_and_status_1(tmp_path: Path, daemon: Daemon) -> None:
    """The remedy stands below the error; the verdict counts."""
    async with fault_proxy(daemon.port, "clock") as port:
        status, out, _ = await _doctor(tmp_path, f"http://{HOST}:{port}")
    assert status == 1
    lines = out.splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.startswith("ERROR    clock"))
    assert lines[place + 1].strip() == "-> on the machine that is wrong: timedatectl set-ntp true"
    assert lines[-1] == "1 error found."


async def test_for_programs_it_is_one_document(tmp_path: Path, daemon: Daemon) -> None:
    """--json prints every finding with its severity; the key may come from stdin."""
    url = f"http://{HOST}:{daemon.port}"
    status, out, _ = await _doctor(tmp_path, url, "--json", "--key-file", "-", stdin=KEY.encode())
    told = json.loads(out)
    assert (status, told["url"], told["errors"]) == (0, url, 0)
    assert {finding["severity"] for finding in told["findings"]} == {"ok"}
    assert told["findings"][2] == {
        "severity": "ok",
        "where": "relay",
        "message": "relayd answers.",
        "remedy": "",
        "key": "",
    }


async def test_on_a_machine_of_the_relay_its_database_is_examined(
    tmp_path: Path, daemon: Daemon, postgres_url: str
) -> None:
    """As `relayd check` does it, by the configuration of this machine."""
    url = f"http://{HOST}:{daemon.port}"
    _, out, err = await _doctor(tmp_path, url, env={"RELAYD_STATE__URL": postgres_url})
    assert err == ""
    assert re.search(r"(?m)^ok +database +'test\d+' at /\S+ is PostgreSQL \d+", out)
    assert "ok       tables" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("ftp://x",), "is not an address"),
        (("http://[::1",), "is not an address"),
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
