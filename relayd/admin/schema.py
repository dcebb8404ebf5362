"""What goes over the admin socket, as types: the server encodes them, every client decodes them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

from relayd.alerts.alert import Alert, AlertKind, Alerts, Severity
from relayd.files import DATABASE

# Under these names the command line and the terminal app, which import only `relayd.admin`, know the log.
from relayd.relay.accepting import AcceptState
from relayd.state.calendar import Window, start_of
from relayd.state.columns import REQUEST_FIELDS, FilterField, fields_of
from relayd.state.errors import OutcomeUnknown
from relayd.state.filter import Fields, Filter, FilterError, parse_filter, quoted
from relayd.state.keys import holds_key
from relayd.state.records import (
    LIVE_STATES,
    Audited,
    AuditEntry,
    AuditPage,
    Client,
    ClientChangeResult,
    DiskUse,
    Ended,
    Gap,
    Instance,
    InstanceRing,
    KeyChangeResult,
    KeyInfo,
    KeyState,
    KeyUser,
    KeyUsers,
    LogContents,
    LogEvent,
    Lost,
    Note,
    Outcome,
    Phase,
    RecordedError,
    RequestPage,
    RequestRecord,
    Started,
    UsageSource,
    epoch_s,
    utc_text,
)

PROTOCOL = "1"
"""Counts the changes of this file that an older program on the other side could not read."""
PROTOCOL_HEADER = "Relayd-Admin"
"""In every answer; a question that carries another number is refused."""
VERSION_MISMATCH = "version_mismatch"
"""The code of that refusal."""
OUTCOME_UNKNOWN = OutcomeUnknown.code
"""The code of an answer to a change that the database may have made, or not."""


class StreamProgress(msgspec.Struct, kw_only=True, frozen=True):
    """Where one open stream is. Times are milliseconds before `Progress.at`."""

    id: str
    client: str | None
    key_id: str | None
    ip: str
    model: str | None
    phase: Phase
    waiting_for: str
    """`upstream` or `client`."""
    age_ms: int
    deltas: int
    bytes_out: int
    stalled_ms: int
    last_delta_ms: int | None
    """Since the last delta; None before the first."""
    first_token_ms: int | None = None
    """After its start; None before the first delta."""
    instance: str = ""
    """The name of the instance that relays it."""


class Hello(msgspec.Struct, tag_field="event", tag="hello", frozen=True):
    """The first event of every connection; `seq` is the newest in the log."""

    boot_id: str
    version: str
    seq: int


class Progress(msgspec.Struct, tag_field="event", tag="progress", frozen=True):
    """Once a second while anything is in flight, and once more when nothing is. Not part of the log."""

    at: str
    streams: list[StreamProgress]


Event = Hello | Started | Ended | Audited | Lost | Gap | Progress
"""Every line that `GET /events` can send."""


class StreamCounts(msgspec.Struct, frozen=True):
    """Open streams by phase."""

    connecting: int = 0
    waiting: int = 0
    streaming: int = 0


class Rates(msgspec.Struct, kw_only=True, frozen=True):
    """What the last minutes looked like; percentiles are None without samples."""

    requests_1m: int
    deltas_per_s: float
    """Over the last five seconds."""
    errors_5m: int
    first_token_p50_ms: int | None
    first_token_p95_ms: int | None


class LogHealth(msgspec.Struct, kw_only=True, frozen=True):
    """The request log: what waits for the disk, what was lost, and why it fails now if it does."""

    queued: int
    lost: int
    error: str | None


class RingSummary(msgspec.Struct, kw_only=True, frozen=True):
    """The key ring at a glance."""

    generation: int
    active: int
    retiring: int
    next_expiry_at: str | None


class DaemonFacts(msgspec.Struct, kw_only=True, frozen=True):
    """What does not change while the daemon runs."""

    boot_id: str
    started_at: str
    address: str
    """Where clients are served, as a URL."""
    upstream: str
    """Where models are asked, as a URL without credentials."""
    demo: bool
    state_dir: str
    instance: str = ""
    """The name of this process among those that share the relay: the host's, with `-2` for worker 2."""
    worker: int | None = None
    """The number of this worker, from 1; None if the daemon is a single process."""


