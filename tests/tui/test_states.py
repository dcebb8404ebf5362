"""How the app stands to the daemon, in words, and what can be done then."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.admin.client import AdminClientError, Denied, NoDaemon, VersionMismatch
from relayd.admin.schema import Intake
from tests.tui.samples import NOON_S
from tests.tui.stage import on_stage, until
from tui.demo.link import DemoLink
from tui.model.desk import Contact
from tui.model.marks import MarkKind

PATH = "/run/relayd/admin.sock"


@pytest.mark.parametrize(
    ("trouble", "contact", "words"),
    [
        (NoDaemon(f"Nothing listens at {PATH}."), Contact.DOWN, "Nothing listens at"),
        (Denied(f"{PATH}: join the group `relay`."), Contact.DENIED, "join the group"),
        (VersionMismatch("The daemon speaks version 9."), Contact.MISMATCH, "speaks version 9"),
    ],
)
async def test_a_lost_daemon_is_named_and_changes_are_greyed(
    tmp_path: Path, trouble: AdminClientError, contact: Contact, words: str
) -> None:
    """The header says the state, a line says why, and an action says the reason instead of acting."""
    async with on_stage(tmp_path) as stage:
        await stage.link.fail(trouble)
        stage.app.feed.retry_now()
        await until(lambda: stage.app.desk.contact is contact, contact)
        await stage.settle()
        assert contact.value in stage.text().splitlines()[0]
        assert words in stage.text()
        await stage.press("P")
        await until(lambda: any("Not now" in n.message for n in stage.app._notifications), "the reason")
        await stage.press("K")
        assert "r(rotate)" in stage.text()


async def test_contact_comes_back_without_a_gap_or_a_double(tmp_path: Path) -> None:
    """What happened while the connection was gone is there afterwards, each once."""
    async with on_stage(tmp_path) as stage:
        await stage.link.fail(NoDaemon("gone"))
        await until(lambda: stage.app.desk.contact is not Contact.LIVE)
        stage.link.jump(40)
        stage.link.trouble = None
        stage.app.feed.retry_now()
        await until(lambda: stage.app.desk.contact is Contact.LIVE, "contact")
        await until(lambda: stage.app.desk.log_seq == stage.link.daemon.seq, "the news")
        held = [stage.app.desk.store.key_at(i) >> 1 for i in range(len(stage.app.desk.store))]
        assert held == [record.seq for record in stage.link.daemon.records]


async def test_a_restart_draws_a_row_and_marks_what_was_lost(tmp_path: Path) -> None:
    """A new boot id is shown where it happened; open requests are closed as lost."""
    async with on_stage(tmp_path) as stage:
        await stage.go_on(5)
        lost = list(stage.link.daemon.open)
        assert lost
        stage.link.daemon.restart()
        await stage.link.wake()
        stage.app.feed.retry_now()
        await stage.go_on(8)
        await until(lambda: stage.app.desk.store.marks(MarkKind.RESTART), "the mark")
        await stage.settle()
        assert "daemon restarted" in stage.text()
        assert all(record_id not in stage.app.desk.live.streams for record_id in lost)


async def test_pausing_asks_then_says_so_in_the_header(tmp_path: Path) -> None:
    """PAUSED is the daemon's state, and P takes it back without a question."""
    async with on_stage(tmp_path) as stage:
        await stage.press("P")
        await until(lambda: len(stage.app.screen_stack) == 2)
        await stage.press("tab", "enter")
        await until(lambda: stage.app.desk.state_word == "PAUSED", "PAUSED")
        await stage.settle()
        assert "PAUSED" in stage.text().splitlines()[0]
        await stage.press("P")
        await until(lambda: stage.app.desk.state_word == "LIVE", "LIVE")


async def test_draining_says_how_many_are_left_and_for_how_long(tmp_path: Path) -> None:
    """The dialog has the count and the limit; the header follows."""
    async with on_stage(tmp_path) as stage:
        await stage.go_on(5)
        await stage.press("D")
        await until(lambda: len(stage.app.screen_stack) == 2)
        assert "open now" in stage.text()
        assert "at most 30 s" in " ".join(stage.text().split())
        await stage.press("tab", "enter")
        await until(lambda: stage.link.daemon.intake is Intake.DRAINING)
        await until(lambda: stage.app.desk.state_word == "DRAINING", "DRAINING")
        await stage.settle()
        assert "left, at most 30 s" in stage.text().splitlines()[0]


async def test_readonly_changes_nothing(tmp_path: Path) -> None:
    """Every change is refused with the reason, by key and in the palette's words."""
    async with on_stage(tmp_path, readonly=True) as stage:
        await stage.press("P", "D", "K", "r", "exclamation_mark", "a")
        assert len(stage.app.screen_stack) == 1
        assert all("--readonly" in n.message for n in stage.app._notifications)
        assert stage.link.daemon.ring.generation == 12
        assert stage.link.daemon.intake is Intake.LIVE


async def test_a_daemon_that_is_down_at_start_shows_its_history(tmp_path: Path) -> None:
    """Without a daemon the records are read from its database."""
    archive = DemoLink(seed=7, clock=lambda: NOON_S, moves=False, history_s=600)

    def down(link: DemoLink) -> DemoLink:
        link.trouble = NoDaemon(f"Nothing listens at {PATH}.")
        return link

    async with on_stage(tmp_path, wrap=down, archive=lambda: archive, wait_live=False) as stage:
        await until(lambda: len(stage.app.desk.store) > 0, "history")
        await stage.settle()
        assert "DOWN" in stage.text().splitlines()[0]
        assert "History is read from disk" in stage.text()
        assert "gpt-4o" in stage.text()


async def test_a_long_absence_leaves_a_gap_that_enter_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too much to replay is not replayed: a row says so, and loads it when asked."""
    monkeypatch.setattr("tui.feed.SKIP_EVENTS", 100)
    monkeypatch.setattr("tui.feed.PAGE", 20)
    async with on_stage(tmp_path) as stage:
        await stage.link.fail(NoDaemon("gone"))
        await until(lambda: stage.app.desk.contact is not Contact.LIVE)
        stage.link.jump(300)
        stage.link.trouble = None
        stage.app.feed.retry_now()
        await until(lambda: stage.app.desk.store.marks(MarkKind.GAP), "the gap")
        [(key, _)] = stage.app.desk.store.marks(MarkKind.GAP)
        await stage.settle()
        rows = stage.app.main.query_one("#list")
        rows.go_to(stage.app.desk.view.place(key))  # type: ignore[attr-defined]
        assert "Enter loads them" in stage.text()
        await stage.press("enter")
        await until(lambda: not stage.app.desk.store.marks(MarkKind.GAP), "the filling")
        held = [stage.app.desk.store.key_at(i) >> 1 for i in range(len(stage.app.desk.store))]
        assert held == [record.seq for record in stage.link.daemon.records]
