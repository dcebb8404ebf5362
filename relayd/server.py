"""The daemon's life in time order: build, start, run, drain, stop."""

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
from relayd.admin.context import AdminContext, AlertOptions, Limits
from relayd.admin.events import EventBus
from relayd.admin.metrics import Metrics
from relayd.admin.schema import DaemonFacts, utc_text
from relayd.admin.server import AdminServer
from relayd.admin.unix_socket import AdminSocket
from relayd.alerts.conditions import Thresholds
from relayd.config import Settings
from relayd.demo.upstream import DemoUpstream
from relayd.first_key import FirstKeyFile
from relayd.processes import Terminal
from relayd.public.allowances import Allowances
from relayd.public.app import make_app
from relayd.public.chat_request import ChatRules
from relayd.public.client_address import TrustedProxies
from relayd.public.context import AppContext
from relayd.public.cors import Cors
from relayd.public.disconnect import DisconnectWatcher
from relayd.public.limits import Slots
from relayd.public.listener import Listener
from relayd.public.page import load_page, notice
from relayd.public.tls import TlsFiles
from relayd.public.v1_endpoints import V1Rules
from relayd.relay.accepting import Accepting, AcceptState
from relayd.relay.active_streams import ActiveStreams
from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.prices import Price, Pricing
from relayd.relay.probe import Probe
from relayd.relay.request_recorder import RequestRecorder
from relayd.relay.routes import RouteOptions
from relayd.relay.stream import StreamLimits
from relayd.relay.upstream import Upstream, UpstreamOptions
from relayd.reload import ConfigReloader
from relayd.state.errors import StateError
from relayd.state.state import State
from relayd.supervisor import Order, SupervisorLink
from relayd.systemd import ServiceManager

_log = logging.getLogger(__name__)

_LAST_LINES_S = 5.0
"""After the drain timeout, the time for the last lines of the streams that it ended."""
_FORCED_LAST_LINES_S = 1.0
_CLOSING_S = 10.0
"""Time for the rest of the end: the last records to disk, connections closed."""

_REMEMBERED_REQUESTS = 1000
"""Of the log, from which it is known at the start how long the answers of each client usually are."""

DEMO_KEY = "demo-upstream-needs-no-real-key"


