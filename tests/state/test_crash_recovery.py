"""What an earlier run of the daemon left open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from relayd.state.records import Ended, Outcome, Phase
from tests.state.harness import Published, a_record, as_ended, opened

CHILD = """
import sys, time
from pathlib import Path
from tests.state.harness import a_record, as_ended, opened
with opened(Path(sys.argv[1]), boot_id="boot-child") as state:
    for number in range(40):
        state.log.started(a_record(number, "boot-child"))
    state.log.ended(as_ended(a_record(0, "boot-child")))
    while state.log.queued:
        time.sleep(0.01)
    print("written", flush=True)
    time.sleep(3600)
"""


def test_what_a_killed_daemon_left_open_is_closed_as_crashed(tmp_path: Path) -> None:
    """Each open request of a dead process ends at the next start, with an event; ended ones stay."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "state")], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "written\n"
        child.kill()
    published = Published()
    with opened(tmp_path / "state", boot_id="boot-2", published=published) as state:
        ended = [event for event in published.events if isinstance(event, Ended)]
        assert [event.seq for event in ended] == list(range(42, 42 + 39))
        assert {(event.boot_id, event.record.outcome, event.record.phase) for event in ended} == {
            ("boot-child", Outcome.CRASHED, Phase.DONE)
        }
        assert [event.record.id for event in ended] == [f"req-{n:06d}" for n in range(1, 40)]
        first = state.reader.get("req-000000")
        assert first is not None
        assert first.outcome is Outcome.COMPLETED
        assert state.reader.events(41) == ended


def test_what_was_open_at_a_clean_end_is_closed_too(tmp_path: Path) -> None:
    """Whatever ended the earlier run: what it left open is closed once."""
    with opened(tmp_path / "state", boot_id="boot-1") as state:
        state.log.started(a_record(1))
        state.log.started(a_record(2))
        state.log.ended(as_ended(a_record(2)))
    published = Published()
    with opened(tmp_path / "state", boot_id="boot-2", published=published):
        assert [event.record.id for event in published.events if isinstance(event, Ended)] == ["req-000001"]
    again = Published()
    with opened(tmp_path / "state", boot_id="boot-3", published=again):
        assert again.events == []
