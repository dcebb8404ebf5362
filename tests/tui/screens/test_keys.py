"""The Keys screen: rotation from question to evidence, and how a key's text is kept."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import msgspec
from textual.widgets import Button, Input

from relayd.admin.client import AnswerUnknown
from relayd.admin.schema import KeyChange, KeyInfo, KeyState, Outcome, Ring, Started, utc_text
from tests.tui.app_harness import AppHarness, files, running_app, until
from tests.tui.samples import NOON_S, a_record
from tui.demo.link import DemoLink
from tui.model.secret import Secret
from tui.screens.key_dialogs import AskGrace, AskRevoke, SecretDialog
from tui.screens.keys import KeyList


def current(harness: AppHarness, client: str) -> KeyInfo:
    """The newest key of a client, as the daemon has it."""
    key = harness.link.daemon.ring.current(client)
    assert key is not None
    return key


async def choose(harness: AppHarness, key_id: str) -> None:
    """Put the cursor on a key."""
    await harness.press("K")
    rows = harness.main.query_one(KeyList)
    rows.go_to(rows.index_of(key_id) or 0)
    await harness.idle()


async def rotate(harness: AppHarness, client: str) -> KeyInfo:
    """Rotate by keys alone, as far as the dialog with the new key; returns the old key."""
    old = current(harness, client)
    await choose(harness, old.id)
    await harness.press("r")
    await harness.dialog(AskGrace)
    assert isinstance(harness.app.focused, Button)
    assert harness.app.focused.id == "no"
    await harness.press("tab", "enter")
    await harness.dialog(SecretDialog)
    return old


async def reveal(harness: AppHarness) -> str:
    """Reveal the new key for a moment; returns its text."""
    await harness.press("v")
    found = re.search(r"rly_\w+", harness.text())
    assert found is not None
    await harness.press("v")
    return found[0]


async def test_a_rotation_is_confirmed_shown_once_and_followed(tmp_path: Path) -> None:
    """Cancel has the focus; the key is masked until asked; then the evidence is live."""
    async with running_app(tmp_path) as harness:
        await choose(harness, current(harness, "laptop").id)
        await harness.press("r")
        await harness.dialog(AskGrace)
        await harness.press("enter")
        assert current(harness, "laptop").state is KeyState.ACTIVE
        assert harness.link.daemon.ring.generation == 12

        old = await rotate(harness, "web")
        assert "•" * 12 in harness.text()
        secret = await reveal(harness)
        assert secret not in harness.text()
        await harness.press("escape")
        await harness.closed()
        new = current(harness, "web")
        assert new.id != old.id
        await choose(harness, new.id)
        assert "Not used yet." in harness.text()
        await harness.go_on(120)
        await harness.app.feed.refresh_ring()
        await choose(harness, new.id)
        assert "First used at" in harness.text()
        assert "still used web" in harness.text()
        assert "OLD KEY" in harness.text().splitlines()[0]


async def test_the_keys_text_is_gone_when_the_dialog_closes(tmp_path: Path) -> None:
    """Nothing that lives on in the app has the text: not the model, not a widget, not the settings."""
    async with running_app(tmp_path) as harness:
        await rotate(harness, "web")
        secret = await reveal(harness)
        [held] = [item for item in gc.get_objects() if isinstance(item, Secret) and item.text]
        await harness.press("v", "escape")
        await harness.closed()
        assert held.text == ""
        del held
        await harness.redraw()
        gc.collect()
        assert [item for item in gc.get_objects() if isinstance(item, Secret) and item.text] == []
        changes = [item for item in gc.get_objects() if isinstance(item, KeyChange) and item.secret == secret]
        assert changes == []
        await harness.press("Q")
    assert secret not in (tmp_path / "tui.json").read_text()


async def test_closing_without_keeping_the_key_asks_once(tmp_path: Path) -> None:
    """The first Escape asks, the second one closes."""
    async with running_app(tmp_path) as harness:
        await rotate(harness, "web")
        await harness.press("escape")
        assert "Close without keeping the key?" in harness.text()
        await harness.press("escape")
        await harness.closed()


async def test_no_screenshot_is_taken_while_a_key_is_shown(tmp_path: Path) -> None:
    """The palette's picture is refused, and the dialog's text can't be selected."""
    async with running_app(tmp_path) as harness:
        await rotate(harness, "web")
        await harness.press("v")
        harness.app.action_screenshot(path=str(tmp_path))
        await harness.idle()
        assert files(tmp_path, "*.svg") == []
        assert not harness.screen.allow_select


async def test_the_key_is_saved_to_a_private_file(tmp_path: Path) -> None:
    """`s` writes the key to a new file of mode 0600."""
    async with running_app(tmp_path) as harness:
        await rotate(harness, "web")
        secret = await reveal(harness)
        await harness.press("s")
        await until(lambda: files(tmp_path, "relayd-key-web-*"))
        [path] = files(tmp_path, "relayd-key-web-*")
        await until(lambda: path.read_text() == f"{secret}\n")
        assert path.stat().st_mode & 0o777 == 0o600
        await harness.press("escape")


async def test_a_leaked_key_is_dead_in_seven_key_presses(tmp_path: Path) -> None:
    """`K ! four characters Enter` from any screen, whichever row has the cursor."""
    async with running_app(tmp_path) as harness:
        leaked = current(harness, "support-bot")
        await harness.press("K", "exclamation_mark", *leaked.id[-4:], "enter")
        await until(lambda: current(harness, "support-bot").state is KeyState.REVOKED)


