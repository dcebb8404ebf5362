"""Text that a client controls, on the screen."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from relayd.admin.schema import Outcome, RecordedError
from tests.tui.app_harness import running_app
from tests.tui.samples import a_record

HOSTILE = "\x1b]52;c;aGk=\x07\x1b[2J\x9b31m\u202eevil\u200b\u2066[red]x[/red]\x00"


async def test_no_control_character_of_a_client_is_drawn(tmp_path: Path) -> None:
    """Escape sequences, C1, bidi and markup in every field show as harmless text, in list and detail."""
    async with running_app(tmp_path, size=(140, 40)) as harness:
        record = a_record(
            harness.link.daemon.seq + 1,
            id=HOSTILE,
            client=HOSTILE,
            ip=HOSTILE,
            origin=HOSTILE,
            user_agent=HOSTILE * 50_000,
            model=HOSTILE,
            path=HOSTILE,
            finish_reason=HOSTILE,
            upstream_request_id=HOSTILE,
            outcome=Outcome.UPSTREAM_ERROR,
            error=RecordedError(HOSTILE, HOSTILE),
            boot_id=harness.state.boot_id,
        )
        harness.state.backlog([record])
        await harness.redraw()
        await harness.press("enter")
        screen = harness.text()
        assert "evil" in screen
        assert "[red]" in screen
        bad = {c for c in screen if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl"}}
        assert bad == set()
