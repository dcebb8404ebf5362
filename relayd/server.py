"""The daemon's life, in the order it is lived: build, bind, run, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
import uuid
from collections.abc import Callable, Sequence

from relayd import __version__
from relayd.admin.context import DaemonFacts, Limits
from relayd.admin.events import EventBus
from relayd.admin.server import AdminServer
from relayd.admin.tally import Tally
from relayd.admin.unix_socket import AdminSocket
from relayd.demo import DemoUpstream
from relayd.live import LiveParts, LiveSettings, chat_rules, stream_limits
from relayd.public.address import ClientAddress
from relayd.public.admission import Admission
from relayd.public.app import PublicApp
from relayd.public.connections import Connections, connection_limit
from relayd.public.cors import Cors
from relayd.public.exchange import PublicSide
from relayd.public.hangup import HangupWatch
from relayd.public.largehead import LargeHeads
from relayd.public.listener import Listener
from relayd.public.root import load_page
from relayd.public.service import ChatService
from relayd.public.tls import TlsFiles
from relayd.relay.failure import Code, Failure
from relayd.relay.intake import Intake
from relayd.relay.ledger import Ledger
from relayd.relay.probe import Probe
from relayd.relay.registry import Registry
from relayd.relay.upstream import Upstream, UpstreamOptions
from relayd.state.state import State
from relayd.systemd import ServiceManager

_log = logging.getLogger(__name__)

_LAST_WORDS_S = 5.0
"""After the drain timeout, how long the last lines of ended streams may take."""
_FORCED_LAST_WORDS_S = 1.0
_HEARING_S = 1.0
"""Without it, a client that connected just before the end would be cut without a word."""
_CLOSING_S = 10.0
"""How long the rest of the end may take: the last records to disk, connections closed."""

DEMO_KEY = "demo-upstream-needs-no-real-key"


class Server:
    """One daemon, from its settings to its exit status.

    Args:
        live: the settings, which SIGHUP reads again.
        state: opened by the caller, who also shows a first key; closed here.
        boot_id: of this run.
        demo: an offline upstream takes the provider's place.
        announce: told in one line when work is accepted.
        manager: told when the daemon is ready and when it stops; closed here.
        tls: the certificate that clients are shown; None: plain HTTP.
    """

    def __init__(
        self,
        live: LiveSettings,
        state: State,
        *,
        boot_id: str,
        demo: bool,
        announce: Callable[[str], None],
        manager: ServiceManager,
        tls: TlsFiles | None = None,
    ) -> None:
        self._tls = tls
        self._announce = announce
        self._manager = manager
        settings = live.now
        self._live = live
        self._state = state
        self._boot_id = boot_id
        self._demo = DemoUpstream(DEMO_KEY) if demo else None
        self._started_at_s = time.time()
        self._tally = Tally(asyncio.get_running_loop().time())
        self._admin: AdminServer | None = None
        self._stop_asked = asyncio.Event()
        self._force_asked = asyncio.Event()
        self.intake = Intake()
        self.registry = Registry(
            max_streams=settings.server.max_streams,
            max_streams_per_address=settings.server.max_streams_per_address,
        )

    async def run(
        self, sockets: Sequence[socket.socket], admin_socket: AdminSocket, event_bus: EventBus
    ) -> int:
        """Serve until a signal or the operator ends it; returns the exit status.

        Args:
            sockets: listening TCP sockets.
            admin_socket: the admin socket; the caller closes it.
            event_bus: told of every commit of the state.
        """
        # First: a signal that comes while the rest is built must drain as well.
        self._catch_signals()
        self.start(sockets)
        await self._upstream.prepare()
        await self.start_admin(admin_socket, event_bus)
        self._freeze()
        self._announce(
            f"relayd {__version__} serving on {self.url}"
            f"  state {self._live.now.state_dir}  admin {self._live.now.admin.socket}"
        )
        self._manager.ready(f"serving on {self.url}")
        await self._stop_asked.wait()
        await self._drain()
        return await self.stop()

    @property
    def url(self) -> str:
        """Where clients are served."""
        return self._url

    def start(self, sockets: Sequence[socket.socket]) -> None:
        """Build every part and accept work."""
        self._build(sockets)
        self._listener.start()
        host, port = self._listener.address
        self._url = public_url(host, port, tls=self._tls is not None)

    async def start_admin(self, admin_socket: AdminSocket, event_bus: EventBus) -> None:
        """Answer the operator too, after `start`."""
        settings = self._live.now
        self._admin = AdminServer(
            admin_socket,
            event_bus=event_bus,
            tally=self._tally,
            facts=DaemonFacts(
                boot_id=self._boot_id,
                started_at_s=self._started_at_s,
                address=self.url,
                upstream=settings.upstream.base_url if self._demo is None else self._demo.base_url,
                demo=self._demo is not None,
                state_dir=str(settings.state_dir),
            ),
            limits=lambda: Limits(
                max_streams=self._live.now.server.max_streams,
                drain_timeout_s=self._live.now.server.drain_timeout_s,
                grace_s=self._live.now.keys.grace_s,
            ),
            state=self._state,
            registry=self.registry,
            intake=self.intake,
            stop=self.ask_stop,
        )
        await self._admin.start()

    def _build(self, sockets: Sequence[socket.socket]) -> None:
        settings = self._live.now
        self._upstream = self._build_upstream()
        self._hangups = HangupWatch()
        self._ledger = Ledger(self._state.log, [self._tally.ended])
        rules, limits = chat_rules(settings), stream_limits(settings)
        self._service = service = ChatService(
            boot_id=self._boot_id,
            admission=Admission(
                keys=self._state.ring,
                intake=self.intake,
                registry=self.registry,
                max_body_bytes=settings.server.max_body_bytes,
            ),
            registry=self.registry,
            ledger=self._ledger,
            upstream=self._upstream,
            hangups=self._hangups,
            rules=lambda: rules,
            limits=limits,
            probe=Probe(limits),
            body_timeout_s=settings.server.body_timeout_s,
            write_timeout_s=settings.server.write_timeout_s,
        )
        address = ClientAddress(settings.server.trusted_proxies)
        public = PublicSide(cors=Cors(settings.cors.allow_origins), address=address)
        self._listener = Listener(
            PublicApp(public, service, self.intake, load_page() if settings.server.page else None),
            sockets,
            header_timeout_s=settings.server.header_timeout_s,
            connections=Connections(
                lambda: connection_limit(self.registry.max_streams), is_proxy=address.is_proxy
            ),
            refuse_large=LargeHeads(public.cors, address, self._ledger, self._boot_id).refuse,
            tls=self._tls,
        )
        self._live.feed(
            LiveParts(service, public.cors, self._listener, self._upstream, self._state, self._tls)
        )

    def _build_upstream(self) -> Upstream:
        settings = self._live.now
        base_url, key = settings.upstream.base_url, ""
        if self._demo is not None:
            self._demo.start()
            base_url, key = self._demo.base_url, DEMO_KEY
        elif settings.openai_api_key is not None:
            key = settings.openai_api_key.get_secret_value()
        return Upstream(
            key,
            UpstreamOptions(
                base_url=base_url,
                connect_timeout_s=settings.upstream.connect_timeout_s,
                max_retries=settings.upstream.max_retries,
            ),
        )

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask_stop)
        loop.add_signal_handler(signal.SIGHUP, self._live.reload)

    @staticmethod
    def _freeze() -> None:
        """What was built lives as long as the process: the collector need not look at it again."""
        gc.collect()
        gc.freeze()

    def ask_stop(self) -> None:
        """Begin to drain; asked a second time, end the open streams at once."""
        self.intake.drain()
        (self._force_asked if self._stop_asked.is_set() else self._stop_asked).set()

    async def _drain(self) -> None:
        """Take nothing new, let the open streams finish, and end those that do not."""
        self._listener.stop_accepting()
        timeout_s = self._live.now.server.drain_timeout_s
        self._manager.stopping(timeout_s + _LAST_WORDS_S + _CLOSING_S)
        if len(self.registry):
            _log.warning("draining: %d streams open, at most %g s", len(self.registry), timeout_s)
        empty = asyncio.create_task(self.registry.wait_empty(timeout_s), name="drain")
        forced = asyncio.create_task(self._force_asked.wait(), name="second signal")
        await asyncio.wait((empty, forced), return_when=asyncio.FIRST_COMPLETED)
        for task in (empty, forced):
            task.cancel()
        await asyncio.gather(empty, forced, return_exceptions=True)
        left = self.registry.stop_all(
            Failure(Code.DRAINING, "This relay is stopping and could not wait longer for the answer.")
        )
        if left:
            _log.warning("draining: ended %d streams that were still open", left)
        forced_now = self._force_asked.is_set()
        await self.registry.wait_empty(_FORCED_LAST_WORDS_S if forced_now else _LAST_WORDS_S)
        if not forced_now:
            await self._listener.hear_out(_HEARING_S)

    async def stop(self) -> int:
        """Close everything; open streams must have ended. Returns the exit status."""
        await self._live.close()
        await self._listener.close()
        await self._service.close()
        self._hangups.close()
        self._ledger.settle()
        await self._upstream.close()
        if self._demo is not None:
            await self._demo.close()
        if self._admin is not None:
            await self._admin.close()
        self._manager.close()
        if not await asyncio.to_thread(self._state.close):
            _log.error("some request records could not be written before the end")
            return 1
        _log.warning("stopped")
        return 0


def public_url(host: str, port: int, *, tls: bool) -> str:
    """Where clients are served."""
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def new_boot_id() -> str:
    """Names one run of the daemon."""
    return uuid.uuid4().hex[:12]
