"""The settings in force: SIGHUP reads them again, and every part that may change takes its new values."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from relayd.config import ConfigError, LiveDiff, Settings, live_changes
from relayd.logs import set_level
from relayd.public.chatrequest import ChatRules
from relayd.public.cors import Cors
from relayd.public.listener import Listener
from relayd.public.service import ChatService
from relayd.public.tls import TlsError, TlsFiles
from relayd.relay.stream import StreamLimits
from relayd.relay.upstream import Upstream
from relayd.state.state import State
from relayd.systemd import ServiceManager

_log = logging.getLogger(__name__)

_MAX_SHOWN_CHARS = 80


def chat_rules(settings: Settings) -> ChatRules:
    """What the settings say of requests."""
    return ChatRules(
        default_model=settings.chat.default_model,
        allowed_models=frozenset(settings.chat.allowed_models),
        max_tokens_limit=settings.chat.max_tokens_limit,
        ask_usage=settings.upstream.include_usage,
    )


def stream_limits(settings: Settings) -> StreamLimits:
    """What the settings say of a stream's times."""
    return StreamLimits(
        heartbeat_s=settings.chat.heartbeat_s,
        first_token_timeout_s=settings.upstream.first_token_timeout_s,
        idle_timeout_s=settings.upstream.idle_timeout_s,
        total_timeout_s=settings.upstream.total_timeout_s,
    )


@dataclass(frozen=True, slots=True)
class LiveParts:
    """The parts that hold values of the settings while they run."""

    service: ChatService
    cors: Cors
    listener: Listener
    upstream: Upstream
    state: State
    tls: TlsFiles | None

    def take(self, settings: Settings) -> None:
        """Put these settings in force. Open streams go on; their times are the new ones.

        Raises:
            TlsError: the TLS files cannot be used; nothing changed.
        """
        server, upstream = settings.server, settings.upstream
        if self.tls is not None and settings.tls.cert is not None and settings.tls.key is not None:
            self.tls.use(settings.tls.cert, settings.tls.key)
        service, registry, rules = self.service, self.service.registry, chat_rules(settings)
        service.rules = lambda: rules
        self._take_times(stream_limits(settings))
        service.body_timeout_s = server.body_timeout_s
        service.write_timeout_s = server.write_timeout_s
        service.admission.max_body_bytes = server.max_body_bytes
        registry.max_streams = server.max_streams
        registry.max_streams_per_address = server.max_streams_per_address
        self.listener.set_header_timeout(server.header_timeout_s)
        self.cors.allow_origins = settings.cors.allow_origins
        self.upstream.retune(connect_timeout_s=upstream.connect_timeout_s, max_retries=upstream.max_retries)
        self.state.keep(keep_days=settings.log.retention_days, max_mib=settings.log.max_mib)

    def _take_times(self, limits: StreamLimits) -> None:
        shared = self.service.limits
        shared.heartbeat_s = limits.heartbeat_s
        shared.first_token_timeout_s = limits.first_token_timeout_s
        shared.idle_timeout_s = limits.idle_timeout_s
        shared.total_timeout_s = limits.total_timeout_s


class LiveSettings:
    """Holds the settings in force, and replaces them when asked.

    Args:
        settings: those of the start.
        read: reads all sources again; raises ConfigError.
        manager: told that a reload begins and ends.
    """

    def __init__(self, settings: Settings, read: Callable[[], Settings], manager: ServiceManager) -> None:
        self._at_start = self.now = settings
        self._read = read
        self._manager = manager
        self._parts: LiveParts | None = None
        self._task: asyncio.Task[None] | None = None
        self._asked_again = False

    def feed(self, parts: LiveParts) -> None:
        """The parts that take what changes."""
        self._parts = parts

    def reload(self) -> None:
        """Read and apply in the background; asked meanwhile, do it once more after that."""
        if self._task is not None and not self._task.done():
            self._asked_again = True
            return
        self._task = asyncio.create_task(self._reload(), name="reload")

    async def close(self) -> None:
        """Wait for a reload that is under way."""
        if self._task is not None:
            await self._task

    async def _reload(self) -> None:
        self._manager.reloading()
        again = True
        while again:
            self._asked_again = False
            await self._reload_once()
            again = self._asked_again
        self._manager.reloaded()

    async def _reload_once(self) -> None:
        try:
            new = await asyncio.to_thread(self._read)
            diff = live_changes(self.now, new)
            if self._parts is not None:
                self._parts.take(new)
        except (ConfigError, TlsError) as error:
            _log.error("reload: nothing is changed, the configuration cannot be used:\n%s", error)
            return
        for warning in new.warnings:
            if warning not in self.now.warnings:
                _log.warning("%s", warning)
        old, self.now = self.now, new
        self._tell(old, new, diff)
        # After that: at the new level it might not be seen.
        set_level(new.log.level)

    def _tell(self, old: Settings, new: Settings, diff: LiveDiff) -> None:
        # What waits for a restart goes on waiting, however often the file is read meanwhile.
        waiting = live_changes(self._at_start, new).restart
        for name in diff.live:
            _log.warning("reload: %s is %s now, was %s", name, _shown(new, name), _shown(old, name))
        if waiting:
            _log.warning("reload: in force only after a restart: %s", ", ".join(waiting))
        if not diff.live and not waiting:
            _log.warning("reload: the configuration is as before")


def _shown(settings: Settings, name: str) -> str:
    """A value that may change live, none of which is a secret, cut to fit a line."""
    value = settings.value(name)
    text = ", ".join(map(str, value)) or "empty" if isinstance(value, tuple) else str(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"
