"""The facts that survive a restart, as the database keeps them and the admin API sends them.

A field of a request record is declared here and nowhere else: `columns` derives the table and its SQL
from the class, `filter` its terms.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache

import msgspec
from msgspec.structs import replace


class Phase(StrEnum):
    """Where a request is now."""

    CONNECTING = "connecting"
    WAITING = "waiting"
    STREAMING = "streaming"
    DONE = "done"


class Outcome(StrEnum):
    """How a request ended. `completed` is the only success."""

    COMPLETED = "completed"
    CLIENT_CLOSED = "client_closed"
    CLIENT_STALLED = "client_stalled"
    DENIED = "denied"
    REJECTED = "rejected"
    UPSTREAM_ERROR = "upstream_error"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    CRASHED = "crashed"


class UsageSource(StrEnum):
    """Where a request's token counts come from."""

    PROVIDER = "provider"
    ESTIMATE = "estimate"


class RecordedError(msgspec.Struct, frozen=True):
    """A failure as its client saw it: the code, and the sentence for people."""

    code: str
    message: str


class RequestStart(msgspec.Struct, kw_only=True):
    """What is known of a request when it is admitted or refused."""

    id: str
    boot_id: str
    started_at: str
    seq: int = 0
    """The place of its start in the log, given when the start is on disk; 0 until then."""
    client: str | None = None
    key_id: str | None = None
    ip: str = ""
    origin: str | None = None
    user_agent: str | None = None
    """At most 200 characters."""
    path: str = ""
    model: str | None = None


class RequestRecord(RequestStart, kw_only=True):
    """One request. No prompt, no reply and no key is ever in it.

    While the request runs, its stream is the only writer; the log keeps copies. Times are UTC with
    milliseconds (RFC 3339), durations are milliseconds, None means not known or not reached.
    """

    phase: Phase = Phase.CONNECTING
    status: int | None = None
    outcome: Outcome | None = None
    error: RecordedError | None = None
    connect_ms: int | None = None
    first_token_ms: int | None = None
    duration_ms: int | None = None
    stalled_ms: int = 0
    """Time spent waiting for the client to read."""
    deltas: int = 0
    bytes_out: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Those of the prompt's tokens that the provider had in its cache; they are cheaper."""
    completion_tokens: int | None = None
    cost_usd: float | None = None
    """None if the model has no price."""
    usage_source: UsageSource | None = None
    """None if nothing was used: the provider was not asked, or refused."""
    finish_reason: str | None = None
    upstream_request_id: str | None = None
    route: str | None = None
    """The name of the provider's key or address that answered; None if there is only one."""

    def as_started(self) -> RequestRecord:
        """Return the record with everything removed that only the end could know."""
        return RequestRecord(**{name: getattr(self, name) for name in RequestStart.__struct_fields__})


class RequestPage(msgspec.Struct, frozen=True):
    """Records, newest first; `before=next_before` asks for older ones, None at the end."""

    records: list[RequestRecord]
    next_before: int | None


class KeyState(StrEnum):
    """A key works while it is active or retiring; expired and revoked are final."""

    ACTIVE = "active"
    RETIRING = "retiring"
    EXPIRED = "expired"
    REVOKED = "revoked"


LIVE_STATES = frozenset({KeyState.ACTIVE, KeyState.RETIRING})


class KeyInfo(msgspec.Struct, kw_only=True, frozen=True):
    """All that is kept of a key besides its digest: never the key itself."""

    id: str
    client: str
    state: KeyState
    """As last stored; `as_of` has the state at a given time."""
    fingerprint: str
    """The first eight hex digits of the digest, to tell keys apart on a screen."""
    created_at: str
    expires_at: str | None = None
    """When a retiring key stops, or an expired one stopped."""
    revoked_at: str | None = None
    replaced_by: str | None = None
    """The id of the key that a rotation put in its place."""
    first_used_at: str | None = None
    first_used_ip: str | None = None
    last_used_at: str | None = None
    last_used_ip: str | None = None

    def as_of(self, now: str) -> KeyInfo:
        """Return the key at a UTC time: a retiring key past its end is expired, stored so or not."""
        if self.state is KeyState.RETIRING and (self.expires_at is None or self.expires_at <= now):
            return replace(self, state=KeyState.EXPIRED)
        return self


