"""The app on a simulated daemon whose clients send hostile text; started by tests in a real terminal."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from relayd.admin.schema import RecordedError
from tui.__main__ import run_app
from tui.app import Options, RelaydApp
from tui.demo.link import DemoLink
from tui.settings import SettingsFile

HOSTILE = "evil\x1b]52;c;aGk=\x07\x1b[31;7;66m\x9b33;66m\x90q\x9c\u202eevil\u200b\u2066\u2028"


def main() -> int:
    """Run it."""
    link = DemoLink(seed=3, history_s=600)
    for record in link.daemon.records[-30:]:
        record.client = record.model = record.ip = record.user_agent = HOSTILE
        record.origin = record.path = record.finish_reason = record.upstream_request_id = HOSTILE
        record.user_agent = HOSTILE * 40_000
        record.error = RecordedError(HOSTILE, HOSTILE * 100)
    for plan in link.daemon.open.values():
        plan.model = HOSTILE

    async def run() -> int:
        settings = SettingsFile(Path(os.environ["HOME"]) / "tui.json")
        return await run_app(RelaydApp(link, Options("demo"), settings))

    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
