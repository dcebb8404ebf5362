"""The Keys screen on a real daemon: rotation from question to evidence, and how a key's text is kept."""

from __future__ import annotations

import gc
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from textual.widgets import Button, Input

from relayd.admin.client import AdminClient, AnswerUnknown
from relayd.admin.schema import KeyChange, KeyInfo, KeyState
from tests.e2e.daemon import Daemon
from tests.tui.app_harness import AppHarness, files, running_app
from tests.wire import Wire, ask, body, post, until
from tui.model.app_state import Connection
from tui.model.secret import Secret
from tui.screens.dialogs import Confirm
from tui.screens.key_dialogs import AskClient, AskGrace, AskRevoke, SecretDialog
from tui.screens.keys import KeyList

SHORT = "demo:deltas=2"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests of this file; each has a client of its own."""
    with Daemon(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


async def add_client(daemon: Daemon, name: str) -> KeyChange:
    """A new client; returns its key and the text of it."""
    generation = (await daemon.admin.keys()).generation
    return await daemon.admin.add_key(name, generation=generation, idempotency_key=uuid4().hex)


async def keys_of(daemon: Daemon, client: str) -> list[KeyInfo]:
    """The keys of a client as the daemon has them, oldest first."""
    keys = [key for key in (await daemon.admin.keys()).keys if key.client == client]
    return sorted(keys, key=lambda key: key.created_at)


@asynccontextmanager
async def keys_screen(
    daemon: Daemon, home: Path, client: str, admin: AdminClient | None = None
) -> AsyncIterator[tuple[AppHarness, KeyChange]]:
    """The app on its Keys screen, the cursor on the key of a new client."""
    made = await add_client(daemon, client)
    async with running_app(home, admin or daemon.admin) as harness:
        await until(lambda: harness.state.connection is Connection.LIVE)
        await harness.press("K")
        choose(harness, made.key.id)
        await harness.idle()
        yield harness, made


def choose(harness: AppHarness, key_id: str) -> None:
    """Put the cursor on a key."""
    rows = harness.main.query_one(KeyList)
    rows.go_to(rows.index_of(key_id) or 0)


async def rotate(harness: AppHarness) -> None:
    """Rotate the chosen key by keys alone, as far as the dialog with the new key."""
    await harness.press("r")
    await harness.dialog(AskGrace)
    await harness.press("y")
    await harness.dialog(SecretDialog)


async def reveal(harness: AppHarness) -> str:
    """Reveal the new key for a moment; returns its text."""
    await harness.press("v")
    found = re.search(r"rly_\w+", harness.text())
    assert found is not None
    await harness.press("v")
    return found[0]


async def test_a_rotation_is_confirmed_shown_once_and_followed(daemon: Daemon, tmp_path: Path) -> None:
    """Cancel has the focus; the key is masked until asked; then it is seen who uses which key."""
    async with keys_screen(daemon, tmp_path, "web") as (harness, old):
        await harness.press("r")
        await harness.dialog(AskGrace)
        assert isinstance(harness.app.focused, Button)
        assert harness.app.focused.id == "no"
        await harness.press("enter")
        assert [key.id for key in await keys_of(daemon, "web")] == [old.key.id]
        await rotate(harness)
        assert "•" * 12 in harness.text()
        secret = await reveal(harness)
        assert secret not in harness.text()
        await harness.press("escape")
        await harness.closed()
        new = (await keys_of(daemon, "web"))[-1]
        choose(harness, new.id)
        await harness.shows("Not used yet.")
        assert (await ask(daemon.port, secret, body(SHORT))).status == 200
        assert (await ask(daemon.port, old.secret or "", body(SHORT))).status == 200
        await harness.shows("First used at", "still used web 127.0.0.1", "OLD KEY")


async def test_the_keys_text_is_gone_when_the_dialog_closes(daemon: Daemon, tmp_path: Path) -> None:
    """Nothing that lives on in the app has the text: not the model, not a widget, not the settings."""
    async with keys_screen(daemon, tmp_path, "gone") as (harness, _):
        await rotate(harness)
        secret = await reveal(harness)
        [held] = [item for item in gc.get_objects() if isinstance(item, Secret) and item.text]
        await harness.press("escape")
        await harness.closed()
        assert held.text == ""
        gc.collect()
        assert [item for item in gc.get_objects() if isinstance(item, Secret) and item.text] == []
        changes = [item for item in gc.get_objects() if isinstance(item, KeyChange) and item.secret == secret]
        assert changes == []
        await harness.press("Q")
    assert secret not in (tmp_path / "tui.json").read_text()


async def test_closing_without_keeping_the_key_asks_once(daemon: Daemon, tmp_path: Path) -> None:
    """The first Escape asks, the second one closes."""
    async with keys_screen(daemon, tmp_path, "kept") as (harness, _):
        await rotate(harness)
        await harness.press("escape")
        assert "Close without keeping the key?" in harness.text()
        await harness.press("escape")
        await harness.closed()


async def test_no_screenshot_is_taken_while_a_key_is_shown(daemon: Daemon, tmp_path: Path) -> None:
    """The palette's picture is refused, and the dialog's text can't be selected."""
    async with keys_screen(daemon, tmp_path, "picture") as (harness, _):
        await rotate(harness)
        await harness.press("v")
        harness.app.action_screenshot(path=str(tmp_path))
        await harness.idle()
        assert files(tmp_path, "*.svg") == []
        assert not harness.screen.allow_select


