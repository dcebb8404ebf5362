"""Which daemons used the file, and what those that died left open."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import msgspec

from relayd.state.events import Ended
from relayd.state.records import Outcome, Phase, RequestRecord
from relayd.state.rows import RECORD_JSON, to_row, upsert
from relayd.state.transactor import Tx

_KEPT = 200
_records = msgspec.json.Decoder(list[RequestRecord])


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told apart from any later one with the same pid."""

    pid: int
    start_ticks: int
    """When it started, in clock ticks since the machine did (proc_pid_stat(5), field 22)."""
    host_boot: str
    """The kernel's id of this start of the machine."""

    @classmethod
    def current(cls) -> Process:
        """This process."""
        pid = os.getpid()
        return cls(pid, _start_ticks(pid) or 0, _host_boot())

    def is_alive(self) -> bool:
        """Whether it still runs on this machine."""
        return self.host_boot == _host_boot() and _start_ticks(self.pid) == self.start_ticks


def register(tx: Tx, started_at: str) -> None:
    """Note that this process uses the file, and close what dead ones left open."""
    process = Process.current()
    tx.connection.execute(
        "INSERT INTO boots (boot_id, pid, start_ticks, host_boot, started_at) VALUES (?, ?, ?, ?, ?)",
        (tx.boot_id, process.pid, process.start_ticks, process.host_boot, started_at),
    )
    for boot_id in _dead_with_open_requests(tx.connection):
        _close_as_crashed(tx, boot_id)
    tx.connection.execute(
        "DELETE FROM boots WHERE boot_id NOT IN (SELECT boot_id FROM boots ORDER BY started_at DESC LIMIT ?)",
        (_KEPT,),
    )


def sign_off(tx: Tx, stopped_at: str) -> None:
    """Note that this process ends in good order."""
    tx.connection.execute("UPDATE boots SET stopped_at = ? WHERE boot_id = ?", (stopped_at, tx.boot_id))


def _dead_with_open_requests(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT open.boot_id, pid, start_ticks, host_boot, stopped_at"
        " FROM (SELECT DISTINCT boot_id FROM requests WHERE end_seq IS NULL) AS open"
        " LEFT JOIN boots USING (boot_id)"
    )
    return [
        boot_id
        for boot_id, pid, start_ticks, host_boot, stopped_at in rows.fetchall()
        if pid is None or stopped_at is not None or not Process(pid, start_ticks, host_boot).is_alive()
    ]


def _close_as_crashed(tx: Tx, boot_id: str) -> None:
    # Nothing tells when the process died, so the duration stays unknown.
    (text,) = tx.connection.execute(
        f"SELECT '[' || coalesce(group_concat({RECORD_JSON}, ','), '') || ']'"  # noqa: S608 - own columns
        " FROM requests WHERE end_seq IS NULL AND boot_id = ?",
        (boot_id,),
    ).fetchone()
    rows = []
    for record in sorted(_records.decode(text), key=lambda record: record.seq):
        record.phase = Phase.DONE
        record.outcome = Outcome.CRASHED
        end = tx.next_seq()
        rows.append(to_row(record, record.seq, end))
        tx.events.append(Ended(end, record.boot_id, record))
    upsert(tx.connection, rows)


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
