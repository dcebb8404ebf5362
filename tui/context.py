"""What every screen is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tui.daemon_commands import DaemonCommands
from tui.export import Exporter
from tui.feed import Feed
from tui.model.app_state import AppState
from tui.settings import SettingsFile
from tui.stream_actions import StreamActions


@dataclass(frozen=True, slots=True)
class Context:
    """What the screens show and act on; built once, by the app."""

    state: AppState
    feed: Feed
    commands: DaemonCommands
    stream_actions: StreamActions
    exporter: Exporter
    settings_file: SettingsFile
    now_s: Callable[[], float]
    place: str
    """What the header calls the daemon: the host's name, or `demo`."""
    home: Path
    """Where new keys are saved."""
