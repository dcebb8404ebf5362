"""The settings in force: SIGHUP reads them again and applies what may change while the daemon runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from relayd.config import ConfigError, LiveDiff, Settings, live_changes
from relayd.logs import set_level
from relayd.public.tls import TlsError
from relayd.systemd import ServiceManager

_log = logging.getLogger(__name__)

_MAX_SHOWN_CHARS = 80


class ConfigReloader:
    """Holds the settings in force, and replaces them on request.

    Args:
        settings: those of the start.
        read: reads all sources again; raises ConfigError.
        manager: gets the notifications that a reload begins and ends.
    """

    def __init__(self, settings: Settings, read: Callable[[], Settings], manager: ServiceManager) -> None:
        self.current = settings
        self._at_start = settings
        self._read = read
        self._manager = manager
        self._task: asyncio.Task[None] | None = None
        self._asked_again = False

    def reload(self, apply: Callable[[Settings], None]) -> None:
        """Read and apply in the background; if asked meanwhile, once more after that.

        Args:
            apply: puts settings in force; raises TlsError, with nothing changed, if it cannot.
        """
        if self._task is not None and not self._task.done():
            self._asked_again = True
            return
        self._task = asyncio.create_task(self._reload(apply), name="reload")

    async def close(self) -> None:
        """Wait for a reload that is under way."""
        if self._task is not None:
            await self._task

    async def _reload(self, apply: Callable[[Settings], None]) -> None:
        self._manager.reloading()
        await self._reload_once(apply)
        while self._asked_again:
            self._asked_again = False
            await self._reload_once(apply)
        self._manager.reloaded()

    async def _reload_once(self, apply: Callable[[Settings], None]) -> None:
        try:
            new = await asyncio.to_thread(self._read)
            diff = live_changes(self.current, new)
            apply(new)
        except (ConfigError, TlsError) as error:
            _log.error("reload: nothing is changed, the configuration cannot be used:\n%s", error)
            return
        for warning in new.warnings:
            if warning not in self.current.warnings:
                _log.warning("%s", warning)
        old, self.current = self.current, new
        self._report(old, new, diff)
        # Last: at the new level the report might not be shown.
        set_level(new.log.level)

    def _report(self, old: Settings, new: Settings, diff: LiveDiff) -> None:
        # A change that waits for a restart is reported until then, however often the file is read.
        waiting = live_changes(self._at_start, new).restart
        for name in diff.live:
            _log.warning("reload: %s is %s now, was %s", name, _shown(new, name), _shown(old, name))
        if waiting:
            _log.warning("reload: in force only after a restart: %s", ", ".join(waiting))
        if not diff.live and not waiting:
            _log.warning("reload: the configuration is as before")


def _shown(settings: Settings, name: str) -> str:
    """Return a value that may change live, none of which is a secret, cut to fit a line."""
    value = settings.value(name)
    text = ", ".join(map(str, value)) or "empty" if isinstance(value, tuple) else str(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"
