"""What the app says stays true when the daemon hangs, restarts, or another operator is faster."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

from relayd.admin.client import AdminClientError
from relayd.admin.schema import KeyChange, KeyState, Progress, epoch_s
from tests.admin.harness import admin_api
from tests.e2e.daemon import KEY, Daemon
from tests.tui.app_harness import files
from tests.tui.terminal import SeenTerminal, Terminal
from tests.tui.tmux import Tmux, needs_tmux
from tests.wire import Wire, ask, body, post, until
from tui.model.units import duration

SLOW = "demo:deltas=40000,interval_ms=25"
_FIGURES_LIKE_WORDS = re.compile(r"run 1  \S+ tok/s")
"""Greyed: as long as they are true, figures look unlike the words beside them."""
_LAUNCH_AT_AGE_MS = 3000
_LEAST_S = 0.2
"""After a late report of a busy daemon the next one comes soon: a rate is over no less than this."""


def terminal_on(daemon: Daemon, size: tuple[int, int] = (80, 24)) -> Tmux:
    """The app in a terminal, on this daemon."""
    return Tmux(("--socket", str(daemon.state_dir / "admin.sock")), daemon.home, size)


async def rotate(daemon: Daemon, key_id: str, grace_s: float = 3600) -> KeyChange:
    """Rotate as another operator; returns the new key."""
    generation = (await daemon.admin.keys()).generation
    return await daemon.admin.rotate_key(
        key_id, grace_s=grace_s, generation=generation, idempotency_key=uuid4().hex
    )


async def add_client(daemon: Daemon, name: str) -> KeyChange:
    """Add a client; returns its key."""
    generation = (await daemon.admin.keys()).generation
    return await daemon.admin.add_key(name, generation=generation, idempotency_key=uuid4().hex)


async def states(daemon: Daemon) -> dict[str, str]:
    """The state of each key by its id."""
    return {key.id: key.state.value for key in (await daemon.admin.keys()).keys}


def header(word: str) -> re.Pattern[str]:
    """Match a screen whose first line has this."""
    return re.compile(rf"\A.*{word}")


@needs_tmux
async def test_a_daemon_that_hangs_is_stale_and_a_change_waits_in_sight(tmp_path: Path) -> None:
    """Stopped: STALE with its age within seconds; a revoke is a line until the daemon answers it."""
    with Daemon(tmp_path) as daemon:
        async with await Wire.open(daemon.port) as wire:
            await wire.begin(post(KEY, body(SLOW)))
            [key] = (await daemon.admin.keys()).keys
            with terminal_on(daemon) as terminal:
                await terminal.until(header("● LIVE +run 1 ").search)
                assert not _FIGURES_LIKE_WORDS.search(terminal.styled())
                daemon.signal(signal.SIGSTOP)
                await terminal.until(header(r"○ STALE \d+s").search)
                await terminal.until(lambda _: _FIGURES_LIKE_WORDS.search(terminal.styled()))
                await terminal.until("said nothing since")
                terminal.press("K", "!")
                await terminal.until("Type the last four characters")
                terminal.type(key.id[-4:])
                await terminal.until(f"Ends the active key {key.id}")
                terminal.press("Enter")
                await terminal.until(f"Revoke the key {key.id} of default: asking since")
                terminal.press("1")
                await terminal.until(f"Revoke the key {key.id} of default: asking since")
                daemon.signal(signal.SIGCONT)
                await terminal.until(lambda screen: "LIVE" in screen and "asking since" not in screen)
                await terminal.until("is revoked")
                assert (await daemon.admin.keys()).keys[0].state is KeyState.REVOKED
                terminal.press("Q")
                assert await terminal.ended() in {"0", ""}


@needs_tmux
async def test_of_two_operators_neither_acts_on_anything_but_what_was_read(tmp_path: Path) -> None:
    """One undoes and rotates before the other's `y`: that undoes nothing; it is asked anew."""
    with Daemon(tmp_path) as daemon:
        [old] = (await daemon.admin.keys()).keys
        first = (await rotate(daemon, old.id)).key.id
        with terminal_on(daemon) as terminal, terminal_on(daemon) as other:
            for one in (terminal, other):
                await one.until(header("● LIVE").search)
                one.press("K", "u")
                await one.until(f"The new key {first}")
            await _undo_and_rotate(other, old.id)
            assert f"The new key {first}" in terminal.screen()
            terminal.press("y")
            second = next(key for key, state in (await states(daemon)).items() if state == "active")
            await terminal.until(f"The new key {second}")
            told = re.compile(r"Meanwhile \S+ did undo for default, then \S+ did rotate for default\.")
            await terminal.until(lambda screen: told.search(" ".join(screen.replace("│", "").split())))
            assert (await states(daemon)) == {old.id: "retiring", first: "revoked", second: "active"}
            terminal.press("y")
            await terminal.until(f"The key {old.id} of default is active again.")
            assert (await states(daemon)) == {old.id: "active", first: "revoked", second: "revoked"}
            other.press("5")
            for key in (first, second):
                await other.until(f"{old.id} → {key}")
                await other.until(f"{key} → {old.id}")
            for one in (terminal, other):
                one.press("Q")
                assert await one.ended() in {"0", ""}


