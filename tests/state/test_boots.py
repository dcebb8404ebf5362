"""Who used the file, and what those that died left open."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from relayd.state.boots import Process
from relayd.state.events import Ended
from relayd.state.records import Outcome, Phase
from tests.state.room import Published, a_record, as_ended, opened

CHILD = """
import sys, time
from pathlib import Path
from tests.state.room import a_record, as_ended, opened
with opened(Path(sys.argv[1]), boot_id="boot-child") as state:
    for number in range(40):
        state.log.started(a_record(number, "boot-child"))
    state.log.ended(as_ended(a_record(0, "boot-child")))
    while state.log.queued:
        time.sleep(0.01)
    print("written", flush=True)
    sys.stdin.readline()
"""


def child_with_open_requests(state_dir: Path) -> subprocess.Popen[str]:
    """A real process that has 39 open requests on disk and waits."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(state_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "written\n"
    return child


def test_this_process_is_alive_and_others_are_not() -> None:
    """A pid alone does not make a process: start time and the machine's own start count too."""
    here = Process.current()
    assert here.is_alive()
    assert not replace(here, start_ticks=here.start_ticks + 1).is_alive()
    assert not replace(here, host_boot="another start of the machine").is_alive()
    assert not Process(2**22 + 1, 1, here.host_boot).is_alive()


def test_what_a_killed_daemon_left_open_is_closed_as_crashed(tmp_path: Path) -> None:
    """Each open request of a dead process ends at the next start, with an event; ended ones stay."""
    with child_with_open_requests(tmp_path / "state") as child:
        child.kill()
        child.wait(60)
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


def test_what_a_living_daemon_has_open_is_left_alone(tmp_path: Path) -> None:
    """While the old process still drains, the new one does not touch its requests."""
    with child_with_open_requests(tmp_path / "state") as child:
        try:
            published = Published()
            with opened(tmp_path / "state", boot_id="boot-2", published=published) as state:
                assert published.events == []
                still_open = state.reader.get("req-000005")
                assert still_open is not None
                assert still_open.outcome is None
        finally:
            child.communicate("\n", timeout=60)


def test_what_was_open_at_a_clean_end_is_closed_too(tmp_path: Path) -> None:
    """A daemon that signed off has no open requests any more, even if its pid lives on."""
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
