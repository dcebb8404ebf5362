"""The Clients screen on a real daemon: rotations, how the text of a key is kept, bounds and their use."""

from __future__ import annotations

import asyncio
import gc
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from textual.widgets import Button, Input

from relayd.admin.client import AdminClient, AnswerUnknown
from relayd.admin.schema import ClientInfo, Clients, KeyChange, KeyInfo, KeyState, PeriodUse, utc_text
from tests.e2e.daemon import Daemon
from tests.tui.app_harness import AppHarness, files, running_app
from tests.tui.samples import NOON_S
from tests.wire import PATIENCE_S, Wire, ask, body, post, until
from tui.model.app_state import AppState, Connection
from tui.model.secret import Secret
from tui.screens.client_dialogs import AskClient, AskRemove
from tui.screens.client_keys import KeyList
from tui.screens.clients import ClientList
from tui.screens.dialogs import Confirm
from tui.screens.key_dialogs import AskGrace, AskRevoke, SecretDialog
from tui.theme import Role

SHORT = "demo:deltas=2"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests of this file; each has a client of its own."""
    with Daemon(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


@pytest.fixture
def lone_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without old keys, whose lines below the tabs would take rows of a small screen."""
    with Daemon(tmp_path_factory.mktemp("lone")) as daemon:
        yield daemon


async def add_client(daemon: Daemon, name: str) -> KeyChange:
    """A new client; returns its key and the text of it."""
    generation = (await daemon.admin.keys()).generation
    return await daemon.admin.add_key(name, generation=generation, idempotency_key=uuid4().hex)


async def rotate_elsewhere(daemon: Daemon, key_id: str) -> str:
    """Rotate as another operator, with three hours of grace; returns the new key's id."""
    generation = (await daemon.admin.keys()).generation
    change = await daemon.admin.rotate_key(
        key_id, grace_s=3 * 3600, generation=generation, idempotency_key=uuid4().hex
    )
    return change.key.id


async def keys_of(daemon: Daemon, client: str) -> list[KeyInfo]:
    """The keys of a client as the daemon has them, oldest first."""
    keys = [key for key in (await daemon.admin.keys()).keys if key.client == client]
    return sorted(keys, key=lambda key: key.created_at)


@asynccontextmanager
async def keys_screen(
    daemon: Daemon,
    home: Path,
    client: str,
    admin: AdminClient | None = None,
    size: tuple[int, int] = (80, 24),
    now_s: Callable[[], float] = time.time,
    redraw_every_s: float = 0.0,
) -> AsyncIterator[tuple[AppHarness, KeyChange]]:
    """The app on its Clients screen, the cursor on a new client."""
    made = await add_client(daemon, client)
    async with running_app(
        home, admin or daemon.admin, size=size, now_s=now_s, redraw_every_s=redraw_every_s
    ) as harness:
        await until(lambda: harness.state.connection is Connection.LIVE)
        await harness.press("K")
        choose(harness, client)
        await harness.idle()
        yield harness, made


def choose(harness: AppHarness, client: str) -> None:
    """Put the cursor on a client."""
    rows = harness.main.query_one(ClientList)
    rows.go_to(rows.index_of(client) or 0)


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
        await harness.press("escape", "d")
        await harness.closed()
        await harness.shows("Not used yet.")
        assert (await ask(daemon.port, secret, body(SHORT))).status == 200
        assert (await ask(daemon.port, old.secret or "", body(SHORT))).status == 200
        await harness.shows("First used at", "still used web 127.0.0.1", "OLD KEY")


async def test_a_key_acts_on_what_is_known_not_on_what_was_drawn_last(daemon: Daemon, tmp_path: Path) -> None:
    """A second rotation right after the first is one of the new key, though the list shows the old one."""
    async with keys_screen(daemon, tmp_path, "rotated-anew", redraw_every_s=PATIENCE_S) as (harness, _):
        for _ in range(2):
            await rotate(harness)
            await harness.press("escape", "d")
            await harness.closed()
        keys = await keys_of(daemon, "rotated-anew")
        assert [key.state for key in keys] == [KeyState.RETIRING, KeyState.RETIRING, KeyState.ACTIVE]


async def test_a_countdown_is_the_same_wherever_it_stands(daemon: Daemon, tmp_path: Path) -> None:
    """In the header and in the lists, though there is no news from the daemon."""
    now_s = [time.time() + 300]

    def count_down(harness: AppHarness, *begin: str) -> bool:
        found = re.findall(r"(?<![\d:])2:\d\d:\d\d", harness.text())
        return len(found) >= 2 and len(set(found)) == 1 and found[0].startswith(begin)

    async with keys_screen(daemon, tmp_path, "counted", size=(90, 40), now_s=lambda: now_s[0]) as (
        harness,
        old,
    ):
        await rotate_elsewhere(daemon, old.key.id)
        await until(lambda: count_down(harness, "2:55", "2:56"))
        now_s[0] += 240
        await until(lambda: count_down(harness, "2:51", "2:52"))


