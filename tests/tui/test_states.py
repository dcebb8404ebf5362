"""How the app stands to the daemon, in words, and what can be done then."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.admin.client import AdminClientError, Denied, NoDaemon, VersionMismatch
from relayd.admin.schema import Intake
from tests.tui.app_harness import running_app, until
from tests.tui.samples import NOON_S
from tui.demo.link import DemoLink
from tui.model.app_state import Connection
from tui.model.store import MarkKind

PATH = "/run/relayd/admin.sock"


@pytest.mark.parametrize(
    ("trouble", "contact", "words"),
    [
        (NoDaemon(f"Nothing listens at {PATH}."), Connection.DOWN, "Nothing listens at"),
        (Denied(f"{PATH}: join the group `relay`."), Connection.DENIED, "join the group"),
        (VersionMismatch("The daemon speaks version 9."), Connection.MISMATCH, "speaks version 9"),
    ],
)
async def test_a_lost_daemon_is_named_and_changes_are_greyed(
    tmp_path: Path, trouble: AdminClientError, contact: Connection, words: str
) -> None:
    """The header says the state, a line says why, and an action says the reason instead of acting."""
    async with running_app(tmp_path) as harness:
        await harness.link.fail(trouble)
        harness.app.feed.retry_now()
        await until(lambda: harness.state.connection is contact, contact)
        await harness.redraw()
        assert contact.value in harness.text().splitlines()[0]
        assert words in harness.text()
        await harness.press("P")
        await until(lambda: "Not now" in harness.text(), "the reason")
        await harness.press("K")
        assert "r(rotate)" in harness.text()


async def test_contact_comes_back_without_a_gap_or_a_double(tmp_path: Path) -> None:
    """What happened while the connection was gone is there afterwards, each once."""
    async with running_app(tmp_path) as harness:
        await harness.link.fail(NoDaemon("gone"))
        await until(lambda: harness.state.connection is not Connection.LIVE)
        harness.link.jump(40)
        harness.link.trouble = None
        harness.app.feed.retry_now()
        await until(lambda: harness.state.connection is Connection.LIVE, "contact")
        await until(lambda: harness.state.log_seq == harness.link.daemon.seq, "the news")
        held = [harness.state.store.key_at(i) >> 1 for i in range(len(harness.state.store))]
        assert held == [record.seq for record in harness.link.daemon.records]


async def test_a_restart_draws_a_row_and_marks_what_was_lost(tmp_path: Path) -> None:
    """A new boot id is shown where it happened; open requests are closed as lost."""
    async with running_app(tmp_path) as harness:
        await harness.go_on(5)
        lost = list(harness.link.daemon.open)
        assert lost
        harness.link.daemon.restart()
        await harness.link.wake()
        harness.app.feed.retry_now()
        await harness.go_on(8)
        await until(lambda: harness.state.store.marks(MarkKind.RESTART), "the mark")
        await harness.redraw()
        assert "daemon restarted" in harness.text()
        assert all(record_id not in harness.state.open_streams.streams for record_id in lost)


async def test_pausing_asks_then_says_so_in_the_header(tmp_path: Path) -> None:
    """PAUSED is the daemon's state, and P takes it back without a question."""
    async with running_app(tmp_path) as harness:
        await harness.press("P")
        await until(lambda: harness.windows == 2)
        await harness.press("tab", "enter")
        await until(lambda: harness.state.state_word == "PAUSED", "PAUSED")
        await harness.redraw()
        assert "PAUSED" in harness.text().splitlines()[0]
        await harness.press("P")
        await until(lambda: harness.state.state_word == "LIVE", "LIVE")


async def test_draining_says_how_many_are_left_and_for_how_long(tmp_path: Path) -> None:
    """The dialog has the count and the limit; the header follows."""
    async with running_app(tmp_path) as harness:
        await harness.go_on(5)
        await harness.press("D")
        await until(lambda: harness.windows == 2)
        assert "open now" in harness.text()
        assert "at most 30 s" in " ".join(harness.text().split())
        await harness.press("tab", "enter")
        await until(lambda: harness.link.daemon.intake is Intake.DRAINING)
        await until(lambda: harness.state.state_word == "DRAINING", "DRAINING")
        await harness.redraw()
        assert "left, at most 30 s" in harness.text().splitlines()[0]


async def test_readonly_changes_nothing(tmp_path: Path) -> None:
    """Every change is refused with the reason, by key and in the palette's words."""
    async with running_app(tmp_path, readonly=True) as harness:
        await harness.press("P", "D", "K", "r", "exclamation_mark", "a")
        assert harness.windows == 1
        assert all("--readonly" in n.message for n in harness.app._notifications)
        assert harness.link.daemon.ring.generation == 12
        assert harness.link.daemon.intake is Intake.LIVE


async def test_a_daemon_that_is_down_at_start_shows_its_history(tmp_path: Path) -> None:
    """Without a daemon the records are read from its database."""
    archive = DemoLink(seed=7, clock=lambda: NOON_S, moves=False, history_s=600)

    def down(link: DemoLink) -> DemoLink:
        link.trouble = NoDaemon(f"Nothing listens at {PATH}.")
        return link

    async with running_app(tmp_path, wrap=down, archive=lambda: archive, wait_live=False) as harness:
        await until(lambda: len(harness.state.store) > 0, "history")
        await harness.redraw()
        assert "DOWN" in harness.text().splitlines()[0]
        assert "History is read from disk" in harness.text()
        assert "gpt-4o" in harness.text()


async def test_a_long_absence_leaves_a_gap_that_enter_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too much to replay is not replayed: a row says so, and loads it when asked."""
    monkeypatch.setattr("tui.feed.SKIP_EVENTS", 100)
    monkeypatch.setattr("tui.feed.PAGE", 20)
    async with running_app(tmp_path) as harness:
        await harness.link.fail(NoDaemon("gone"))
        await until(lambda: harness.state.connection is not Connection.LIVE)
        harness.link.jump(300)
        harness.link.trouble = None
        harness.app.feed.retry_now()
        await until(lambda: harness.state.store.marks(MarkKind.GAP), "the gap")
        [(key, _)] = harness.state.store.marks(MarkKind.GAP)
        await harness.redraw()
        rows = harness.main.query_one("#list")
        rows.go_to(harness.state.view.index_of(key))  # type: ignore[attr-defined]
        assert "Enter loads them" in harness.text()
        await harness.press("enter")
        await until(lambda: not harness.state.store.marks(MarkKind.GAP), "the filling")
        held = [harness.state.store.key_at(i) >> 1 for i in range(len(harness.state.store))]
        assert held == [record.seq for record in harness.link.daemon.records]
