"""`relayd.supervisor`: real processes that say what they are told; what they serve is proved in tests/e2e."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.test_systemd import Manager
from tests.wire import PATIENCE_S

# Each worker tells its start and its orders, and ends when it is told to. `trouble` is a file that a test
# writes: what a worker of the same number does instead of serving.
_PROGRAM = """
import asyncio, logging, os, signal, sys, time
from pathlib import Path
from relayd import supervisor
from relayd.supervisor import Order, Supervisor, SupervisorLink
from relayd.systemd import ServiceManager

def tell(text):
    os.write(1, f"{text}\\n".encode())

async def serve(link):
    ended = asyncio.Event()

    def trouble():
        try:
            return Path(f"trouble-{link.number}").read_text()
        except FileNotFoundError:
            return ""

    tell(f"start {link.number} pid={os.getpid()} first={link.is_first} reloaded={link.has_reloaded}")
    tell(f"at {link.number} {time.monotonic()}")
    if trouble() == "dies":
        return 3
    while trouble() == "hangs":
        await asyncio.sleep(0.01)
    def obey(order):
        tell(f"{order.value} {link.number}")
        if order is Order.RELOAD:
            link.reloading()
            link.reloaded()
            return
        if order is Order.DRAIN:
            link.stopping(10)
        if order is Order.FORCE or trouble() in {"", "closes"}:
            ended.set()
    link.listen(obey)
    # As when the operator asks one of them.
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, obey, Order.RELOAD)
    link.ready("here")
    if trouble() == "drains":
        link.stopping(10)
    await ended.wait()
    link.close()
    while trouble() == "closes":
        await asyncio.sleep(0.01)
    return 1 if trouble() == "fails" else 0

forks = 0
fork = os.fork

def fork_or_fail():
    global forks
    forks += 1
    tell(f"fork {forks} at {time.monotonic()}")
    if forks in {2, 3} and Path("no-processes").exists():
        raise OSError("no more processes")
    return fork()