async def test_the_keys_text_is_gone_when_the_dialog_closes(daemon: Daemon, tmp_path: Path) -> None:
    """Nothing that lives on has it: not the model, not a widget, not the settings, and no screenshot."""
    async with keys_screen(daemon, tmp_path, "gone") as (harness, _):
        await rotate(harness)
        secret = await reveal(harness)
        await harness.press("v")
        harness.app.action_screenshot(path=str(tmp_path))
        await harness.idle()
        assert files(tmp_path, "*.svg") == []
        assert not harness.screen.allow_select
        await harness.press("v")
        [held] = [item for item in gc.get_objects() if isinstance(item, Secret) and item.text]
        await harness.press("escape", "d")
        await harness.closed()
        assert held.text == ""
        gc.collect()
        assert [item for item in gc.get_objects() if isinstance(item, Secret) and item.text] == []
        changes = [item for item in gc.get_objects() if isinstance(item, KeyChange) and item.secret == secret]
        assert changes == []
        await harness.press("Q")
    assert secret not in (tmp_path / "tui.json").read_text()


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
        choose(harness, "leaked")
        await harness.shows("4 Clients !")
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
            await wire.begin(post(made.secret or "", body("demo:deltas=40000,interval_ms=25")))
            await until(lambda: harness.state.open_streams.streams)
            await harness.press("exclamation_mark", *made.key.id[-4:], "tab", "space", "enter")
            await harness.shows("is revoked; 1 stream cut.")
        await until(lambda: not harness.state.open_streams.streams)


async def test_a_grace_is_extended_and_a_rotation_undone(daemon: Daemon, tmp_path: Path) -> None:
    """`+` moves the end; `u` makes the old key active again and revokes the new one."""
    async with keys_screen(daemon, tmp_path, "undone") as (harness, _):
        await rotate(harness)
        await harness.press("v", "escape", "d")
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
        await harness.shows(f"undone {new.id} → {old.id}")


async def test_what_can_be_undone_is_the_last_rotation(daemon: Daemon, tmp_path: Path) -> None:
    """`u` names its keys; on the key of the rotation before, it says what comes first."""
    async with keys_screen(daemon, tmp_path, "three-keys") as (harness, first):
        second = await rotate_elsewhere(daemon, first.key.id)
        third = await rotate_elsewhere(daemon, second)
        await until(lambda: third in {key.id for key in harness.state.ring.keys})
        await harness.redraw()
        await harness.press("u")
        await harness.shows(f"The old key {second} is primary again. The new key {third} is")
        await harness.press("escape", "enter")
        await harness.closed()
        keys = harness.main.query_one(KeyList)
        keys.go_to(keys.index_of(first.key.id) or 0)
        await harness.press("u")
        await harness.shows(f"Not done. The key {first.key.id} was replaced by {second}, but")


async def client_of(daemon: Daemon, name: str) -> ClientInfo:
    """The client as the daemon has it."""
    return next(client for client in (await daemon.admin.clients()).clients if client.name == name)


async def set_client(daemon: Daemon, name: str, **changes: object) -> None:
    """Change bounds, as another operator."""
    generation = (await daemon.admin.clients()).generation
    await daemon.admin.set_client(name, changes, generation=generation, idempotency_key=uuid4().hex)


async def fill(harness: AppHarness, **texts: str) -> None:
    """Type into lines of the form, each from its beginning."""
    for name, text in texts.items():
        line = harness.screen.query_one(f"#{name}", Input)
        harness.screen.set_focus(line)
        await harness.press("ctrl+u", "ctrl+k", *text)


async def test_a_client_is_added_with_bounds(daemon: Daemon, tmp_path: Path) -> None:
    """A name, some bounds, Enter: the first key is shown once; a name that is taken is refused."""
    async with keys_screen(daemon, tmp_path, "phone") as (harness, _):
        await harness.press("a")
        await harness.dialog(AskClient)
        await harness.press(*"phone", "enter")
        await harness.shows("There is a client phone already; e changes its bounds, r its key.")
        await fill(harness, name="tablet", tokens_per_day="20k", usd_per_month="1.50", models="gpt-4o* o3")
        await harness.press("enter")
        await harness.dialog(SecretDialog)
        assert [key.state for key in await keys_of(daemon, "tablet")] == [KeyState.ACTIVE]
        made = await client_of(daemon, "tablet")
        assert (made.tokens_per_day, made.usd_per_month, made.models) == (20_000, 1.5, ("gpt-4o*", "o3"))


