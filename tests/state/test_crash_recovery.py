"""Which daemons use the file, and what those that died left open."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from relayd.state.crash_recovery import CrashRecovery, Process
from relayd.state.records import Ended, Outcome, Phase
from tests.state.harness import Clock, Published, a_record, as_ended, opened, opened_database

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
    sys.stdin.readline()
"""


@contextmanager
def child_with_open_requests(state_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a real process that has 39 open requests on disk and waits for a line."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(state_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "written\n"
        try:
            yield child
        finally:
            child.kill()


def test_this_process_is_alive_and_others_are_not() -> None:
    """A pid alone does not make a process: start time and the machine's own start count too."""
    here = Process.current()
    assert here.is_alive()
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    assert 0 <= uptime_s - here.start_ticks / os.sysconf("SC_CLK_TCK") < 86_400
    assert not replace(here, start_ticks=here.start_ticks + 1).is_alive()
    assert not replace(here, host_boot="another start of the machine").is_alive()
    assert not Process(2**22 + 1, 1, here.host_boot).is_alive()


def test_what_a_killed_daemon_left_open_is_closed_as_crashed(tmp_path: Path) -> None:
    """Each open request of a dead process ends at the next start, with an event; ended ones stay."""
    with child_with_open_requests(tmp_path / "state") as child:
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


def test_a_daemon_that_dies_while_this_one_runs_is_noticed(tmp_path: Path) -> None:
    """What a living process has open is left alone; once it is killed, the next look closes it."""
    published = Published()
    with (
        child_with_open_requests(tmp_path / "state") as child,
        opened_database(tmp_path / "state", boot_id="boot-2", published=published) as database,
    ):
        recovery = CrashRecovery(database, Clock())
        recovery.run()
        assert published.events == []
        child.kill()
        child.wait(60)
        recovery.run()
        assert len(published.events) == 39
        recovery.run()
        assert len(published.events) == 39


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


def test_a_daemon_s_own_open_requests_are_left_alone(tmp_path: Path) -> None:
    """Also if a full disk kept it from registering before its first request was written."""
    published = Published()
    with opened(tmp_path / "state", boot_id="boot-1") as state:
        state.log.started(a_record(1))
    with opened_database(tmp_path / "state", boot_id="boot-1", published=published) as database:
        database.connection.execute("DELETE FROM boots")
        CrashRecovery(database, Clock()).run()
    assert published.events == []