os.fork = fork_or_fail
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
supervisor._MAX_RESTART_DELAY_S = float(sys.argv[2])
supervisor._MAX_START_S = float(sys.argv[3])
sys.exit(
    Supervisor(
        2,
        lambda link: asyncio.run(serve(link)),
        [],
        ServiceManager.from_environment(os.environ),
        watchdog_s=float(sys.argv[1]) or None,
    ).run()
)
"""


class _Program:
    """A supervisor with two workers, and what all of them tell."""

    def __init__(self, process: asyncio.subprocess.Process, home: Path) -> None:
        self.process = process
        self.home = home
        self.told: list[str] = []
        self.pids: dict[int, int] = {}
        """Of the newest process of each worker, by its number."""

    async def until(self, pattern: str) -> re.Match[str]:
        """Return the match of the next line that matches; those before are kept in `told`."""
        while True:
            found = re.fullmatch(pattern, await self.line())
            if found is not None:
                return found

    async def line(self) -> str:
        """Return the next line; empty at the end of all processes."""
        assert self.process.stdout is not None
        line = (await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)).decode().rstrip("\n")
        self.told.append(line)
        if started := re.match(r"start (\d) pid=(\d+)", line):
            self.pids[int(started[1])] = int(started[2])
        return line

    async def serving(self) -> None:
        """Wait until all workers serve."""
        await self.until("all 2 workers serve")

    async def rest(self) -> list[str]:
        """Return all lines, when no process is left."""
        while await self.line():
            pass
        return self.told

    async def status(self) -> int:
        """Return the exit status of the supervisor."""
        return await asyncio.wait_for(self.process.wait(), PATIENCE_S)

    def trouble(self, number: int, what: str) -> None:
        """Let the worker of a number do something else than serve."""
        (self.home / f"trouble-{number}").write_text(what)

    def well(self, number: int) -> None:
        """End the trouble of the worker of a number."""
        (self.home / f"trouble-{number}").unlink()

    async def replaced_by_one_that_hangs(self, number: int) -> str:
        """Kill the worker of a number; return what is told of the start of the next, which does not serve."""
        self.trouble(number, "hangs")
        os.kill(self.pids[number], signal.SIGKILL)
        return (await self.until(rf"start {number} .*"))[0]


@asynccontextmanager
async def _program(
    home: Path,
    *,
    watchdog_s: float = 0.0,
    restart_delay_s: float = 30.0,
    max_start_s: float = 60.0,
    env: dict[str, str] | None = None,
    trouble: tuple[int, str] | None = None,
) -> AsyncIterator[_Program]:
    """Run the supervisor; `trouble` is in place before its first worker."""
    if trouble is not None:
        (home / f"trouble-{trouble[0]}").write_text(trouble[1])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM, str(watchdog_s), str(restart_delay_s), str(max_start_s)),
        cwd=home,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), **(env or {})},
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    program = _Program(process, home)
    try:
        yield program
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await program.rest()
        await program.status()


async def test_the_first_worker_opens_what_all_share(tmp_path: Path) -> None:
    """The second starts when the first serves; systemd hears of it when both do."""
    address = f"@relayd-test-workers-{os.getpid()}"
    with Manager(address) as manager:
        async with _program(tmp_path, env={"NOTIFY_SOCKET": address}) as program:
            await program.until(r"start 1 pid=\d+ first=True reloaded=False")
            await program.until(r"worker 1 \(pid \d+\) serves")
            await program.until(r"start 2 pid=\d+ first=False reloaded=False")
            await program.serving()
            assert await manager.message() == ["READY=1", "STATUS=here"]


async def test_a_first_worker_that_fails_ends_the_start(tmp_path: Path) -> None:
    """It has told why; no other is started, and the status says that it failed."""
    async with _program(tmp_path, trouble=(1, "dies")) as program:
        told = await program.rest()
        assert await program.status() == 1
    assert [line.split()[1] for line in told if line.startswith("start")] == ["1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to_all", [False, True], ids=["the supervisor", "all processes"])
async def test_a_signal_counts_once(tmp_path: Path, number: signal.Signals, *, to_all: bool) -> None:
    """A terminal's Ctrl-C and a service manager's SIGTERM come to every process; each drains once."""
    async with _program(tmp_path) as program:
        await program.serving()
        (os.killpg if to_all else os.kill)(program.process.pid, number)
        told = await program.rest()
        assert await program.status() == 0
    assert sorted(line for line in told if line.startswith(("drain", "force"))) == ["drain 1", "drain 2"]


async def test_a_second_signal_forces_the_end(tmp_path: Path) -> None:
    """Of all workers that have not ended; the first signal has reached each of them."""
    async with _program(tmp_path, trouble=(1, "stays")) as program:
        await program.serving()
        program.process.send_signal(signal.SIGTERM)
        await program.until("drain 1")
        program.process.send_signal(signal.SIGTERM)
        await program.until("force 1")
        await program.rest()
        assert await program.status() == 0


async def test_a_worker_that_drains_by_itself_drains_all(tmp_path: Path) -> None:
    """The operator told one of them; systemd hears how long it may take."""
    address = f"@relayd-test-drain-{os.getpid()}"
    with Manager(address) as manager:
        async with _program(tmp_path, env={"NOTIFY_SOCKET": address}, trouble=(2, "drains")) as program:
            await program.until("drain 1")
            assert "EXTEND_TIMEOUT_USEC=10000000" in await manager.until("STOPPING=1")


async def test_the_status_tells_that_a_worker_failed_to_drain(tmp_path: Path) -> None:
    """As it does for a single process."""
    async with _program(tmp_path) as program:
        await program.serving()
        program.trouble(2, "fails")
        program.process.send_signal(signal.SIGTERM)
        await program.until("drain 2")
        program.process.send_signal(signal.SIGTERM)
        await program.rest()
        assert await program.status() == 1


async def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    """At once, under its number; the other stays, and the log tells what happened."""
    async with _program(tmp_path) as program:
        await program.serving()
        before = dict(program.pids)
        os.kill(before[2], signal.SIGKILL)
        await program.until(rf"worker 2 \(pid {before[2]}\) ended with SIGKILL; another takes its place")
        await program.until(r"worker 2 \(pid \d+\) serves")
        assert program.pids[2] != before[2]
        program.process.send_signal(signal.SIGTERM)
        await program.rest()
        assert program.pids[1] == before[1]
        assert await program.status() == 0


async def test_a_worker_that_dies_again_and_again_is_replaced_later_and_later(tmp_path: Path) -> None:
    """The first time at once, then after a second; meanwhile the other serves."""
    async with _program(tmp_path) as program:
        await program.serving()
        program.trouble(2, "dies")
        os.kill(program.pids[2], signal.SIGKILL)
        first = await program.until(r"at 2 (.*)")
        second = await program.until(r"at 2 (.*)")
        assert float(second[1]) - float(first[1]) >= 1.0
        program.well(2)
        await program.until(r"worker 2 \(pid \d+\) serves")


async def test_a_worker_that_cannot_be_forked_is_tried_later_and_later(tmp_path: Path) -> None:
    """A machine without free processes is not asked without a pause."""
    (tmp_path / "no-processes").touch()
    async with _program(tmp_path) as program:
        third = await program.until(r"fork 3 at (.*)")
        fourth = await program.until(r"fork 4 at (.*)")
        assert float(fourth[1]) - float(third[1]) >= 1.0
        await program.serving()


async def test_a_relay_that_cannot_start_any_worker_gives_up(tmp_path: Path) -> None:
    """So its service manager can act, and clients do not wait at a port that nothing serves."""
    async with _program(tmp_path, restart_delay_s=0.01) as program:
        await program.serving()
        for number in (1, 2):
            program.trouble(number, "dies")
        for pid in program.pids.values():
            os.kill(pid, signal.SIGKILL)
        await program.until("no worker can be started: giving up")
        await program.rest()
        assert await program.status() == 1


async def test_workers_drain_when_their_supervisor_dies(tmp_path: Path) -> None:
    """So the next one finds the state directory free after a while."""
    async with _program(tmp_path) as program:
        await program.serving()
        program.process.kill()
        told = await program.rest()
    assert {"drain 1", "drain 2"} <= set(told)


async def test_a_stuck_worker_is_killed_and_replaced(tmp_path: Path) -> None:
    """It gave no sign of life for half of the watchdog's period."""
    async with _program(tmp_path, watchdog_s=3.0) as program:
        await program.serving()
        os.kill(program.pids[2], signal.SIGSTOP)
        stuck = program.pids[2]
        await program.until(rf"worker 2 \(pid {stuck}\) is stuck: killing it")
        await program.until(r"worker 2 \(pid \d+\) serves")
        assert program.pids[2] != stuck