async def test_the_key_is_saved_to_a_private_file(daemon: Daemon, tmp_path: Path) -> None:
    """`s` writes the key to a new file of mode 0600."""
    async with keys_screen(daemon, tmp_path, "saved") as (harness, _):
        await rotate(harness)
        secret = await reveal(harness)
        await harness.press("s")
        await until(lambda: files(tmp_path, "relayd-key-saved-*"))
        [path] = files(tmp_path, "relayd-key-saved-*")
        await until(lambda: path.read_text() == f"{secret}\n")
        assert path.stat().st_mode & 0o777 == 0o600


async def test_a_leaked_key_is_dead_in_seven_key_presses_and_its_user_is_named(
    daemon: Daemon, tmp_path: Path
) -> None:
    """`K ! four characters Enter`, whichever row has the cursor; a later use shows by client and address."""
    async with keys_screen(daemon, tmp_path, "leaked") as (harness, leaked):
        await harness.press("g", "1", "K", "exclamation_mark", *leaked.key.id[-4:], "enter")
        await harness.shows("is revoked.")
        assert (await keys_of(daemon, "leaked"))[0].state is KeyState.REVOKED
        assert (await ask(daemon.port, leaked.secret or "", body(SHORT))).status == 401
        await until(lambda: harness.state.evidence.refused(leaked.key.id, 0))
        await harness.redraw()
        choose(harness, leaked.key.id)
        await harness.shows("4 Keys !")
        await harness.shows(f"Dead key {leaked.key.id}", "refused leaked 127.0.0.1 1 time, last")


async def test_a_wrong_ending_revokes_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """Enter without a named key does nothing, and the dialog says that no live key ends so."""
    async with keys_screen(daemon, tmp_path, "wrong") as (harness, made):
        await harness.press("exclamation_mark")
        await harness.dialog(AskRevoke)
        await harness.press("-", "-", "-", "-", "enter")
        assert "No live key ends like that." in harness.text()
        assert [key.state for key in await keys_of(daemon, "wrong")] == [made.key.state]


async def test_revoking_can_cut_open_streams(daemon: Daemon, tmp_path: Path) -> None:
    """With the choice made, the key's streams end too, and their number is told."""
    async with keys_screen(daemon, tmp_path, "cut") as (harness, made):
        async with await Wire.open(daemon.port) as wire:
            wire.send(post(made.secret or "", body("demo:deltas=40000,interval_ms=25")))
            await wire.head()
            await until(lambda: harness.state.open_streams.streams)
            await harness.press("exclamation_mark", *made.key.id[-4:], "tab", "space", "enter")
            await harness.shows("is revoked; 1 stream cut.")
        await until(lambda: not harness.state.open_streams.streams)