async def test_a_bound_that_cannot_be_keeps_the_form_and_what_was_typed(
    daemon: Daemon, tmp_path: Path
) -> None:
    """What the app cannot read it says at once; what the daemon refuses comes back into the form."""
    async with keys_screen(daemon, tmp_path, "typed") as (harness, _):
        await harness.press("a")
        await harness.dialog(AskClient)
        await fill(harness, name="typo", tokens_per_day="many")
        await harness.press("enter")
        await harness.shows("tokens a day is a whole number, such as 500, 20k or 2M.")
        await fill(harness, tokens_per_day="500", endpoints="/nowhere")
        await harness.press("enter")
        await harness.shows("Not added: endpoints is a list of paths")
        await harness.dialog(AskClient)
        await fill(harness, endpoints="/chat")
        await harness.press("enter")
        await harness.dialog(SecretDialog)
        made = await client_of(daemon, "typo")
        assert (made.endpoints, made.tokens_per_day) == (("/chat",), 500)


async def test_bounds_are_edited_and_removed(daemon: Daemon, tmp_path: Path) -> None:
    """`e` shows what holds; only what changed is sent, and an empty line removes a bound."""
    async with keys_screen(daemon, tmp_path, "edited") as (harness, _):
        await set_client(daemon, "edited", max_streams=4, tokens_per_day=1000, note="Ada")
        await until(lambda: harness.state.clients["edited"].max_streams == 4)
        await harness.press("e")
        await harness.dialog(AskClient)
        await harness.press("enter")
        await harness.shows("Nothing is changed yet; Esc leaves.")
        await fill(harness, max_streams="", usd_per_day="0.25")
        await harness.press("enter")
        await harness.shows("The bounds of edited hold from its next request on.")
        now = await client_of(daemon, "edited")
        assert (now.max_streams, now.tokens_per_day, now.usd_per_day, now.note) == (None, 1000, 0.25, "Ada")
        entry = (await daemon.admin.audit()).entries[0]
        assert "tokens_per_day" not in (entry.detail or "")


async def test_of_two_operators_the_slower_one_sees_what_the_other_changed(
    daemon: Daemon, tmp_path: Path
) -> None:
    """The form comes again with the other's bound and the own typing; nothing is overwritten unseen.

    Nor when the other changed a key, or removed the client.
    """
    async with keys_screen(daemon, tmp_path, "raced") as (harness, made):
        await harness.press("e")
        await harness.dialog(AskClient)
        await set_client(daemon, "raced", max_streams=8, tokens_per_day=700)
        await fill(harness, tokens_per_day="900")
        await harness.press("enter")
        await harness.shows(
            "Somebody else was faster: requests at once is now 8;", "tokens a day is now 700."
        )
        assert (await client_of(daemon, "raced")).tokens_per_day == 700
        await harness.dialog(AskClient)
        assert harness.screen.query_one("#max_streams", Input).value == "8"
        assert harness.screen.query_one("#tokens_per_day", Input).value == "900"
        await harness.press("enter")
        await harness.shows("The bounds of raced hold")
        now = await client_of(daemon, "raced")
        assert (now.max_streams, now.tokens_per_day) == (8, 900)
        await harness.press("e")
        await harness.dialog(AskClient)
        await rotate_elsewhere(daemon, made.key.id)
        await fill(harness, note="later")
        await harness.press("enter")
        await harness.shows("Not changed. Meanwhile")
        await harness.press("escape", "d")
        await harness.dialog(AskRemove)
        generation = (await daemon.admin.keys()).generation
        await daemon.admin.remove_client(
            "raced", cut=False, generation=generation, idempotency_key=uuid4().hex
        )
        await harness.press(*"raced", "enter")
        await harness.closed()
        await harness.shows("Not done. Meanwhile")


async def test_a_client_is_removed_after_all_that_ends_was_named(daemon: Daemon, tmp_path: Path) -> None:
    """The dialog names its keys; only its name, typed, removes it. `default` stays, and says why."""
    async with keys_screen(daemon, tmp_path, "leaver") as (harness, made):
        await harness.press("d")
        await harness.dialog(AskRemove)
        await harness.shows(f"Ends now, for good: {made.key.id} (active).")
        await harness.press(*"leave", "enter")
        assert harness.windows == 2
        await harness.press("r", "enter")
        await harness.shows("The client leaver is removed, 1 key revoked.")
        assert (await client_of(daemon, "leaver")).removed_at is not None
        assert (await ask(daemon.port, made.secret or "", body(SHORT))).status == 401
        choose(harness, "default")
        await harness.press("d")
        await harness.shows("Not now: the client default always exists.")