async def test_a_worker_that_hangs_before_it_serves_is_killed_and_replaced(tmp_path: Path) -> None:
    """A replacement has a minute, here less, to begin."""
    async with _program(tmp_path, watchdog_s=3.0, max_start_s=1.0) as program:
        await program.serving()
        await program.replaced_by_one_that_hangs(2)
        await program.until(rf"worker 2 \(pid {program.pids[2]}\) does not begin to serve: killing it")
        program.well(2)
        await program.until(r"worker 2 \(pid \d+\) serves")


async def test_a_worker_that_writes_its_last_records_is_not_stuck(tmp_path: Path) -> None:
    """It gives no signs of life any more, and is given the time to end."""
    address = f"@relayd-test-closes-{os.getpid()}"
    with Manager(address) as manager:
        async with _program(tmp_path, watchdog_s=1.5, env={"NOTIFY_SOCKET": address}) as program:
            await program.serving()
            program.trouble(2, "closes")
            program.process.send_signal(signal.SIGTERM)
            await program.until("drain 2")
            manager.forget()
            for _ in range(6):
                await manager.until("WATCHDOG=1")
            program.well(2)
            await program.rest()
            assert await program.status() == 0


async def test_the_watchdog_is_pinged_while_all_workers_live(tmp_path: Path) -> None:
    """So systemd knows that the relay is well."""
    address = f"@relayd-test-pings-{os.getpid()}"
    with Manager(address) as manager:
        async with _program(tmp_path, watchdog_s=1.0, env={"NOTIFY_SOCKET": address}) as program:
            await program.serving()
            await manager.until("READY=1")
            for _ in range(3):
                await manager.until("WATCHDOG=1")


async def test_a_reload_reaches_all_workers_also_those_that_come_later(tmp_path: Path) -> None:
    """The service manager hears that it begins, and that it is over when all have done it."""
    address = f"@relayd-test-reload-{os.getpid()}"
    with Manager(address) as manager:
        async with _program(tmp_path, env={"NOTIFY_SOCKET": address}) as program:
            await program.serving()
            await manager.until("READY=1")
            program.process.send_signal(signal.SIGHUP)
            for _ in range(2):
                await program.until(r"reload \d")
            await manager.until("RELOADING=1")
            assert await manager.until("READY=1") == ["READY=1"]
            os.kill(program.pids[1], signal.SIGKILL)
            await program.until(r"start 1 pid=\d+ first=False reloaded=True")
    assert {"reload 1", "reload 2"} <= set(program.told)


async def test_a_reload_is_over_when_also_a_worker_that_starts_has_done_it(tmp_path: Path) -> None:
    """The service manager hears one beginning and one end."""
    address = f"@relayd-test-reload-start-{os.getpid()}"
    with Manager(address) as manager:
        async with _program(tmp_path, env={"NOTIFY_SOCKET": address}) as program:
            await program.serving()
            await manager.until("READY=1")
            await program.replaced_by_one_that_hangs(2)
            program.process.send_signal(signal.SIGHUP)
            await program.until("reload 1")
            program.well(2)
            await program.until("reload 2")
            heard = [(await manager.message())[0] for _ in range(2)]
            program.process.send_signal(signal.SIGTERM)
            while heard[-1] != "STOPPING=1":
                heard.append((await manager.message())[0])
    assert heard == ["RELOADING=1", "READY=1", "STOPPING=1"]


async def test_a_reload_before_all_serve_is_no_readiness(tmp_path: Path) -> None:
    """The first that the service manager hears is that all serve."""
    address = f"@relayd-test-reload-early-{os.getpid()}"
    with Manager(address) as manager:
        async with _program(tmp_path, env={"NOTIFY_SOCKET": address}, trouble=(2, "hangs")) as program:
            await program.until(r"start 2 .*")
            program.process.send_signal(signal.SIGHUP)
            await program.until("reload 1")
            program.well(2)
            await program.serving()
            assert await manager.message() == ["READY=1", "STATUS=here"]


async def test_what_one_worker_is_asked_to_reload_reaches_one_that_starts(tmp_path: Path) -> None:
    """It was forked before, and cannot be asked by the others yet."""
    address = f"@relayd-test-reload-one-{os.getpid()}"
    with Manager(address) as manager:
        async with _program(tmp_path, env={"NOTIFY_SOCKET": address}) as program:
            await program.serving()
            await manager.until("READY=1")
            started = await program.replaced_by_one_that_hangs(2)
            assert started.endswith("reloaded=False")
            os.kill(program.pids[1], signal.SIGUSR1)
            await manager.until("RELOADING=1")
            program.well(2)
            await program.until("reload 2")