async def test_a_grace_is_extended_and_a_rotation_undone(daemon: Daemon, tmp_path: Path) -> None:
    """`+` moves the end; `u` makes the old key active again and revokes the new one."""
    async with keys_screen(daemon, tmp_path, "undone") as (harness, _):
        await rotate(harness)
        await harness.press("v", "escape")
        await harness.closed()
        ends = (await keys_of(daemon, "undone"))[0].expires_at or ""
        await harness.press("plus")
        await harness.dialog(AskGrace)
        await harness.press("y")
        await harness.shows("works 15 minutes longer")
        assert ((await keys_of(daemon, "undone"))[0].expires_at or "") > ends
        await harness.press("u")
        await harness.dialog(Confirm)
        await harness.press("y")
        await harness.shows("is active again.")
        old, new = await keys_of(daemon, "undone")
        assert (old.state, new.state) == (KeyState.ACTIVE, KeyState.REVOKED)
        await harness.press("5")
        await harness.shows(f"undone {old.id}, {new.id}")


async def test_a_client_is_added(daemon: Daemon, tmp_path: Path) -> None:
    """A name, Enter, and the new client's key is shown once; a name that is taken is refused."""
    async with keys_screen(daemon, tmp_path, "phone") as (harness, _):
        await harness.press("a")
        await harness.dialog(AskClient)
        await harness.press(*"phone", "enter")
        assert "phone has a key already; rotate it instead." in harness.text()
        await harness.press("ctrl+u", *"tablet", "enter")
        await harness.dialog(SecretDialog)
        assert [key.state for key in await keys_of(daemon, "tablet")] == [KeyState.ACTIVE]


class Forgetful(AdminClient):
    """A way to the daemon that loses the first answer to a rotation."""

    asked_with: tuple[str, ...] = ()

    async def rotate_key(
        self, key_id: str, *, grace_s: float | None, generation: int, idempotency_key: str
    ) -> KeyChange:
        """Ask, and lose the first answer."""
        self.asked_with += (idempotency_key,)
        change = await super().rotate_key(
            key_id, grace_s=grace_s, generation=generation, idempotency_key=idempotency_key
        )
        if len(self.asked_with) == 1:
            raise AnswerUnknown("The connection broke.")
        return change


async def test_an_answer_that_never_came_is_asked_for_again_with_the_same_key(
    daemon: Daemon, tmp_path: Path
) -> None:
    """The rotation happens once, UNKNOWN is shown, and the lost secret is told."""
    admin = Forgetful(daemon.state_dir / "admin.sock")
    async with keys_screen(daemon, tmp_path, "lost", admin) as (harness, _):
        await harness.press("r")
        await harness.dialog(AskGrace)
        await harness.press("y")
        await harness.shows("UNKNOWN", "It was done, but the answer")
        assert len(admin.asked_with) == 2
        assert len(set(admin.asked_with)) == 1
        assert len(await keys_of(daemon, "lost")) == 2


async def test_a_grace_is_written_as_everywhere_in_relayd_and_is_never_nothing(
    daemon: Daemon, tmp_path: Path
) -> None:
    """`2h` is a grace; `0s` and `2 weeks` are answered with what to do."""
    async with keys_screen(daemon, tmp_path, "grace") as (harness, _):
        await harness.press("r")
        await harness.dialog(AskGrace)
        box = harness.screen.query_one(Input)
        harness.screen.set_focus(box)
        for text, answer in (("2 weeks", "is not a duration"), ("0s", "No time at all")):
            box.value = text
            await harness.press("enter")
            await harness.shows(answer)
        box.value = " 2h "
        await harness.press("enter")
        await harness.dialog(SecretDialog)
        assert (await keys_of(daemon, "grace"))[0].state is KeyState.RETIRING