@pytest.mark.parametrize("old", [[], [KeyState.RETIRING]], ids=["without a key", "with an old key"])
async def test_a_client_whose_active_key_was_revoked_gets_a_new_one(
    daemon: Daemon, tmp_path: Path, old: list[KeyState]
) -> None:
    """Then `r` makes a key instead of rotating one; an old key keeps its grace."""
    name = "halfway" if old else "keyless"
    async with keys_screen(daemon, tmp_path, name) as (harness, _):
        if old:
            await rotate(harness)
            await reveal(harness)
            await harness.press("escape", "d")
            await harness.closed()
        active = (await keys_of(daemon, name))[-1]
        await harness.press("exclamation_mark", *active.id[-4:], "enter")
        await harness.shows("is revoked.", "r new key")
        await harness.press("r")
        await harness.dialog(Confirm)
        await harness.press("y")
        await harness.dialog(SecretDialog)
        states = [key.state for key in await keys_of(daemon, name)]
        assert states == [*old, KeyState.REVOKED, KeyState.ACTIVE]


@pytest.mark.parametrize("size", [(80, 24), (140, 40)], ids=["80x24", "140x40"])
async def test_an_open_client_shows_keys_bounds_and_use_and_leads_to_its_requests(
    lone_daemon: Daemon, tmp_path: Path, size: tuple[int, int]
) -> None:
    """The row has the money against its bound; Enter opens it, and a key in it; `f` filters the requests."""
    name, daemon = f"open{size[0]}", lone_daemon
    async with keys_screen(daemon, tmp_path, name, size=size) as (harness, made):
        await set_client(
            daemon, name, tokens_per_day=10_000, note="a page", expires_at="2035-01-01T00:00:00Z"
        )
        assert (await ask(daemon.port, made.secret or "", body(SHORT))).status == 200
        await until(lambda: harness.state.clients[name].today.requests == 1)
        await harness.redraw()
        await harness.shows(f"{name} active 1 ")
        await harness.press("enter")
        await harness.shows("a page", "tokens today", "/10k", "today 1 request,", "Tokens yesterday 0 (peak")
        assert made.key.id in harness.text()
        await harness.press("enter")
        await harness.shows(f"Key {made.key.id} of {name} active", "1 user in the log", "127.0.0.1", "add")
        if size[1] > 24:
            await harness.shows("Requests yesterday 0 (peak 1)")
        await harness.press("f")
        await until(lambda: harness.main.pane is harness.requests)
        await harness.shows(f'key_id="{made.key.id}"', "1 of ")
        await harness.press("escape")
        await harness.shows(f"Key {made.key.id} of {name}")
        await harness.press("enter")
        await harness.shows(f'key_id="{made.key.id}" ip="127.0.0.1"')
        await harness.press("escape", "escape", "escape")
        assert harness.main.query_one(ClientList).has_focus
        await harness.press("f")
        await harness.shows(f'client="{name}"', "1 of ")


@pytest.mark.parametrize(
    ("used_usd", "role"),
    [(15.99, Role.GOOD), (16.0, Role.WARN), (19.99, Role.WARN), (20.0, Role.BAD)],
)
def test_the_money_of_the_month_warns_from_four_fifths_of_its_bound_on(used_usd: float, role: Role) -> None:
    """Also when another bound is nearer to its end."""
    state = AppState(keep=10)
    month = PeriodUse(10, 999, used_usd)
    client = ClientInfo(
        name="web", created_at=utc_text(NOON_S), tokens_per_month=1000, usd_per_month=20.0, month=month
    )
    state.set_clients(Clients(1, [client]))
    assert ClientList(state, lambda: NOON_S).cells(client)["US$ this month"][1] is role


class Forgetful(AdminClient):
    """A way to the daemon that loses the first answer to a rotation."""

    asked_with: tuple[str, ...] = ()

    def __init__(self, socket: Path) -> None:
        super().__init__(socket)
        self.answers = asyncio.Event()

    async def rotate_key(
        self, key_id: str, *, grace_s: float | None, generation: int, idempotency_key: str
    ) -> KeyChange:
        """Ask, and lose the first answer."""
        self.asked_with += (idempotency_key,)
        if len(self.asked_with) > 1:
            await self.answers.wait()
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
        await harness.shows("Rotate the key of lost: asking since", "1 answer lost). UNKNOWN")
        admin.answers.set()
        await harness.shows("It was done, but the answer")
        assert "asking since" not in harness.text()
        assert len(admin.asked_with) == 2
        assert len(set(admin.asked_with)) == 1
        assert len(await keys_of(daemon, "lost")) == 2


async def test_a_grace_is_written_as_everywhere_in_relayd_and_is_never_nothing(
    daemon: Daemon, tmp_path: Path
) -> None:
    """`2h` is a grace; `0s` and `2 weeks` are answered with what to do. Buttons stay in sight."""
    async with keys_screen(daemon, tmp_path, "grace") as (harness, _):
        await harness.press("r")
        await harness.dialog(AskGrace)
        for size in ((30, 8), (80, 24)):
            await harness.pilot.resize_terminal(*size)
            await harness.idle()
        await harness.shows("Rotate (y)")
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