class KeyUser(msgspec.Struct, kw_only=True, frozen=True):
    """What one program at one address did with a key, as far as the log goes back."""

    ip: str
    user_agent: str | None
    first_at: str
    last_at: str
    requests: int
    """Those that were not refused."""
    refused: int
    requests_since: int
    """Those that were not refused, from the time on that was asked for."""


class KeyUsers(msgspec.Struct, kw_only=True, frozen=True):
    """Everybody who used a key, the latest first, and the sums over all of them."""

    users: list[KeyUser]
    count: int
    """How many there are; the latest are listed."""
    requests: int
    refused: int
    log_begins_at: str | None
    """When the oldest request of the log began, whatever its key; None if the log is empty."""


class KeyUse(msgspec.Struct, frozen=True):
    """When and from where a key was used first and last."""

    first_used_at: str
    first_used_ip: str
    last_used_at: str
    last_used_ip: str

    def joined(self, other: KeyUse) -> KeyUse:
        """Return the first and the last of both."""
        first = min(self, other, key=lambda use: use.first_used_at)
        last = max(other, self, key=lambda use: use.last_used_at)
        return KeyUse(first.first_used_at, first.first_used_ip, last.last_used_at, last.last_used_ip)


class Client(msgspec.Struct, kw_only=True, frozen=True):
    """The holder of keys, and the bounds of their use. None or an empty list: there is no such bound."""

    name: str
    note: str = ""
    created_at: str
    removed_at: str | None = None
    """None while the client exists; its name may be used again afterwards."""
    models: tuple[str, ...] = ()
    """Globs on the name of the model that the provider is asked for."""
    endpoints: tuple[str, ...] = ()
    """Globs on the path, such as `/chat` or `/v1/*`; empty: `/chat` and all that `/v1` opens."""
    origins: tuple[str, ...] = ()
    """Origins of web pages, such as `https://a.example`, exactly as browsers send them."""
    max_streams: int | None = None
    """Requests at once."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    max_output_tokens: int | None = None
    """The most that one answer may have."""
    usd_per_day: float | None = None
    usd_per_month: float | None = None
    expires_at: str | None = None
    """From this time on every key of the client is refused."""

    @property
    def has_money_bound(self) -> bool:
        """Return whether money is bounded over any time."""
        return self.usd_per_day is not None or self.usd_per_month is not None

    @property
    def has_usage_bound(self) -> bool:
        """Return whether tokens or money are bounded over any time."""
        tokens = (self.tokens_per_minute, self.tokens_per_day, self.tokens_per_month)
        return self.has_money_bound or any(bound is not None for bound in tokens)

    @property
    def bounded(self) -> bool:
        """Return whether a request has to be counted before the provider is asked."""
        return self.requests_per_minute is not None or self.has_usage_bound


class ChangeResult(msgspec.Struct, frozen=True):
    """The result of a change, which may carry a secret that no repr shows."""

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name != "secret")
        return f"{type(self).__name__}({', '.join(shown)})"


class KeyChangeResult(ChangeResult, frozen=True):
    """What a change of the key ring did, after it is on disk and in force."""

    generation: int
    key: KeyInfo
    """The key that the change made or touched."""
    old: KeyInfo | None = None
    """After rotate: the retiring key. After undo: the revoked one."""
    secret: str | None = None
    """The new key, once; never stored. None in every repeated answer, and if no key was made."""
    already_done: bool = False
    """True if this idempotency key had done its work before."""


class ClientChangeResult(ChangeResult, frozen=True):
    """What a change of a client did, after it is on disk and in force."""

    generation: int
    client: Client
    key: KeyInfo | None = None
    """The first key of a new client."""
    revoked: tuple[str, ...] = ()
    """The ids of the keys that ended with a removed client."""
    secret: str | None = None
    """The first key, once; never stored. None in every repeated answer."""
    already_done: bool = False
    """True if this idempotency key had done its work before."""


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One process of this relay, as the others know it."""

    boot_id: str
    name: str
    worker: int | None
    """Its number among the processes of its machine, from 1; None if it is the only one."""
    address: str
    """Where it serves clients, as a URL; empty until it does."""
    pid: int
    version: str
    started_at: str
    heartbeat_age_s: float
    """Since it last wrote to the database, by the clock of the database."""
    generation: int
    """Of the key ring that it has in force; -1 while that is not the one of the database."""
    intake: str
    """Whether it accepts requests: `live`, `paused` or `draining`."""
    streams: int
    """How many are open."""