async def _undo_and_rotate(terminal: Tmux, key_id: str) -> None:
    """Say yes to the undoing that is asked, then rotate, and keep the new key."""
    terminal.press("y")
    await terminal.until(f"The key {key_id} of default is active again.")
    terminal.press("r")
    await terminal.until("Rotate the key of default?")
    terminal.press("y")
    await terminal.until("•" * 12)
    terminal.press("s")
    await terminal.until("Saved to")
    terminal.press("Escape")
    await terminal.until("Not used yet.")


@needs_tmux
async def test_the_new_key_is_never_thrown_away_unasked(tmp_path: Path) -> None:
    """Revealed is not kept: Esc and Ctrl-Q ask; only saved, copied or a yes leads out of the dialog."""
    with Daemon(tmp_path) as daemon, terminal_on(daemon) as terminal:
        await terminal.until(header("● LIVE").search)
        terminal.press("K", "r")
        await terminal.until("Rotate the key of default?")
        terminal.press("y")
        await terminal.until("•" * 12)
        terminal.press("v")
        await terminal.until(lambda screen: re.search(r"rly_\w{40}", screen))
        for leaving in ("Escape", "C-q"):
            terminal.press(leaving)
            await terminal.until(lambda screen: "Throw the new key away?" in screen and "rly_" not in screen)
            terminal.press("Escape")
            await terminal.until(lambda screen: "Throw" not in screen and "•" * 12 in screen)
        terminal.press("s")
        await terminal.until("Saved to")
        terminal.press("Escape")
        await _leaves_another_new_key(terminal, "y", "Escape")
        await _leaves_another_new_key(terminal, "Escape", "d")
        terminal.press("C-q")
        assert await terminal.ended() in {"0", ""}
    [saved] = files(tmp_path, "relayd-key-*")
    assert saved.read_text().startswith("rly_")


async def _leaves_another_new_key(terminal: Tmux, act: str, leave: str) -> None:
    """Rotate, and leave the dialog by two keys: copied, or thrown away."""
    await terminal.until(lambda screen: "•" not in screen and "r rotate" in screen)
    terminal.press("r")
    await terminal.until("Rotate the key of default?")
    terminal.press("y")
    await terminal.until("•" * 12)
    terminal.press(act)
    await terminal.until("Throw the new key away?" if act == "Escape" else "The key was given to")
    # Whoever wants to leave once more is asked no second time.
    terminal.press(*["C-q"] * (act == "Escape"), leave)
    await terminal.until(lambda screen: "•" not in screen and "Throw" not in screen)


