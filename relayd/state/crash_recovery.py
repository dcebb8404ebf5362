"""Which daemons use the file, and the end of the requests that dead ones left open."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from relayd.state.columns import RECORD_JSON, to_row
from relayd.state.database import Database, Transaction
from relayd.state.records import Ended, Outcome, Phase, RequestRecord, utc_text
from relayd.state.request_log import upsert

_BOOTS_KEPT = 200
_records = msgspec.json.Decoder(list[RequestRecord])


@dataclass(frozen=True, slots=True)
class Process:
    """A process, distinct from any later one with the same pid."""

    pid: int
    start_ticks: int
    """When it started, in clock ticks since the machine did (proc_pid_stat(5), field 22)."""
    host_boot: str
    """The kernel's id of this start of the machine."""

    @classmethod
    def current(cls) -> Process:
        """Return this process."""
        pid = os.getpid()
        return cls(pid, _start_ticks(pid) or 0, _host_boot())

    def is_alive(self) -> bool:
        """Return whether it still runs on this machine."""
        return self.host_boot == _host_boot() and _start_ticks(self.pid) == self.start_ticks


class CrashRecovery:
    """Registers this daemon in the file, and closes the open requests of those that died as `crashed`."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._started_at = utc_text(clock())
        self._is_registered = False

    def run(self) -> None:
        """Register this daemon unless that is done, and close the open requests of dead ones.

        Raises:
            sqlite3.Error: nothing is done; call again.
        """
        dead = self._dead_with_open_requests()
        if self._is_registered and not dead:
            return
        with self._database.transaction(durable=False) as transaction:
            if not self._is_registered:
                self._register(transaction.connection)
            for boot_id in dead:
                _close_as_crashed(transaction, boot_id)
        self._is_registered = True

    def sign_off(self) -> None:
        """Note that this daemon ended in good order.

        Raises:
            sqlite3.Error: not recorded; the next start sees that the process is dead.
        """
        with self._database.transaction(durable=True) as transaction:
            transaction.connection.execute(
                "UPDATE boots SET stopped_at = ? WHERE boot_id = ?",
                (utc_text(self._clock()), self._database.boot_id),
            )

    def _register(self, connection: sqlite3.Connection) -> None:
        process = Process.current()
        connection.execute(
            "INSERT INTO boots (boot_id, pid, start_ticks, host_boot, started_at) VALUES (?, ?, ?, ?, ?)",
            (
                self._database.boot_id,
                process.pid,
                process.start_ticks,
                process.host_boot,
                self._started_at,
            ),
        )
        connection.execute(
            "DELETE FROM boots WHERE boot_id NOT IN"
            " (SELECT boot_id FROM boots ORDER BY started_at DESC LIMIT ?)",
            (_BOOTS_KEPT,),
        )

    def _dead_with_open_requests(self) -> list[str]:
        rows = self._database.connection.execute(
            "SELECT open.boot_id, pid, start_ticks, host_boot, stopped_at"
            " FROM (SELECT DISTINCT boot_id FROM requests WHERE end_seq IS NULL AND boot_id != ?) AS open"
            " LEFT JOIN boots USING (boot_id)",
            (self._database.boot_id,),
        )
        return [
            boot_id
            for boot_id, pid, start_ticks, host_boot, stopped_at in rows.fetchall()
            if pid is None or stopped_at is not None or not Process(pid, start_ticks, host_boot).is_alive()
        ]


def _close_as_crashed(transaction: Transaction, boot_id: str) -> None:
    # The time of death is not known, so the duration stays empty.
    (text,) = transaction.connection.execute(
        f"SELECT json_group_array({RECORD_JSON}) FROM requests"  # noqa: S608 - own columns
        " WHERE end_seq IS NULL AND boot_id = ?",
        (boot_id,),
    ).fetchone()
    rows = []
    for record in sorted(_records.decode(text), key=lambda record: record.seq):
        record.phase = Phase.DONE
        record.outcome = Outcome.CRASHED
        end_seq = transaction.next_seq()
        rows.append(to_row(record, record.seq, end_seq))
        transaction.events.append(Ended(end_seq, record.boot_id, record))
    upsert(transaction.connection, rows)


def _start_ticks(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold spaces and parentheses itself.
    return int(text.rpartition(")")[2].split()[19])


def _host_boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
