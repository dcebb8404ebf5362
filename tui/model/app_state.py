"""Everything the app knows, and the one way events change it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from relayd.admin.schema import (
    LIVE_STATES,
    AcceptState,
    Audited,
    AuditEntry,
    AuditPage,
    ClientInfo,
    Clients,
    Configuration,
    Ended,
    Gap,
    InstanceList,
    KeyInfo,
    KeyState,
    KeyUsers,
    Lost,
    Progress,
    RequestRecord,
    Ring,
    Started,
    Status,
    Usage,
    epoch_s,
)
from tui.model.alerts import AlertList
from tui.model.evidence import Evidence
from tui.model.instances import still_serving
from tui.model.open_streams import OpenStreams
from tui.model.stats import Stats
from tui.model.store import Mark, MarkKind, RecordStore, record_key
from tui.model.text import printable_struct, printable_text
from tui.model.view import View

MAX_AUDIT = 5000
_HOUR_S = 3600


class Connection(StrEnum):
    """How the app stands to the daemon; what the header says first."""

    CONNECTING = "CONNECTING"
    LIVE = "LIVE"
    STALE = "STALE"
    DOWN = "DOWN"
    DENIED = "DENIED"
    MISMATCH = "VERSION MISMATCH"


@dataclass(slots=True)
class Asking:
    """A change that the daemon was asked for, and whose outcome is not known yet."""

    change: str
    """What it does, in words."""
    since_s: float
    lost: int = 0
    """How many answers were lost; each time it is sent again, with the same idempotency key."""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """Who used a key, and how much was used with it each day."""

    key_id: str
    users: KeyUsers
    by_day: Usage


class AppState:
    """The model behind every screen.

    Screens read it; only the feed writes it, but for `asking`, which belongs to `DaemonCommands`.
    """

    def __init__(self, keep: int) -> None:
        self.store = RecordStore(keep)
        self.open_streams = OpenStreams()
        self.view = View(self.store, self.open_streams.fill)
        self.stats = Stats()
        self.evidence = Evidence()
        self.status: Status | None = None
        self.ring = Ring(0, [])
        self.keys_by_client: dict[str, list[KeyInfo]] = {}
        """The keys of the ring; only clients that have or had one are in it."""
        self.clients: dict[str, ClientInfo] = {}
        """By name. Without a daemon only those are known that have keys, and not what they used."""
        self._clients_generation = 0
        self.clients_known = False
        """Whether the daemon has told of the clients."""
        self.instances: InstanceList | None = None
        """The processes that serve this relay; None until they are asked for."""
        self._boots: set[str] = set()
        """Of the processes that have served without a moment in which none of them did."""
        self.configuration: Configuration | None = None
        """Of the instance that answers; None until it is asked for."""
        self.usage_by_day: tuple[str, Usage] | None = None
        """The name of the client that was asked for last, and what it used each day."""
        self.key_use: KeyUse | None = None
        """Of the key that was asked for last."""
        self.audit: deque[AuditEntry] = deque(maxlen=MAX_AUDIT)
        """Newest first."""
        self.audit_complete = False
        """Whether no older entries can be loaded: there are none, or there is no room."""
        self.connection = Connection.CONNECTING
        self.problem = ""
        """Why there is no live contact, and what to do: sentences."""
        self.reads_disk = False
        """Whether history comes from the daemon's database, while no daemon answers."""
        self.no_history = "There is no database beside its socket to read history from."
        """Why it does not, as a sentence."""
        self.silent_since_s = 0.0
        """Since when nothing was heard, while STALE."""
        self.alerts = AlertList()
        self.asking: list[Asking] = []
        """The changes that wait for their answer, the oldest first."""
        self.boot_id = ""
        self.log_seq: int | None = None
        """The newest event applied; the next connection continues after it."""

    @property
    def state_word(self) -> str:
        """One word for the header: contact first, then what the daemon says of its intake."""
        if (
            self.connection is Connection.LIVE
            and self.status is not None
            and self.status.intake is not AcceptState.OPEN
        ):
            return self.status.intake.value.upper()
        return self.connection.value

    def set_connection(self, connection: Connection, problem: str = "") -> None:
        """Take over the state of the connection, and why it is not live."""
        self.connection, self.problem = connection, printable_text(problem, 1000)
        if connection in {Connection.STALE, Connection.DOWN} and self.status is not None:
            self.alerts.lose_contact(self.problem, time.time())
        elif connection is Connection.LIVE:
            self.alerts.regain_contact(time.time())

    def set_status(self, status: Status) -> None:
        """Take over the daemon's status."""
        self.status = printable_struct(status)
        self.alerts.update(self.status.alerts, time.time(), are_all_known=not self.status.silent)

    def set_ring(self, ring: Ring) -> None:
        """Take over the keys; an older ring than the known one is ignored."""
        if ring.generation < self.ring.generation and self.ring.keys:
            return
        self.ring = Ring(ring.generation, [printable_struct(key) for key in ring.keys])
        self.evidence.retire(self.ring.keys, self._recent())
        self.keys_by_client = {}
        for key in self.ring.keys:
            self.keys_by_client.setdefault(key.client, []).append(key)
            if key.client not in self.clients:
                self.clients[key.client] = ClientInfo(name=key.client, created_at=key.created_at)

    @property
    def generation(self) -> int:
        """The generation of what is known of keys and clients: the older one, as the two come apart."""
        return min(self.ring.generation, self._clients_generation)

    def set_clients(self, clients: Clients) -> None:
        """Take over the clients, and what they used."""
        self.clients = {client.name: printable_struct(client) for client in clients.clients}
        self._clients_generation = clients.generation
        self.clients_known = True

    def set_instances(self, instances: InstanceList) -> None:
        """Take over the processes that serve this relay."""
        self.instances = InstanceList(
            instances.generation, [printable_struct(instance) for instance in instances.instances]
        )
        self._boots = still_serving(self._boots, self._live_boots())

    def set_configuration(self, configuration: Configuration) -> None:
        """Take over the settings in force, and the health of their instance."""
        self.configuration = printable_struct(configuration)

    @property
    def is_shared(self) -> bool:
        """Whether several processes serve this relay."""
        return self.status is not None and self.status.instances.live > 1

    def set_key_use(self, key_id: str, users: KeyUsers, by_day: Usage) -> None:
        """Take over who used one key, and how much each day."""
        clean = [printable_struct(user) for user in users.users]
        self.key_use = KeyUse(key_id, msgspec.structs.replace(users, users=clean), by_day)

    def set_usage(self, client: str, usage: Usage) -> None:
        """Take over what one client used each day."""
        self.usage_by_day = (client, usage)

    def _recent(self) -> Iterator[RequestRecord]:
        for index in range(len(self.store) - 1, -1, -1):
            row = self.store.row_at(index)
            if isinstance(row, RequestRecord):
                yield row

    def live_keys(self, client: str) -> list[KeyInfo]:
        """Return the live keys of a client, the active one first."""
        keys = [key for key in self.keys_by_client.get(client, []) if key.state in LIVE_STATES]
        return sorted(keys, key=lambda key: (key.state is KeyState.ACTIVE, key.created_at), reverse=True)

    def active_key(self, client: str) -> KeyInfo | None:
        """Return the active key of a client, if it has one."""
        return next((key for key in self.live_keys(client) if key.state is KeyState.ACTIVE), None)

    def retiring(self) -> list[KeyInfo]:
        """Return the keys in their grace period, sorted by their end."""
        keys = [key for key in self.ring.keys if key.state is KeyState.RETIRING]
        return sorted(keys, key=lambda key: key.expires_at or "")

    def dead_keys_in_use(self, now_s: float) -> bool:
        """Return whether a retiring key is in use, or an ended key was sent in the last hour."""
        return self.evidence.straggler_count(self.ring.keys) > 0 or any(
            self.evidence.refused(key.id, now_s - _HOUR_S)
            for key in self.ring.keys
            if key.state not in LIVE_STATES
        )

    def new_boot(self, boot_id: str, seq: int, at_ms: int) -> None:
        """Say in the list that the relay was restarted, unless others served on meanwhile."""
        boot_id = printable_text(boot_id)
        if self.boot_id and boot_id != self.boot_id and self.boot_id not in self._boots:
            self.store.put_mark(seq, Mark(MarkKind.RESTART, at_ms))
            self.open_streams.clear()
        self.boot_id = boot_id

    def _live_boots(self) -> set[str]:
        """Return the boot ids of all processes that serve this relay, as far as they are known."""
        return set() if self.instances is None else {one.boot_id for one in self.instances.instances}

    def backlog(self, records: list[RequestRecord], *, count: bool = True) -> None:
        """Add a page of records from disk, newest first; with `count` they go into the statistics."""
        clean = [printable_struct(record) for record in records]
        if count:
            for record in clean:
                self._note_evidence(record)
        self.store.put_older(clean)
        for record in clean:
            if count:
                self.stats.add(record)
            if record.outcome is None and record.boot_id in {self.boot_id, *self._live_boots()}:
                self.open_streams.started(record)

    def started(self, event: Started) -> None:
        """Add a request that has started."""
        record = printable_struct(event.record)
        record.seq = record.seq or event.seq
        self._note_evidence(record)
        self.store.put(record)
        self.stats.add(record)
        self.open_streams.started(record)
        self._advance(event.seq)

    def ended(self, event: Ended) -> None:
        """Close a request that has ended."""
        record = printable_struct(event.record)
        if record.seq:
            # If the daemon had no room to log its start, this is the first that is heard of it.
            known = self.store.get(record_key(record.seq))
            if known is None:
                self.evidence.saw(record)
            elif isinstance(known, RequestRecord) and known.outcome is None:
                self.evidence.ended(record)
            self.store.put(record)
            self.stats.add(record)
        self.open_streams.ended(record.id)
        self._advance(event.seq)

    def _note_evidence(self, record: RequestRecord) -> None:
        """Count a request for its key's evidence once: to be called before the store takes it."""
        if not self.store.has(record_key(record.seq)):
            self.evidence.saw(record)

    def audited(self, event: Audited) -> None:
        """Add what an operator did."""
        self.audit.appendleft(printable_struct(event.entry))
        self._advance(event.seq)

    def set_audit(self, page: AuditPage) -> None:
        """Take over the newest page of the audit; older entries stay if nothing is missing in between."""
        oldest = page.entries[-1].seq if page.entries else 0
        known = {entry.seq for entry in self.audit}
        kept = [entry for entry in self.audit if entry.seq < oldest] if oldest in known else []
        if not kept:
            self.audit_complete = page.next_before is None
        entries = map(printable_struct, page.entries)
        self.audit = deque([*entries, *kept][:MAX_AUDIT], maxlen=MAX_AUDIT)

    def add_older_audit(self, page: AuditPage) -> None:
        """Take over the page before the oldest entry that is held."""
        room = MAX_AUDIT - len(self.audit)
        self.audit.extend(printable_struct(entry) for entry in page.entries[:room])
        self.audit_complete = page.next_before is None or room <= len(page.entries)

    def lost(self, event: Lost) -> None:
        """Mark where the daemon could not write some records."""
        at_ms = round(epoch_s(event.at) * 1000)
        mark = Mark(MarkKind.LOST, at_ms, count=event.count, reason=printable_text(event.reason))
        self.store.put_mark(event.seq, mark)
        self._advance(event.seq)

    def gap(self, event: Gap) -> None:
        """Mark where retention removed what this app has not seen."""
        self.store.put_mark(
            event.last + 1,
            Mark(MarkKind.EXPIRED, 0, event.first, event.last, event.last - event.first + 1),
        )
        self._advance(event.last)

    def progress(self, event: Progress) -> None:
        """Take over how far every open stream is."""
        self.open_streams.progress(event)
        self.view.judge_again(
            record_key(stream.seq) for stream in self.open_streams.streams.values() if stream.seq is not None
        )

    def _advance(self, seq: int) -> None:
        self.log_seq = max(seq, self.log_seq or 0)
