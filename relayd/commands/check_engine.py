"""What `relayd check` and `relayd doctor` find about the PostgreSQL database of `state.url`."""

from __future__ import annotations

import ipaddress
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from relayd.findings import Finding, error, ok, warning
from relayd.state.engine import Connection, as_state_errors
from relayd.state.errors import StateError
from relayd.state.postgres import MIN_VERSION, Postgres, PostgresConnection
from relayd.state.schema import is_current

_ROUND_TRIPS = 5
_SLOW_MS = 10.0
_MAX_SKEW_S = 1.0


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a server says of itself and of this connection."""

    version: str
    major: int
    encoding: str
    is_standby: bool
    address: str | None
    """Of the server; None on a Unix socket."""
    is_encrypted: bool
    synchronous_commit: str
    fsync: str
    standbys: str
    """`synchronous_standby_names`."""
    schema: str | None
    """The one in which tables are made."""
    may_create: bool | None


_FACTS = """
    SELECT current_setting('server_version') AS version,
        CAST(current_setting('server_version_num') AS int) / 10000 AS major,
        current_setting('server_encoding') AS encoding,
        pg_is_in_recovery() AS is_standby,
        host(inet_server_addr()) AS address,
        (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS is_encrypted,
        current_setting('synchronous_commit') AS synchronous_commit,
        current_setting('fsync') AS fsync,
        current_setting('synchronous_standby_names') AS standbys,
        current_schema() AS schema,
        has_schema_privilege(current_schema(), 'CREATE') AS may_create
"""


def check_engine(engine: Postgres) -> Iterator[Finding]:
    """Connect and yield what is found, in the order in which a person would correct it. Blocks.

    Nothing is changed, and no finding holds the password.
    """
    try:
        with as_state_errors(engine), closing(PostgresConnection(engine, is_writer=False)) as connection:
            facts = _Facts(*connection.execute(_FACTS).fetchone())
            yield from _server(engine, facts)
            yield _latency(connection)
            yield _clock(connection)
            yield _durability(facts)
            yield _tables(connection, facts)
    except StateError as fault:
        if engine.is_standby():
            yield _standby(engine)
        else:
            yield error("database", str(fault), "")


def _standby(engine: Postgres) -> Finding:
    return error(
        "database",
        f"{engine.where} is a standby, which only reads.",
        "name the primary in state.url, or all servers",
    )


def _server(engine: Postgres, facts: _Facts) -> Iterator[Finding]:
    if facts.major < MIN_VERSION:
        remedy = f"relayd needs {MIN_VERSION} or newer"
        yield error("database", f"{engine.where} is PostgreSQL {facts.version}.", remedy)
    elif facts.encoding != "UTF8":
        remedy = "make another one: createdb --encoding=UTF8 --template=template0 NAME"
        yield error("database", f"The encoding of {engine.where} is {facts.encoding}.", remedy)
    elif facts.is_standby:
        yield _standby(engine)
    else:
        yield ok("database", f"{engine.where} is PostgreSQL {facts.version}.")
    is_local = facts.address is None or ipaddress.ip_address(facts.address).is_loopback
    if not is_local and not facts.is_encrypted:
        yield warning(
            "encryption",
            "The connection is not encrypted: the network can read the log, and pose as the database.",
            "add sslmode=verify-full to state.url, with sslrootcert if the authority is your own",
        )


def _latency(connection: Connection) -> Finding:
    times_s = []
    for _ in range(_ROUND_TRIPS):
        began_s = time.monotonic()
        connection.execute("SELECT 1")
        times_s.append(time.monotonic() - began_s)
    took_ms = statistics.median(times_s) * 1000
    message = f"A round trip takes {took_ms:.1f} ms."
    if took_ms > _SLOW_MS:
        remedy = "each request of a client with bounds waits for several: put relayd near its database"
        return warning("latency", message, remedy)
    return ok("latency", message)


def _clock(connection: Connection) -> Finding:
    began_s = time.time()
    theirs_s = float(connection.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()[0])
    ended_s = time.time()
    # Somewhere between the two, the server read its clock.
    skew_s = max(began_s - theirs_s, theirs_s - ended_s, 0.0)
    if skew_s > _MAX_SKEW_S:
        remedy = "synchronise both: a key's end, a minute and a day are those of each machine's own clock"
        return warning("clock", f"The database's clock and this one differ by {skew_s:.0f} s.", remedy)
    return ok("clock", "The database's clock and this one agree.")


def _durability(facts: _Facts) -> Finding:
    if "off" in (facts.fsync, facts.synchronous_commit):
        name = "fsync" if facts.fsync == "off" else "synchronous_commit"
        return warning(
            "durability",
            f"{name} is off: a crash of the server may lose changes of keys that relayd has acknowledged.",
            f"set {name} = on",
        )
    if facts.standbys and facts.synchronous_commit != "local":
        return ok("durability", "A commit is on the disks of this server and of a standby.")
    return ok("durability", "A commit is on the disk of this server; no standby has to have it as well.")


def _tables(connection: Connection, facts: _Facts) -> Finding:
    try:
        if is_current(connection):
            return ok("tables", "They are as this relayd needs them.")
    except StateError as fault:
        return error("tables", str(fault), "")
    if facts.schema is None:
        remedy = "create one of them, or let its search_path name one that is there, such as public"
        return error("tables", "No schema of the role's search_path is there.", remedy)
    if not facts.may_create:
        remedy = "make the role in state.url the owner of the database: ALTER DATABASE NAME OWNER TO ROLE"
        return error("tables", f"relayd may not make tables in the schema {facts.schema}.", remedy)
    return ok("tables", "relayd makes them, or brings them up to date, when it starts.")