async def test_a_wrong_ending_revokes_nothing(tmp_path: Path) -> None:
    """Enter without a named key does nothing, and the dialog says that no live key ends so."""
    async with running_app(tmp_path) as harness:
        await harness.press("K", "exclamation_mark")
        await harness.dialog(AskRevoke)
        await harness.press("z", "z", "z", "z", "enter")
        assert "No live key ends like that." in harness.text()
        assert harness.link.daemon.ring.generation == 12


async def test_revoking_can_cut_open_streams(tmp_path: Path) -> None:
    """With the choice made, the key's streams end too, and their number is told."""
    async with running_app(tmp_path) as harness:
        await harness.go_on(5)
        key_id = next(plan.key_id for plan in harness.link.daemon.open.values() if plan.key_id)
        await choose(harness, key_id)
        await harness.press("exclamation_mark", *key_id[-4:], "tab", "space", "shift+tab", "enter")
        await until(lambda: not harness.link.daemon.ring.works(key_id))
        assert [plan for plan in harness.link.daemon.open.values() if plan.key_id == key_id] == []


async def test_a_grace_is_extended_and_a_rotation_undone(tmp_path: Path) -> None:
    """`+` moves the end; `u` makes the old key active again and revokes the new one."""
    async with running_app(tmp_path) as harness:
        [old] = harness.state.retiring()
        await choose(harness, old.id)
        await harness.press("plus")
        await harness.dialog(AskGrace)
        await harness.press("tab", "enter")
        await until(lambda: harness.link.daemon.ring.generation == 13)
        await harness.closed()
        await harness.redraw()
        await harness.press("u")
        await until(lambda: harness.windows == 2)
        await harness.press("tab", "enter")
        await until(lambda: harness.link.daemon.ring.keys[old.id].state is KeyState.ACTIVE)
        assert current(harness, "web").state is KeyState.REVOKED


async def test_a_client_is_added(tmp_path: Path) -> None:
    """A name, Enter, and the new client's key is shown once."""
    async with running_app(tmp_path) as harness:
        await harness.press("K", "a")
        await until(lambda: isinstance(harness.app.focused, Input))
        await harness.press(*"tablet")
        await harness.press("enter")
        await harness.dialog(SecretDialog)
        assert current(harness, "tablet").state is KeyState.ACTIVE


class _Forgetful(DemoLink):
    """A daemon whose first answer to a rotation is lost on the way."""

    lost = False
    keys_seen: list[str] = []  # noqa: RUF012 - one link a test

    async def rotate_key(
        self, key_id: str, *, grace_s: float | None, generation: int, idempotency_key: str
    ) -> KeyChange:
        self.keys_seen.append(idempotency_key)
        change = await super().rotate_key(
            key_id, grace_s=grace_s, generation=generation, idempotency_key=idempotency_key
        )
        if not self.lost:
            self.lost = True
            raise AnswerUnknown("The connection broke.")
        return change


async def test_an_answer_that_never_came_is_asked_for_again_with_the_same_key(tmp_path: Path) -> None:
    """The rotation happens once, UNKNOWN is shown, and the lost secret is told."""

    def forgetful(link: DemoLink) -> DemoLink:
        link.__class__ = _Forgetful
        return link

    async with running_app(tmp_path, wrap=forgetful) as harness:
        old = current(harness, "web")
        await choose(harness, old.id)
        await harness.press("r")
        await harness.dialog(AskGrace)
        await harness.press("tab", "enter")
        await harness.shows("UNKNOWN", "It was done, but the answer")
        seen = _Forgetful.keys_seen
        assert len(seen) == 2
        assert len(set(seen)) == 1
        assert harness.link.daemon.ring.generation == 13


async def test_a_grace_is_written_as_everywhere_in_relayd_and_is_never_nothing(tmp_path: Path) -> None:
    """`2h` is a grace; `0s` and `2 weeks` are answered with what to do."""
    async with running_app(tmp_path) as harness:
        await harness.press("K", "r")
        await harness.dialog(AskGrace)
        box = harness.screen.query_one(Input)
        for text, answer in (("2 weeks", "is no duration"), ("0s", "No time at all")):
            box.value = text
            harness.screen.set_focus(box)
            await harness.press("enter")
            await until(lambda wanted=answer: wanted in " ".join(harness.text().split()), answer)  # type: ignore[misc]  # the loop's own value
        box.value = " 2h "
        await harness.press("enter")
        await until(lambda: any(key.state is KeyState.RETIRING for key in harness.state.ring.keys))


async def test_whoever_still_sends_a_revoked_key_is_named(tmp_path: Path) -> None:
    """A client's only key is revoked: its row stays while it is sent, and says by whom."""
    async with running_app(tmp_path) as harness:
        key = harness.state.ring.keys[0]
        dead = msgspec.structs.replace(
            key, state=KeyState.REVOKED, revoked_at=utc_text(NOON_S - 60), replaced_by=None
        )
        harness.state.set_ring(Ring(99, [dead]))
        await harness.press("K")
        assert key.id not in harness.text()
        refused = a_record(10**6, client=key.client, key_id=key.id, ip="192.0.2.77", outcome=Outcome.DENIED)
        refused.started_at = utc_text(NOON_S - 5)
        harness.state.started(Started(10**6, harness.state.boot_id, refused))
        await harness.redraw()
        assert "4 Keys !" in harness.text()
        assert f"Dead key {key.id}" in harness.text()
        assert f"refused {key.client}  192.0.2.77  1 time, last 5s ago" in harness.text()
