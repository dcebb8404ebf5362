"""What `/chat` works with, and the chats that run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from relayd.public.admission import Admission
from relayd.public.chatrequest import ChatRules
from relayd.public.hangup import HangupWatch
from relayd.public.penalty import Penalties
from relayd.public.turns import Turns
from relayd.relay.ends import Source
from relayd.relay.ledger import Ledger
from relayd.relay.probe import Probe, is_probe
from relayd.relay.registry import Registry
from relayd.relay.stream import StreamLimits

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ChatService:
    """Built once by the server, closed by it. Rules, limits and times may change live."""

    boot_id: str
    admission: Admission
    registry: Registry
    ledger: Ledger
    upstream: Source
    probe: Probe
    hangups: HangupWatch
    rules: Callable[[], ChatRules]
    limits: StreamLimits
    body_timeout_s: float
    write_timeout_s: float
    penalties: Penalties = field(default_factory=Penalties)
    turns: Turns = field(default_factory=Turns)
    """For what falls due in many chats at once."""
    _running: set[asyncio.Task[None]] = field(default_factory=set)

    def source(self, model: str, ip: str) -> Source:
        """Who answers a request: the provider, or the relay itself when it is probed.

        Raises:
            Failure: `bad_request`, a probe that cannot be read.
        """
        return self.probe.answering(model, ip) if is_probe(model) else self.upstream

    def begin(self, chat: Coroutine[None, None, None], name: str) -> None:
        """Run a chat whose body was read. It holds a place of the registry, which is the bound."""
        task = asyncio.create_task(chat, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Wait for the last chats, whose connections are closed already."""
        while self._running:
            for met in await asyncio.gather(*self._running, return_exceptions=True):
                if isinstance(met, Exception):
                    _log.error("a chat met a bug at its end", exc_info=met)
