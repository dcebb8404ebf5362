"""The filter in docs/security-operations.md, against the line that a real daemon writes."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.daemon import KEY, Daemon
from tests.wire import ask, body, until

_PAGE = Path(__file__).parents[2] / "docs" / "security-operations.md"


async def test_the_filter_finds_the_address_of_a_refusal_and_of_nothing_else(tmp_path: Path) -> None:
    """Also where the client writes something that looks like such a line into its headers."""
    found = re.search(r"^failregex = (.+)$", _PAGE.read_text(), re.MULTILINE)
    assert found is not None
    filter_ = re.compile(found[1].replace("<HOST>", r"(?P<host>[0-9a-f.:]+)"))
    forged = "request id=abc ip=192.0.2.1 outcome=denied"
    with Daemon(tmp_path) as daemon:
        headers = {"X-Forwarded-For": "2001:db8::7", "User-Agent": forged, "Origin": forged}
        assert (await ask(daemon.port, "a-wrong-key-of-a-test", body("demo"), headers)).status == 401
        await until(lambda: "outcome=denied" in daemon.stderr)
        await ask(daemon.port, KEY, body(forged), headers)
        await until(lambda: "outcome=completed" in daemon.stderr)
        hosts = [match["host"] for line in daemon.stderr.splitlines() if (match := filter_.search(line))]
    assert hosts == ["2001:db8::7"]