class EngineKind(StrEnum):
    """What keeps the state."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


class EngineStatus(msgspec.Struct, kw_only=True, frozen=True):
    """The database, and whether it answers this instance."""

    kind: EngineKind
    where: str
    """The path of the file, or host, port and name of the database."""
    ok: bool = True
    error: str | None = None
    """What is wrong, in words for the operator; None if it is well."""
    latency_ms: float | None = None
    """How long the last look at a shared database took; None if there is none, or it is not well."""


class InstanceCounts(msgspec.Struct, frozen=True):
    """How many instances serve this relay, and how many of them have the newest keys and clients."""

    live: int = 1
    have_ring: int = 1


class InstanceInfo(Instance, kw_only=True, frozen=True):
    """One process that serves this relay. Of another one, all is as of its last heartbeat."""

    has_ring: bool = True
    """Whether the newest ring is in force there."""
    is_self: bool = msgspec.field(name="self", default=False)
    """Whether this is the instance that answers."""

    @property
    def host(self) -> str:
        """The name without the number of the worker."""
        return self.name if self.worker is None else self.name.removesuffix(f"-{self.worker}")

    def stops_with(self, other: InstanceInfo) -> bool:
        """Return whether both are the same, or workers of one machine: a drain stops these together."""
        are_workers = self.worker is not None and other.worker is not None
        return self.boot_id == other.boot_id or (
            are_workers and (self.host, self.address) == (other.host, other.address)
        )


class InstanceList(msgspec.Struct, frozen=True):
    """`GET /instances`: all that are live, by name; `generation` is that of the newest ring."""

    generation: int
    instances: list[InstanceInfo]


class RouteState(StrEnum):
    """Whether requests go to a route."""

    OK = "ok"
    COOLING = "cooling"


class CoolingModel(msgspec.Struct, frozen=True):
    """A model that a route is not asked for until a UTC time."""

    model: str
    until: str


class RouteStatus(msgspec.Struct, kw_only=True, frozen=True):
    """One provider key or address, and whether it works."""

    name: str
    base_url: str
    state: RouteState
    until: str | None = None
    """When a cooling route is tried again."""
    error: str | None = None
    """What it failed with last, in words."""
    models: list[CoolingModel] = []
    requests: int = 0
    """Since the daemon started, or the route was configured."""
    failures: int = 0
    """Those of them that made it cool down, or would have."""


class PeriodUse(msgspec.Struct, frozen=True):
    """What was used, or reserved, in one minute, day or month of the server's time zone."""

    requests: int = 0
    tokens: int = 0
    cost_usd: float = 0.0


class Status(DaemonFacts, kw_only=True, frozen=True):
    """`GET /status`."""

    version: str
    pid: int
    uptime_s: int
    intake: AcceptState
    seq: int
    streams: StreamCounts
    max_streams: int
    """The limits of all instances together."""
    drain_timeout_s: float
    grace_s: float | None = None
    """Of a rotation that names none; an older daemon doesn't send it."""
    rates: Rates
    log: LogHealth
    disk: DiskUse | None
    """None if the database is another machine's."""
    ring: RingSummary
    routes: list[RouteStatus] = []
    today: PeriodUse | None = None
    """What all clients together have used; None if it can't be read now."""
    month: PeriodUse | None = None
    first_key: str | None = None
    """Where the first key waits in plain text, and until when; None if it does not."""
    engine: EngineStatus = EngineStatus(kind=EngineKind.SQLITE, where="")
    """An older daemon doesn't send it."""
    instances: InstanceCounts = InstanceCounts()
    silent: tuple[str, ...] = ()
    """Live instances that did not answer within a second. Their figures are missing here, and a pause, a
    resume or a drain reaches them later, if at all."""
    alerts: list[Alert] = []
    """What is wrong now, the newest first."""

    @property
    def database(self) -> Path | None:
        """The path of the daemon's database; None if it is a server."""
        return Path(self.state_dir) / DATABASE if self.engine.kind is EngineKind.SQLITE else None


class Reloaded(msgspec.Struct, frozen=True):
    """The answer to `POST /reload`: what the configuration changed, in words without any secret."""

    changed: list[str] = []
    """What is in force now."""
    waiting: list[str] = []
    """Keys whose new value is in force only after a restart."""
    notes: list[str] = []
    """What is new and worth knowing."""
    error: str | None = None
    """Why nothing changed."""
    failed: list[str] = []
    """Other instances where nothing changed, each with its reason."""


class Applies(StrEnum):
    """What puts a new value of a setting in force."""

    RELOAD = "reload"
    RESTART = "restart"


class Setting(msgspec.Struct, kw_only=True, frozen=True):
    """One key of the configuration, or one row of a table in it, in words without any secret."""

    name: str
    """Its dotted name, such as `server.port`; that of a row is `aliases."gpt-3.5-turbo"`."""
    value: str
    """What is in force, as relayd.toml has it; of a secret, `set (32 characters)` or `not set`."""
    source: str
    """Where it was set: `default`, `relayd.toml:12`, `.env:3 SERVER_PORT`, `key file /etc/relayd/key`."""
    is_default: bool
    applies: Applies
    about: str
    variable: str
    """The environment variable that sets it; empty if none does."""
    default: str
    """Empty if the machine decides, and for secrets and tables."""
    new_value: str | None = None
    """What its sources say now, if that is something else."""
    new_source: str | None = None


