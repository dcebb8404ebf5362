"""What operators did, each with its place in the log, and what each was answered."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial

import msgspec
from msgspec.structs import asdict, replace

from relayd.state.columns import storable_text
from relayd.state.database import Transaction
from relayd.state.engine import Connection, as_state_errors
from relayd.state.errors import BadChange, IdempotencyMismatch
from relayd.state.records import Audited, AuditEntry, Note, Peer, utc_text
from relayd.state.writer import Writer

_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,200}")


class Audit:
    """The operators' actions on the running daemon; changes of keys add their own rows."""

    def __init__(self, writer: Writer, generation: Callable[[], int], clock: Callable[[], float]) -> None:
        self._writer = writer
        self._generation = generation
        self._clock = clock

    async def record(
        self,
        action: str,
        result: str,
        *,
        peer: Peer,
        key_ids: tuple[str, ...] = (),
        detail: str | None = None,
    ) -> AuditEntry:
        """Put an action on disk; return the entry with its place in the log.

        Raises:
            StateError: the disk refuses.
        """
        entry = AuditEntry(
            at=utc_text(self._clock()),
            action=action,
            result=result,
            generation=self._generation(),
            key_ids=key_ids,
            detail=detail,
        )
        with as_state_errors(self._writer.engine):
            return await asyncio.wrap_future(
                self._writer.submit(partial(append_audit, peer=peer, entry=entry))
            )

    async def note(self, note: Note, *, peer: Peer, idempotency_key: str) -> AuditEntry:
        """Put an operator's note on disk, once for each idempotency key; return its entry.

        Raises:
            RingError: the idempotency key is malformed, or was used for another change.
            StateError: the disk refuses.
        """
        entry = AuditEntry(
            at=utc_text(self._clock()),
            action="note",
            result="done",
            generation=self._generation(),
            client=note.client,
            key_ids=note.key_ids,
            detail=note.text,
        )
        change = f"note {msgspec.json.encode(note).decode()}"
        work = partial(_append_once, peer=peer, entry=entry, key=idempotency_key, change=change)
        with as_state_errors(self._writer.engine):
            return await asyncio.wrap_future(self._writer.submit(work))


def _append_once(
    transaction: Transaction, peer: Peer, entry: AuditEntry, key: str, change: str
) -> AuditEntry:
    transaction.lock()
    reply = recall(transaction.connection, key, change)
    if reply is not None:
        return msgspec.json.decode(reply, type=AuditEntry)
    entry = append_audit(transaction, peer, entry)
    remember(transaction.connection, key, change, msgspec.json.encode(entry).decode(), entry.at)
    return entry


def append_audit(transaction: Transaction, peer: Peer, entry: AuditEntry) -> AuditEntry:
    """Add an audit row and its event to a transaction; return the entry with its place in the log."""
    entry = replace(
        entry,
        seq=transaction.next_seq(),
        boot_id=transaction.boot_id,
        uid=peer.uid,
        pid=peer.pid,
        login=peer.login,
        client=None if entry.client is None else storable_text(entry.client),
        key_ids=tuple(map(storable_text, entry.key_ids)),
        detail=None if entry.detail is None else storable_text(entry.detail),
    )
    transaction.connection.execute(
        _INSERT, asdict(entry) | {"key_ids": msgspec.json.encode(entry.key_ids).decode()}
    )
    transaction.events.append(Audited(entry.seq, entry.boot_id, entry))
    return entry


def recall(connection: Connection, key: str, change: str) -> str | None:
    """Return the reply to the same change under this key; None if the key is new.

    Raises:
        BadChange: the key is not 1 to 200 visible ASCII characters.
        IdempotencyMismatch: it was used for another change.
    """
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise BadChange("An Idempotency-Key has 1 to 200 visible ASCII characters.")
    row = connection.execute("SELECT change, reply FROM idempotency WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    known, reply = row
    if known != storable_text(change):
        raise IdempotencyMismatch(
            f"This Idempotency-Key was used for another change ({known}); each change needs a new one."
        )
    return str(reply)


def remember(connection: Connection, key: str, change: str, reply: str, now: str) -> None:
    """Keep the reply to a change, as part of its transaction."""
    connection.execute(
        "INSERT INTO idempotency (key, change, reply, created_at) VALUES (?, ?, ?, ?)",
        (key, storable_text(change), reply, now),
    )


_FIELDS = AuditEntry.__struct_fields__
_INSERT = f"INSERT INTO audit ({', '.join(_FIELDS)}) VALUES (:{', :'.join(_FIELDS)})"  # noqa: S608 - own columns