class InstanceRing(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an instance has a change of the ring in force."""

    name: str
    boot_id: str
    generation: int
    has_it: bool


class Peer(msgspec.Struct, frozen=True):
    """The process that asked for a change over the admin socket (SO_PEERCRED)."""

    uid: int
    pid: int
    login: str


class AuditEntry(msgspec.Struct, kw_only=True, frozen=True):
    """One operator's action, kept in the same transaction as the change itself.

    Its place and the peer are filled in when it is stored.
    """

    seq: int = 0
    boot_id: str = ""
    at: str
    action: str
    """A change of keys (`fill`, `add`, `import`, `rotate`, `extend`, `undo`, `revoke`) or clients
    (`add_client`, `set_client`, `remove_client`), or `pause`, `resume`, `reload`, `drain` or `cancel`.
    `note` changes nothing."""
    result: str
    """`done`, or the code of the refusal."""
    uid: int = -1
    pid: int = -1
    login: str = ""
    client: str | None = None
    key_ids: tuple[str, ...] = ()
    generation: int = 0
    detail: str | None = None
    """For people: the grace, the new end, the id of a cancelled request, the text of a note."""


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /audit`: what an operator wants the others to know, such as `told web, Tuesday`."""

    text: str
    client: str | None = None
    """The client it is about."""
    key_ids: tuple[str, ...] = ()
    """The keys it is about."""


class AuditPage(msgspec.Struct, frozen=True):
    """Audit entries, newest first; `before=next_before` asks for older ones, None at the end."""

    entries: list[AuditEntry]
    next_before: int | None


# The events of the log, in one order without gaps. `seq` is given when the event is on disk, never
# before: every event that was published can be read again.


class Started(msgspec.Struct, tag_field="event", tag="started", frozen=True):
    """A request was admitted or refused; the record as it was then."""

    seq: int
    boot_id: str
    record: RequestRecord


class Ended(msgspec.Struct, tag_field="event", tag="ended", frozen=True):
    """A request ended; the whole record. `record.seq` is that of its start."""

    seq: int
    boot_id: str
    record: RequestRecord


class Audited(msgspec.Struct, tag_field="event", tag="audit", frozen=True):
    """An operator acted, or a key changed; `GET /keys` has the ring after it."""

    seq: int
    boot_id: str
    entry: AuditEntry


class Lost(msgspec.Struct, tag_field="event", tag="lost", frozen=True):
    """The log could not keep up or could not write: this many records are gone for good."""

    seq: int
    boot_id: str
    at: str
    count: int
    reason: str


LogEvent = Started | Ended | Audited | Lost
"""What has a place (`seq`) in the log."""


class Gap(msgspec.Struct, tag_field="event", tag="gap", frozen=True):
    """Events `first` to `last` are no longer kept (retention); what follows continues after `last`."""

    first: int
    last: int


class DiskUse(msgspec.Struct, frozen=True):
    """Bytes that the database and its WAL take, and bytes free beside them."""

    database_bytes: int
    free_bytes: int
    wal_bytes: int = 0
    """Those of the database that are in its WAL."""


class LogContents(msgspec.Struct, frozen=True):
    """How many requests the log holds, and when the oldest of them began; None if it is empty."""

    records: int
    oldest_at: str | None


def utc_text(epoch_s: float) -> str:
    """Return a Unix time in seconds as RFC 3339, UTC with milliseconds: `2026-01-31T23:59:59.999Z`."""
    ms = round(epoch_s * 1e6) // 1000
    return f"{_second_text(ms // 1000)}.{ms % 1000:03d}Z"


@lru_cache(8)
def _second_text(second: int) -> str:
    """Format the time up to the second; many requests start and end in the same one."""
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}"


def epoch_s(utc: str) -> float:
    """Return the Unix time in seconds of a text that `utc_text` made.

    Raises:
        ValueError: the text is not such a time.
    """
    return datetime.fromisoformat(utc).timestamp()
