"""The app on the fake daemon, for tests in a real terminal.

With `hostile`, clients send hostile text; with `crash`, something fails that should not.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from relayd.admin.schema import AuditPage, RecordedError
from tests.tui.fake_daemon import FakeDaemon
from tui.__main__ import run_app
from tui.app import Options, RelaydApp
from tui.settings import SettingsFile

HOSTILE = "evil\x1b]52;c;aGk=\x07\x1b[31;7;66m\x9b33;66m\x90q\x9c\u202eevil\u200b\u2066\u2028"


async def _crash(*_: object, **__: object) -> AuditPage:
    key = "rly_" + "key_in_a_variable"
    raise RuntimeError("a fault" if key else "")


async def _run(*, hostile: bool, crashes: bool) -> int:
    daemon = FakeDaemon(600)
    for record in daemon.records[-30:] if hostile else []:
        record.client = record.model = record.ip = HOSTILE
        record.origin = record.path = record.finish_reason = record.upstream_request_id = HOSTILE
        record.user_agent = HOSTILE * 40_000
        record.error = RecordedError(HOSTILE, HOSTILE * 100)
    if crashes:
        daemon.audit = _crash  # type: ignore[method-assign]
    settings = SettingsFile(Path(os.environ["HOME"]) / "tui.json")
    return await run_app(RelaydApp(daemon, Options("demo"), settings, now_s=daemon.now_s))


if __name__ == "__main__":
    sys.exit(asyncio.run(_run(hostile="hostile" in sys.argv, crashes="crash" in sys.argv)))