@needs_tmux
async def test_what_is_not_known_is_not_invented(tmp_path: Path) -> None:
    """A stream that was open before has the daemon's first-token time; a restart keeps errors and no rate."""
    with Daemon(tmp_path) as daemon:
        async with await Wire.open(daemon.port) as wire, progress_of(daemon) as told:
            await wire.begin(post(KEY, body(SLOW)))
            await until(lambda: told and told[-1].streams[0].age_ms >= _LAUNCH_AT_AGE_MS)
            first_ms = told[-1].streams[0].first_token_ms
            assert first_ms is not None
            with terminal_on(daemon) as terminal:
                await terminal.until(header("● LIVE +run 1 ").search)
                await _rates_are_true_from_the_first(terminal, told)
                terminal.press("1")
                await terminal.until(lambda screen: re.search(rf" run .* {duration(first_ms)} .*▸", screen))
                await _is_found_and_exported_by_its_first_token(terminal, daemon, first_ms)
                await asyncio.to_thread(daemon.kill)
                await terminal.until(header("○").search)
                await asyncio.to_thread(daemon.start)
                terminal.press("R")
                await terminal.until(header("● LIVE +run 0  0 tok/s .* err 1/5m").search)
                assert (await ask(daemon.port, KEY, body("demo:deltas=2"))).status == 200
                terminal.resize(100, 30)
                terminal.press("3")
                in_full = re.compile(r"First token( +p\d\d \d\S*s( \(peak \d\S*s\))?){2}$", re.MULTILINE)
                await terminal.until(in_full.search)
                terminal.press("Q")
                assert await terminal.ended() in {"0", ""}


@asynccontextmanager
async def progress_of(daemon: Daemon) -> AsyncIterator[list[Progress]]:
    """Yield a list of all that the daemon tells of its open streams meanwhile."""
    told: list[Progress] = []

    async def listen() -> None:
        with suppress(AdminClientError):
            async with aclosing(daemon.admin.events()) as events:
                async for event in events:
                    if isinstance(event, Progress) and event.streams:
                        told.append(event)  # noqa: PERF401 - it is read meanwhile

    listening = asyncio.create_task(listen(), name="progress")
    try:
        yield told
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _rates_are_true_from_the_first(terminal: Tmux, told: list[Progress]) -> None:
    """The first rates that the app shows, in all and of the stream, are between those of the daemon."""
    terminal.press("2")
    rates = re.compile(r"\A.* run 1  ([\d.]+) tok/s.* streaming +\S+ +\S+ +([\d.]+) ", re.DOTALL)
    shown = rates.search(await terminal.until(rates.search))
    assert shown is not None
    # The reports that the app had must have come here too.
    count = len(told)
    await until(lambda: len(told) > count)
    true = [
        (now.streams[0].deltas - before.streams[0].deltas)
        / max(_LEAST_S, epoch_s(now.at) - epoch_s(before.at))
        for before, now in pairwise(told)
    ]
    for rate in map(float, shown.groups()):
        assert 0.85 * min(true) <= rate <= 1.15 * max(true), (shown.groups(), true)


async def _is_found_and_exported_by_its_first_token(terminal: Tmux, daemon: Daemon, first_ms: int) -> None:
    """A filter compares what the daemon says of a stream that was open before, and the file has it."""
    terminal.press("/")
    terminal.type(f"first_token_ms={first_ms}")
    await terminal.until("1 match ")
    terminal.press("Enter")
    await terminal.until("1 of 1 ")
    terminal.press("w")
    await terminal.until("NDJSON (n)")
    terminal.press("n")
    await terminal.until("1 record written to")
    [exported] = files(daemon.home, "relayd-*.ndjson")
    assert f'"first_token_ms":{first_ms},' in exported.read_text()
    terminal.press("/")
    await terminal.until("Enter keeps it")
    terminal.press("C-u", "Enter")
    await terminal.until(lambda screen: "first_token_ms" not in screen and "1 record " in screen)


