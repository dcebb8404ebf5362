"""What breaks under a relay while it is used, and what its clients and its operator notice of it.

`trial` checks what must hold in each of these cases.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from tests.cluster.harness import Machine, eventually_told, machines, trial
from tests.load.harness import fill, small_disk
from tests.support.postgres import Postgres

pytestmark = [pytest.mark.timeout(seconds=600), pytest.mark.usefixtures("only_large")]


async def test_one_machine_is_killed_and_one_stands_still(relay: list[Machine], streams: int) -> None:
    """Streams of the third are whole. It records what the others left open as ended by a crash, once."""
    killed, frozen, other = relay
    async with (
        trial(relay, streams, strict=True) as under_trial,
        under_trial.changes.outage(killed, frozen, silent=True),
    ):
        under_trial.kill(killed)
        await under_trial.freeze(frozen)
        await under_trial.load.more(killed, end="refused")
        await under_trial.load.more(other)

        async def recorded() -> bool:
            page = await other.admin.requests(where="outcome=crashed", limit=1000)
            return len({record.boot_id for record in page.records}) == 2

        await eventually_told(recorded)
        await under_trial.start(killed)
        frozen.signal(signal.SIGCONT)
        await under_trial.changes.known_to(frozen)


@pytest.mark.parametrize(
    ("stop", "start"), [(Postgres.kill, Postgres.start), (Postgres.freeze, Postgres.thaw)]
)
async def test_the_database_does_not_answer(
    relay: list[Machine],
    streams: int,
    postgres: Postgres,
    stop: Callable[[Postgres], None],
    start: Callable[[Postgres], None],
) -> None:
    """Streams and keys do not notice it, clients with bounds are refused, and all is well afterwards.

    For one that stands still, the kernel takes connections, and what is sent to it.
    """
    async with trial(relay, streams, strict=True) as under_trial, under_trial.changes.outage(*relay):
        await asyncio.to_thread(stop, postgres)
        await under_trial.without_database()
        await asyncio.to_thread(start, postgres)
        await under_trial.connected()


async def test_a_standby_takes_over(tmp_path: Path, streams: int) -> None:
    """With synchronous replication, it has all that was acknowledged."""
    with Postgres() as primary:
        name = primary.create_database()
        with (
            primary.standby() as standby,
            machines(tmp_path, 3, {"state.url": primary.url(name, other=standby)}) as relay,
        ):
            async with trial(relay, streams, strict=True) as under_trial, under_trial.changes.outage(*relay):
                await asyncio.to_thread(primary.kill)
                await under_trial.without_database()
                await asyncio.to_thread(standby.promote)
                await under_trial.connected()


@pytest.fixture
def small_postgres(tmp_path: Path) -> Iterator[tuple[Postgres, Path]]:
    """A server on a disk of its own, and a file there that may fill it."""
    tmp_path.chmod(0o711)  # the server is another user's process
    with small_disk(tmp_path / "disk", 256) as disk:
        disk.chmod(0o755)
        with Postgres(disk) as server:
            yield server, disk / "ballast"


async def test_the_disk_of_the_database_is_full(
    tmp_path: Path, streams: int, small_postgres: tuple[Postgres, Path]
) -> None:
    """As without a database; PostgreSQL ends when its log cannot grow, and is started when there is space."""
    server, ballast = small_postgres
    with machines(tmp_path, 3, {"state.url": server.url(server.create_database())}) as relay:
        async with trial(relay, streams, strict=True) as under_trial, under_trial.changes.outage(*relay):
            await asyncio.to_thread(fill, ballast)
            await asyncio.to_thread(_fill_log, server)
            await under_trial.without_database()
            ballast.unlink()
            await asyncio.to_thread(server.start)
            await under_trial.connected()


async def test_a_worker_is_killed(tmp_path: Path, streams: int) -> None:
    """Its streams break, no other does, and no connection is refused; another one takes its place."""
    # Whether all workers serve is told at this level, which is waited for.
    with machines(tmp_path, 1, {"server.workers": 2, "log.level": "info"}) as relay:
        async with trial(relay, streams, strict=True) as under_trial:
            await under_trial.kill_worker(relay[0])
            await under_trial.load.more(*relay, end="whole")

            async def replaced() -> bool:
                return len((await relay[0].admin.instances()).instances) == 2

            await eventually_told(replaced)


def _fill_log(server: Postgres) -> None:
    """Write ahead until the server fails: it has some room in files that it made before."""
    with suppress(psycopg.Error):
        while True:
            server.execute("SELECT pg_logical_emit_message(false, 'relayd', repeat('x', 1048576))")
