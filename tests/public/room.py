"""The public side in the test's own loop: real sockets, a demo upstream, and records kept in a list."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from relayd.public.address import ClientAddress
from relayd.public.admission import Admission
from relayd.public.app import PublicApp
from relayd.public.chatrequest import ChatRules
from relayd.public.connections import Connections
from relayd.public.cors import Cors
from relayd.public.exchange import PublicSide
from relayd.public.hangup import HangupWatch
from relayd.public.largehead import LargeHeads
from relayd.public.listener import Listener, bind
from relayd.public.penalty import Penalties
from relayd.public.root import Page, load_page
from relayd.public.service import ChatService
from relayd.public.tls import TlsFiles
from relayd.relay.intake import Intake
from relayd.relay.ledger import Ledger
from relayd.relay.probe import Probe
from relayd.relay.registry import Registry
from relayd.relay.stream import StreamLimits
from relayd.relay.upstream import Upstream, UpstreamOptions
from relayd.state.records import RequestRecord
from tests.support.upstream import FaultUpstream
from tests.wire import HOST, Reply, ask, body, until

KEY = "a-key-that-works-here"
PROVIDER_KEY = "provider-key-of-the-tests"


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose key it is."""

    key_id: str = "key00001"
    client: str = "default"


DEAD_KEY = "a-key-that-was-revoked"


class OneKey:
    """A ring of one key, which notes each use."""

    def __init__(self) -> None:
        self.uses: list[tuple[str, str]] = []
        self.trouble: Exception | None = None
        """What a look at a key meets from now on."""

    def verify(self, presented: bytes) -> Holder | None:
        """The holder of the one key."""
        if self.trouble is not None:
            raise self.trouble
        return Holder() if presented == KEY.encode() else None

    def former(self, presented: bytes) -> Holder | None:
        """The holder of the one dead key."""
        return Holder("key00000", "gone") if presented == DEAD_KEY.encode() else None

    def used(self, key_id: str, ip: str) -> None:
        """Note it."""
        self.uses.append((key_id, ip))


class Book:
    """A request log in memory."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed: list[RequestRecord] = []

    def started(self, record: RequestRecord) -> None:
        """A request starts."""
        self.opened.append(record.id)

    def ended(self, record: RequestRecord) -> None:
        """A request has ended; it must have been open, and not have ended before."""
        assert record.id in self.opened
        assert all(known.id != record.id for known in self.closed)
        self.closed.append(record)

    async def record(self, n: int = 0) -> RequestRecord:
        """The record that ended as number `n`, from 0."""
        await until(lambda: len(self.closed) > n)
        return self.closed[n]


@dataclass(slots=True)
class Room:
    """What a test works with."""

    port: int
    demo: FaultUpstream
    intake: Intake
    registry: Registry
    listener: Listener
    connections: Connections
    penalties: Penalties
    keys: OneKey = field(default_factory=OneKey)
    book: Book = field(default_factory=Book)

    async def admitted(self, n: int = 0) -> None:
        """Wait until request `n`, from 0, was admitted."""
        await until(lambda: len(self.keys.uses) > n)

    async def ask(self, model: str | None = "demo", **fields: object) -> Reply:
        """One chat with the key that works."""
        return await ask(self.port, KEY, body(model, **fields))


@dataclass(frozen=True, slots=True)
class Setup:
    """What a test may choose."""

    limits: StreamLimits = field(default_factory=StreamLimits)
    rules: ChatRules = field(default_factory=lambda: ChatRules(default_model="demo"))
    origins: Sequence[str] = ("*",)
    max_body_bytes: int = 1 << 20
    max_streams: int = 100
    max_streams_per_address: int = 100
    max_connections: int = 1000
    trusted_proxies: Sequence[str] = ("127.0.0.1",)
    tls: TlsFiles | None = None
    header_timeout_s: float = 10.0
    body_timeout_s: float = 10.0
    write_timeout_s: float = 10.0
    send_buffer_bytes: int = 0
    """How much the kernel takes for a client that does not read; 0 leaves it to the kernel."""
    page: Page | None = field(default_factory=load_page)
    upstream: Callable[[str], Upstream] = lambda base_url: Upstream(
        PROVIDER_KEY, UpstreamOptions(base_url, max_retries=0)
    )
    """Makes the provider's client from the demo's base URL."""


@asynccontextmanager
async def public_room(setup: Setup | None = None) -> AsyncIterator[Room]:
    """Open the room; everything in it is closed on leaving."""
    setup = setup or Setup()
    intake, keys, book, hangups = Intake(), OneKey(), Book(), HangupWatch()
    registry = Registry(max_streams=setup.max_streams, max_streams_per_address=setup.max_streams_per_address)
    async with FaultUpstream(PROVIDER_KEY) as demo:
        upstream = setup.upstream(demo.base_url)
        service = ChatService(
            boot_id="boot",
            admission=Admission(keys, intake, registry, setup.max_body_bytes),
            registry=registry,
            ledger=Ledger(book),
            upstream=upstream,
            hangups=hangups,
            rules=lambda: setup.rules,
            limits=setup.limits,
            probe=Probe(setup.limits),
            body_timeout_s=setup.body_timeout_s,
            write_timeout_s=setup.write_timeout_s,
        )
        public = PublicSide(Cors(setup.origins), ClientAddress(setup.trusted_proxies))
        app = PublicApp(public, service, intake, setup.page)
        sockets = bind(HOST, 0)
        if setup.send_buffer_bytes:
            # Accepted sockets inherit it.
            sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, setup.send_buffer_bytes)
        connections = Connections(lambda: setup.max_connections, is_proxy=public.address.is_proxy)
        listener = Listener(
            app,
            sockets,
            header_timeout_s=setup.header_timeout_s,
            connections=connections,
            refuse_large=LargeHeads(public.cors, public.address, service.ledger, "boot").refuse,
            tls=setup.tls,
        )
        listener.start()
        try:
            yield Room(
                listener.address[1],
                demo,
                intake,
                registry,
                listener,
                connections,
                service.penalties,
                keys,
                book,
            )
        finally:
            await listener.close()
            await service.close()
            hangups.close()
            await upstream.close()