async def test_the_history_of_another_daemon_is_never_shown(tmp_path: Path) -> None:
    """Not that of the environment where no daemon answers, nor that of a database that was replaced."""
    here, there = tmp_path / "here", tmp_path / "there"
    async with admin_api(there) as other:
        [key] = other.state.ring.keys()
    env = {"RELAYD_STATE_DIR": str(other.state.path.parent)}
    arguments = ("-m", "tui", "--socket", str(here / "state" / "admin.sock"))
    with SeenTerminal(arguments, tmp_path, env=env) as terminal:
        await terminal.shows("No relayd answers")
        terminal.send(b"K")
        await terminal.shows("the clients are not known", gone=key.id)
        for client in ("web", "ci"):
            async with admin_api(here) as api:
                terminal.send(b"R")
                [key] = api.state.ring.keys()
                await terminal.shows("● LIVE", f"Key {key.id}", gone=" web ")
                await api.client.add_key(client, generation=1, idempotency_key=client)
                await terminal.shows(f" {client} ")
            await terminal.shows("○")
            # Not removed file by file: the app may read the database of the daemon that is gone.
            here.rename(tmp_path / client)
        terminal.send(b"Q")
        assert await terminal.ended() == 0


@needs_tmux
async def test_every_old_key_is_told_by_name_up_to_its_end_and_after(tmp_path: Path) -> None:
    """A line for each in its grace; near its end a key in use is an alert, with bell and command."""
    told = tmp_path / "told"
    command = ["/bin/sh", "-c", 'cat >> "$1"', "sh", str(told)]
    with Daemon(tmp_path, settings={"alerts.command": command}) as daemon:
        [old] = (await daemon.admin.keys()).keys
        web, ci = [(await add_client(daemon, name)).key.id for name in ("web", "ci")]
        await rotate(daemon, ci, grace_s=1)
        await rotate(daemon, web)
        await rotate(daemon, old.id, grace_s=110)
        with terminal_on(daemon) as terminal:
            await terminal.until(header("2 OLD KEYS, default .* unused").search)
            await terminal.until(f"The old key {web} of web ends in 5")
            await terminal.until(f"The old key {ci} of ci has ended at")
            assert not terminal.has_rung()
            assert (await ask(daemon.port, KEY, body("demo:deltas=2"))).status == 200
            await terminal.until("and 1 address used it")
            await terminal.until(lambda _: terminal.has_rung())
            await until(lambda: told.exists() and f'"key_ends:{old.id}"' in told.read_text())
            terminal.press("4", "Home", "j")
            terminal.resize(140, 40)
            await terminal.until(lambda screen: _ages_of_use(screen, old.id))
            generation = (await daemon.admin.keys()).generation
            await daemon.admin.revoke_key(
                old.id, cut=False, generation=generation, idempotency_key=uuid4().hex
            )
            await terminal.until(
                lambda screen: "was used default  127.0.0.1" in screen and "still used" not in screen
            )
            terminal.press("Q")
            assert await terminal.ended() in {"0", ""}


def _ages_of_use(screen: str, key_id: str) -> bool:
    """Whether the list of keys and the words beside it say the same age of a key's last use."""
    listed = re.search(rf"^ {key_id} .* (\S+) ago  127.0.0.1", screen, re.MULTILINE)
    told = re.search(r"127.0.0.1  last (\S+) ago", screen)
    return listed is not None and told is not None and listed[1] == told[1]