class Server:
    """One daemon, from its settings to its exit status.

    Args:
        config: the settings, which SIGHUP reads again.
        state: opened by the caller, which also shows a first key; closed here.
        boot_id: of this run.
        demo: whether an offline upstream takes the provider's place.
        announce: told one line when requests are accepted.
        manager: told when the daemon is ready and when it stops; closed here. A worker's is the link to its
            supervisor, which also says when to stop and reload, in place of signals.
        tls: the certificate that clients are shown; None: plain HTTP.
    """

    def __init__(
        self,
        config: ConfigReloader,
        state: State,
        *,
        boot_id: str,
        demo: bool,
        announce: Callable[[str], None],
        manager: ServiceManager,
        tls: TlsFiles | None = None,
    ) -> None:
        self._config = config
        self._at_start = config.current.upstream
        """Address and proxy of the provider stay these, also for routes that a reload adds."""
        self._state = state
        self._first_key = FirstKeyFile(config.current.state_dir, state.ring)
        self._boot_id = boot_id
        self._announce = announce
        self._manager = manager
        self._supervisor = manager if isinstance(manager, SupervisorLink) else None
        self._tls = tls
        self._demo = DemoUpstream(DEMO_KEY) if demo else None
        self._started_at = utc_text(time.time())
        self._stop_requested = asyncio.Event()
        self._force_requested = asyncio.Event()
        self._metrics = Metrics()
        self._admin: AdminServer | None = None
        self.accepting = Accepting()
        self.streams = ActiveStreams()
        self.url = ""
        """Where clients are served; empty before `start`."""

    async def run(
        self, sockets: Sequence[socket.socket], admin_socket: AdminSocket, event_bus: EventBus
    ) -> int:
        """Serve until a signal or the operator ends it; return the exit status.

        Args:
            sockets: listening TCP sockets.
            admin_socket: closed by the caller.
            event_bus: told of every commit of the state.
        """
        # First: a signal that comes while the rest is built must drain as well.
        self._handle_signals()
        self.start(sockets)
        if self._supervisor is not None and self._supervisor.has_reloaded:
            # The settings are those of the supervisor's start; the other workers have newer ones.
            await self._config.reload(self._apply)
        await self.start_admin(admin_socket, event_bus)
        # Else a key would be refused here, or accepted, that others changed since the ring was loaded.
        await self._state.caught_up()
        self._listener.start()
        # What was built lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        settings = self._config.current
        self._announce(
            f"relayd {__version__} serving on {self.url}"
            f"  state {settings.state_dir}  admin {settings.admin.socket}"
        )
        self._manager.ready(f"serving on {self.url}")
        first_key = asyncio.create_task(self._first_key.watch(), name="first key file")
        await self._stop_requested.wait()
        # At once: each answer from now on must end its connection.
        await self._drain()
        first_key.cancel()
        await asyncio.gather(first_key, return_exceptions=True)
        return await self.stop()

    def start(self, sockets: Sequence[socket.socket]) -> None:
        """Build the public side. An instance that joins a paused relay is paused, too."""
        settings = self._config.current
        intakes = {other.intake for other in self._state.instances.others()} - {AcceptState.DRAINING}
        if intakes == {AcceptState.PAUSED}:
            self.accepting.pause()
        if self._demo is not None:
            self._demo.start()
        self._disconnects = DisconnectWatcher()
        self._recorder = RequestRecorder(self._state.log, [self._metrics.request_ended])
        self._slots = Slots(
            max_streams=settings.server.max_streams,
            max_streams_per_address=settings.server.max_streams_per_address,
        )
        self._upstream = Upstream(
            self._provider_key(settings), self._upstream_options(settings), self._routes(settings)
        )
        limits = _stream_limits(settings)
        allowances = Allowances(
            self._state.ring.client, self._state.budget, _pricing(settings), self._state.clock
        )
        try:
            allowances.remember(reversed(self._state.reader.page(limit=_REMEMBERED_REQUESTS).records))
        except StateError as error:
            _log.warning("how long answers usually are is not known: %s", error)
        self._context = AppContext(
            boot_id=self._boot_id,
            keys=self._state.ring,
            allowances=allowances,
            accepting=self.accepting,
            slots=self._slots,
            streams=self.streams,
            recorder=self._recorder,
            upstream=self._upstream,
            probe=Probe(limits),
            disconnects=self._disconnects,
            proxies=TrustedProxies(settings.server.trusted_proxies),
            cors=Cors(settings.cors.allow_origins),
            page=load_page() if settings.server.page else notice(),
            chat_rules=_chat_rules(settings),
            v1_rules=_v1_rules(settings),
            stored_objects=self._state.stored_objects,
            stream_limits=limits,
            max_body_bytes=settings.server.max_body_bytes,
            body_timeout_s=settings.server.body_timeout_s,
            write_timeout_s=settings.server.write_timeout_s,
        )
        self._listener = Listener(
            make_app(self._context),
            sockets,
            proxies=self._context.proxies,
            tls=self._tls,
            share=None if self._supervisor is None else self._supervisor.share,
        )
        self._apply(settings)
        host, port = self._listener.address
        self.url = public_url(host, port, tls=self._tls is not None)

    def _apply(self, settings: Settings) -> None:
        """Put settings in force; open streams keep going, with the new time limits.

        Raises:
            TlsError: the TLS files cannot be used; nothing changed.
        """
        if self._tls is not None and settings.tls.cert is not None and settings.tls.key is not None:
            self._tls.use(settings.tls.cert, settings.tls.key)
        server, context = settings.server, self._context
        context.chat_rules = _chat_rules(settings)
        context.v1_rules = _v1_rules(settings)
        context.allowances.pricing = _pricing(settings)
        context.stream_limits.update(_stream_limits(settings))
        context.max_body_bytes = server.max_body_bytes
        context.body_timeout_s = server.body_timeout_s
        context.write_timeout_s = server.write_timeout_s
        context.cors.allow_origins = settings.cors.allow_origins
        self._slots.max_streams = server.max_streams
        self._slots.max_streams_per_address = server.max_streams_per_address
        self._listener.configure(
            head_timeout_s=server.header_timeout_s,
            keep_alive_s=server.keep_alive_s,
            max_streams=server.max_streams,
            max_streams_per_address=server.max_streams_per_address,
        )
        self._upstream.configure(
            self._provider_key(settings), self._upstream_options(settings), self._routes(settings)
        )
        if self._state.follower is not None:
            self._state.ring.stale_after_s = settings.state.stale_after_s
        self._state.set_retention(keep_days=settings.log.retention_days, max_mib=settings.log.max_mib)

    async def start_admin(self, admin_socket: AdminSocket, event_bus: EventBus) -> None:
        """Answer the operator too, after `start`."""
        settings, identity = self._config.current, self._state.instances.identity
        context = AdminContext(
            facts=DaemonFacts(
                boot_id=self._boot_id,
                started_at=self._started_at,
                address=self.url,
                upstream=self._upstream_options(settings).base_url,
                demo=self._demo is not None,
                state_dir=str(settings.state_dir),
                instance=identity.name,
                worker=identity.worker,
            ),
            limits=lambda: Limits(
                max_streams=self._config.current.server.max_streams,
                drain_timeout_s=self._config.current.server.drain_timeout_s,
                grace_s=self._config.current.keys.grace_s,
            ),
            state=self._state,
            streams=self.streams,
            accepting=self.accepting,
            metrics=self._metrics,
            event_bus=event_bus,
            stop=self.request_stop,
            reload=lambda: self._config.reload(self._apply),
            config=self._config.report,
            first_key=self._first_key.reminder,
            routes=lambda: self._upstream.routes,
            alert_options=lambda: _alert_options(self._config.current),
        )
        self._admin = AdminServer(admin_socket.socket, context)
        await self._admin.start()

    def _provider_key(self, settings: Settings) -> str:
        if self._demo is not None:
            return DEMO_KEY
        return "" if settings.openai_api_key is None else settings.openai_api_key.get_secret_value()

    def _upstream_options(self, settings: Settings) -> UpstreamOptions:
        upstream = settings.upstream
        return UpstreamOptions(
            base_url=self._at_start.base_url if self._demo is None else self._demo.base_url,
            connect_timeout_s=upstream.connect_timeout_s,
            max_retries=upstream.max_retries,
            max_retry_wait_s=upstream.max_retry_wait_s,
            proxy_url=self._at_start.proxy.get_secret_value() if self._demo is None else "",
        )

    def _routes(self, settings: Settings) -> list[RouteOptions]:
        if self._demo is not None:
            return []
        return [
            RouteOptions(
                route.name,
                route.base_url or self._at_start.base_url,
                "" if (key := settings.route_key(route)) is None else key.get_secret_value(),
                route.weight,
                route.models,
            )
            for route in settings.upstream.route
        ]

    def _handle_signals(self) -> None:
        if self._supervisor is not None:
            self._supervisor.listen(self._obey)
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup, Terminal())

    def _obey(self, order: Order) -> None:
        """Do what the supervisor says, which counts the signals."""
        match order:
            case Order.DRAIN:
                # Else the operator asked this worker to drain all, and it stops as soon as it has answered.
                if self.accepting.state is not AcceptState.DRAINING:
                    self._drain_from_now_on()
            case Order.FORCE:
                self._force_requested.set()
            case Order.RELOAD:
                self._config.reload(self._apply)

    def _on_hangup(self, terminal: Terminal) -> None:
        """Reload; but if the terminal that the daemon was started at is gone, drain."""
        if not terminal.is_gone():
            self._config.reload(self._apply)
        elif not self._stop_requested.is_set():
            _log.warning("the terminal was closed: stopping")
            self.request_stop()

    def request_stop(self) -> None:
        """Begin to drain; on a second request, end the open streams at once."""
        if self._stop_requested.is_set():
            self._force_requested.set()
        self._drain_from_now_on()

    def _drain_from_now_on(self) -> None:
        self.accepting.drain()
        self._stop_requested.set()

    async def _drain(self) -> None:
        """Accept nothing new, let the open streams finish, and end those that do not."""
        self._listener.stop_accepting()
        timeout_s = self._config.current.server.drain_timeout_s
        self._manager.stopping(timeout_s + _LAST_LINES_S + _CLOSING_S)
        if len(self.streams):
            _log.warning("draining: %d streams open, at most %g s", len(self.streams), timeout_s)
        drained = asyncio.create_task(self._slots.wait_until_free(timeout_s), name="drain")
        forced = asyncio.create_task(self._force_requested.wait(), name="second stop request")
        await asyncio.wait((drained, forced), return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, forced):
            task.cancel()
        await asyncio.gather(drained, forced, return_exceptions=True)
        left = self.streams.stop_all(
            RelayError(ErrorCode.DRAINING, "This relay is stopping and could not wait longer for the answer.")
        )
        if left:
            _log.warning("draining: ended %d streams that were still open", left)
        is_forced = self._force_requested.is_set()
        await self._slots.wait_until_free(_FORCED_LAST_LINES_S if is_forced else _LAST_LINES_S)

    async def stop(self) -> int:
        """Close everything; open streams must have ended. Return the exit status."""
        await self._config.close()
        await self._listener.close()
        self._disconnects.close()
        self._recorder.flush()
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