class LastReload(msgspec.Struct, frozen=True):
    """When the configuration was read again, and what that led to in this process."""

    at: str
    report: Reloaded


class ConfigReport(msgspec.Struct, kw_only=True, frozen=True):
    """The settings in force in one process, and what their sources say by now."""

    file: str | None
    """The relayd.toml that was read, if there is one."""
    read_at: str
    """When the settings were read that are in force: at the start, or by a reload."""
    settings: list[Setting]
    warnings: list[str]
    """What works, but is probably not intended."""
    problems: list[str]
    """Why a reload would change nothing now, each with its place."""
    last_reload: LastReload | None


class ProcessHealth(msgspec.Struct, kw_only=True, frozen=True):
    """A process, and what it takes of its machine."""

    instance: str
    boot_id: str
    version: str
    pid: int
    uptime_s: int
    memory_bytes: int
    open_files: int
    max_open_files: int | None
    """None: without a limit."""


class Configuration(ConfigReport, kw_only=True, frozen=True):
    """`GET /config`: of the instance that answers."""

    log: LogContents | None
    """None if it can't be read now."""
    process: ProcessHealth


class Ring(msgspec.Struct, frozen=True):
    """`GET /keys`; `generation` is also the ETag that a change names in If-Match."""

    generation: int
    keys: list[KeyInfo]


class KeyChange(KeyChangeResult, frozen=True):
    """The answer to every change of the ring, sent only after it is on disk."""

    cut: int = 0
    """How many open streams a revoke ended."""
    instances: tuple[InstanceRing, ...] = ()
    """The live instances, by name; a change is waited for at most one second."""


class ClientInfo(Client, kw_only=True, frozen=True):
    """A client with its bounds, and what it has used of them."""

    keys: tuple[str, ...] = ()
    """The ids of its live keys."""
    open_streams: int = 0
    last_used_at: str | None = None
    minute: PeriodUse = PeriodUse()
    today: PeriodUse = PeriodUse()
    month: PeriodUse = PeriodUse()


class Clients(msgspec.Struct, frozen=True):
    """`GET /clients`; `generation` is that of the ring, which a change names in If-Match."""

    generation: int
    clients: list[ClientInfo]


class UsageSums(msgspec.Struct, kw_only=True, frozen=True):
    """Requests, and the tokens and money that they used."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Those of the prompts' tokens that came from the provider's cache."""
    completion_tokens: int = 0
    cost_usd: float = 0.0
    estimated: int = 0
    """How many of the requests ended without the provider's own counts."""
    unpriced: int = 0
    """How many of them used tokens and cost nothing: a model without a price, or one that is free."""


class UsageRow(UsageSums, kw_only=True, frozen=True):
    """The sums of one client, model, day or key."""

    name: str


class Usage(msgspec.Struct, frozen=True):
    """`GET /usage?by=client|model|day|key&since=&until=&client=&key=&model=`.

    Days are those of the server's time zone.
    """

    by: str
    since: str
    until: str
    rows: list[UsageRow]
    total: UsageSums
    day_ends_at: str | None = None
    """When the daily bounds begin again; an older daemon doesn't send it."""
    month_ends_at: str | None = None
    """The same of the monthly ones."""


class ClientChange(ClientChangeResult, frozen=True):
    """The answer to every change of a client, sent only after it is on disk."""

    cut: int = 0
    """How many open streams a removal ended."""
    instances: tuple[InstanceRing, ...] = ()
    """The live instances, by name; a change is waited for at most one second."""


class ErrorDetail(msgspec.Struct, frozen=True):
    """A refusal: a code for programs, a sentence for people."""

    code: str
    message: str


class ErrorReply(msgspec.Struct, frozen=True):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetail


class FoundKey(msgspec.Struct, frozen=True):
    """`GET /keys/find?digest=`: the key with this SHA-256 digest, live or dead; None if there is none."""

    key: KeyInfo | None


class AddKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /keys`: a new key for a client, or the operator's own one."""

    client: str
    secret: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(client={self.client!r})"


class RotateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /keys/{id}/rotate`; without a grace, `keys.grace_s` of the configuration."""

    grace_s: float | None = None


class ExtendKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /keys/{id}/extend`: moves the end later by this many seconds."""

    by_s: float


class Drain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /drain`: the instance of this name, or all of them."""

    instance: str | None = None


class RevokeKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /keys/{id}/revoke`."""

    cut: bool = False