@needs_tmux
async def test_dialogs_say_what_is_configured_and_what_becomes_of_streams(tmp_path: Path) -> None:
    """The grace is that of the configuration; a revoke names the streams; Enter does it, also at 40x10."""
    with Daemon(tmp_path, settings={"keys.grace_s": 7200}) as daemon:
        async with await Wire.open(daemon.port) as wire:
            await wire.begin(post(KEY, body(SLOW)))
            [old] = (await daemon.admin.keys()).keys
            with terminal_on(daemon) as terminal:
                await terminal.until(header("● LIVE +run 1 ").search)
                terminal.press("K", "r")
                await terminal.until("(•) 2 hours")
                terminal.press("Escape")
                await terminal.until(lambda screen: "2 hours" not in screen)
                await _dialogs_on_a_tiny_terminal(terminal, old.id)
                new = (await rotate(daemon, old.id)).key.id
                terminal.press("5")
                await terminal.until(f"{old.id} → {new}")
                terminal.press("4", "!")
                await terminal.until("Type the last four")
                terminal.type(old.id[-4:])
                await terminal.until("1 stream open with it goes on.")
                terminal.press("Tab", "Space")
                await terminal.until("1 stream open with it ends too.")
                terminal.press("Enter")
                await terminal.until("is revoked; 1 stream cut.")
                expired = await _used_until_its_end(daemon, "ci")
                await terminal.until(re.compile("^ ci ", re.MULTILINE).search)
                terminal.press("Home")
                await terminal.until(
                    lambda screen: (
                        f"The old key {expired} of ci has ended at" in screen
                        and "1 address used it until then, and is refused now." in " ".join(screen.split())
                        and "was used ci  127.0.0.1" in screen
                        and "still used" not in screen
                    )
                )
                terminal.press("Q")
                assert await terminal.ended() in {"0", ""}


async def _used_until_its_end(daemon: Daemon, client: str) -> str:
    """Use the old key of a new client in its short grace; returns its id."""
    made = await add_client(daemon, client)
    while True:
        changed = await rotate(daemon, made.key.id, grace_s=1)
        # On a busy machine the grace may be over before it is used.
        if (await ask(daemon.port, made.secret or "", body("demo:deltas=2"))).status == HTTPStatus.OK:
            return made.key.id
        made = changed


async def _dialogs_on_a_tiny_terminal(terminal: Tmux, key_id: str) -> None:
    """What is asked, the line to write in and the ways out are in sight; arrows go from line to line."""
    terminal.resize(40, 10)
    await terminal.until(lambda screen: len(screen.splitlines()) == 10)
    terminal.press("!")
    await _shows(
        terminal,
        "Revoke a key now?",
        f" {key_id[-4:]} for the key of default",
        "Cancel (Esc)  Revoke now (Enter)",
    )
    terminal.type(key_id[-4:])
    await _shows(terminal, "Revoke a key now?", f" {key_id[-4:]} ", f"Ends the active key {key_id}")
    terminal.press("Escape")
    await terminal.until("Enter open")
    terminal.press("e")
    await _shows(terminal, "Bounds of default", "│ note ", "Cancel (Esc)  Save (Enter)")
    terminal.press("Down")
    terminal.type("o3")
    await terminal.until(re.compile("models +o3 ").search)
    terminal.press("Escape")
    terminal.resize(80, 24)
    await terminal.until(lambda screen: "Bounds of" not in screen and "K clients" not in screen)


async def _shows(terminal: Tmux, *texts: str) -> None:
    await terminal.until(lambda screen: all(text in screen for text in texts))


async def test_line_mode_tells_that_a_key_ended_and_that_the_daemon_hangs_and_dies(tmp_path: Path) -> None:
    """None is an event of the log; all are lines."""
    with Daemon(tmp_path) as daemon:
        [old] = (await daemon.admin.keys()).keys
        arguments = ("-m", "tui", "--plain", "--socket", str(daemon.state_dir / "admin.sock"))
        with Terminal(arguments, tmp_path) as terminal:
            await terminal.until(lambda raw: b"relayd 0" in raw)
            new = (await rotate(daemon, old.id, grace_s=1)).key.id
            lines = f"key {new} in place of {old.id}".encode(), f"key ended: {old.id} of default".encode()
            await terminal.until(lambda raw: all(line in raw for line in lines))
            daemon.signal(signal.SIGSTOP)
            await terminal.until(lambda raw: b"no answer: " in raw)
            daemon.signal(signal.SIGCONT)
            await terminal.until(lambda raw: b"the daemon answers again" in raw)
            await asyncio.to_thread(daemon.kill)
            await terminal.until(lambda raw: b"no contact: " in raw)