def _chat_rules(settings: Settings) -> ChatRules:
    return ChatRules(
        default_model=settings.chat.default_model,
        allowed_models=frozenset(settings.chat.allowed_models),
        max_tokens_limit=settings.chat.max_tokens_limit,
        ask_usage=settings.upstream.include_usage,
        aliases=settings.aliases,
    )


def _alert_options(settings: Settings) -> AlertOptions:
    alerts = settings.alerts
    return AlertOptions(
        alerts.command,
        Thresholds(
            error_percent=alerts.error_percent,
            error_min_requests=alerts.error_min_requests,
            bound_percent=alerts.bound_percent,
            disk_free_mib=alerts.disk_free_mib,
        ),
    )


def _pricing(settings: Settings) -> Pricing:
    return Pricing(
        {
            model: Price(
                price.input, price.input if price.cached_input is None else price.cached_input, price.output
            )
            for model, price in settings.prices.items()
        }
    )


def _v1_rules(settings: Settings) -> V1Rules:
    return V1Rules(
        enabled=settings.v1.enabled,
        allow=settings.v1.allow,
        max_body_bytes=settings.v1.max_body_bytes,
    )


def _stream_limits(settings: Settings) -> StreamLimits:
    return StreamLimits(
        heartbeat_s=settings.chat.heartbeat_s,
        first_token_timeout_s=settings.upstream.first_token_timeout_s,
        idle_timeout_s=settings.upstream.idle_timeout_s,
        total_timeout_s=settings.upstream.total_timeout_s,
    )


def public_url(host: str, port: int, *, tls: bool) -> str:
    """Return the URL of a listening address."""
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def new_boot_id() -> str:
    """Return a name for one run of the daemon."""
    return uuid.uuid4().hex[:12]
