"""The Config screen."""

from __future__ import annotations

from pathlib import Path

from textual.widgets import Button

from relayd.admin.client import AdminClient, Refused
from relayd.admin.schema import Configuration
from tests.admin.harness import admin_api
from tests.tui.app_harness import running_app
from tests.wire import until
from tui.screens.config import ReloadOutcome
from tui.screens.dialogs import Confirm


def _configure(home: Path, *, heartbeat_s: float, port: int) -> None:
    path = home / "relayd.toml"
    path.write_text(
        f"""[server]\nport = {port}\n[chat]\nheartbeat_s = {heartbeat_s}
[aliases]\n"gpt-3.5-turbo" = "gpt-4o-mini"\n"""
    )
    path.chmod(0o600)


async def test_what_changed_in_the_file_is_seen_and_reloaded(tmp_path: Path) -> None:
    """Values with their places, search, only what changed; `S` says what it will do, and then what it did."""
    _configure(tmp_path, heartbeat_s=20, port=4000)
    async with admin_api(tmp_path) as api:
        _configure(tmp_path, heartbeat_s=30, port=4001)
        async with running_app(tmp_path, api.client) as harness:
            await harness.shows("LIVE")
            await harness.press("8")
            await harness.shows(
                "[all] set 4 changed 2", "last reload none since the start", "database sqlite"
            )
            await harness.press("slash", *"gpt-3.5", "enter")
            await harness.shows('aliases."gpt-3.5-turbo" "gpt-4o-mini" relayd.toml:5')
            assert "last reload" not in harness.text()
            await harness.press("escape", "h", "h", "g")
            await harness.shows("server.port 4000 → 4001 needs a restart", "heartbeat_s 20 → 30 S reloads")
            await harness.shows("relayd.toml:2 says by now: 4001. It takes a restart.")
            await harness.press("S")
            await harness.dialog(Confirm)
            assert isinstance(harness.screen.focused, Button)
            assert harness.screen.focused.id == "no", "the harmless button"
            await harness.shows("chat.heartbeat_s: 20 → 30", "Only a restart changes server.port.")
            await harness.press("y")
            await harness.dialog(ReloadOutcome)
            await harness.shows(
                "chat.heartbeat_s is now 30.0, was 20.0.", "Only after a restart: server.port."
            )
            await harness.press("escape")
            await harness.shows("all set 4 [changed 1]")

            _configure(tmp_path, heartbeat_s=-1, port=4001)
            await harness.press("S")
            await harness.dialog(Confirm)
            await harness.shows("it would be refused", "chat.heartbeat_s is -1, but must be")
            # A reload that would do something else than was read does nothing.
            _configure(tmp_path, heartbeat_s=40, port=4001)
            await harness.press("y")
            await harness.shows("The files were changed meanwhile.", "chat.heartbeat_s: 30 → 40")
            _configure(tmp_path, heartbeat_s=-1, port=4001)
            await harness.press("y")
            await harness.shows("it would be refused")
            await harness.press("y")
            await harness.dialog(ReloadOutcome)
            await harness.shows("Not reloaded", "Nothing is changed.")
            await harness.press("escape", "escape", "g")
            await harness.shows(
                "problem relayd.toml:4: chat.heartbeat_s is -1", "REFUSED: nothing was changed"
            )
            await harness.pilot.resize_terminal(140, 40)
            # Health is beside the list then.
            await until(lambda: max(line.find("last reload") for line in harness.text().splitlines()) > 80)


class _Older(AdminClient):
    """A daemon without `GET /config`."""

    async def configuration(self) -> Configuration:
        """Refuse as that one does."""
        raise Refused(404, "not_found", "There is no such path here.")


async def test_a_daemon_that_does_not_tell_is_said_to_be_so(tmp_path: Path) -> None:
    """Nothing is invented; a reload says that it is not known what it will do, and what it did."""
    async with admin_api(tmp_path) as api, running_app(tmp_path, _Older(api.socket)) as harness:
        await harness.shows("LIVE")
        await harness.press("8")
        await harness.shows("There is no such path here.")
        await harness.press("S")
        await harness.dialog(Confirm)
        await harness.shows("What it will change is not known: There is no such path here.")
        await harness.press("y")
        await harness.dialog(ReloadOutcome)
        await harness.shows("The configuration has not changed.")
