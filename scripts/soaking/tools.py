"""Attack tools that others wrote, where they are installed."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from soaking.row import Row, Seen
from tests.e2e.daemon import KEY, Daemon
from tests.support.siege import Ordinary, Usage, besieged, ordinary, ordinary_during, provider
from tests.wire import HOST

_TOOL = "slowhttptest"
# The tool has no option for a header; what follows the cookie is one.
_WITH_KEY = ("-j", f"a=b\r\nAuthorization: {KEY}")
_ATTACKS = {
    "slow headers": ("/chat", "-H", "-i", "2", "-x", "24"),
    "slow bodies": ("/chat", "-B", "-i", "2", "-x", "24", *_WITH_KEY),
    "slow bodies without a key": ("/chat", "-B", "-i", "2", "-x", "24"),
    "slow readers of the page": ("/", "-X", "-w", "10", "-y", "20", "-n", "2", "-z", "32"),
}
_ATTACK_S = 60
_GONE_S = 15.0
_LOOK_EVERY_S = 0.05
_CLIENTS = 20
_OTHERS = 60
"""More descriptors than this above the base are the attacker's: ordinary clients have two each."""
_SURELY_HELD = 20
"""So many more, and the attack has begun. Of its one address 64 are left where no key was shown."""


async def slowhttptest(home: Path, size: float) -> Seen:
    """Debian's slowhttptest with 1,000 connections of each kind: when the daemon is rid of them."""
    if shutil.which(_TOOL) is None:
        return Seen(f"not run: there is no {_TOOL} here; try `apt-get install {_TOOL}`", held=False)
    number, words, held = round(1000 * size), [], True
    # It attacks from the loopback address, which would pass for a proxy.
    settings = {"server.trusted_proxies": []}
    with provider() as base_url, besieged(home, base_url, settings) as daemon:
        await ordinary(daemon.port, _CLIENTS, 5)
        for name, (path, *arguments) in _ATTACKS.items():
            calm = await ordinary(daemon.port, _CLIENTS, 30)
            gone_s, seen = await _attacked(daemon, number, path, arguments)
            p99, was = seen.percentile(99), calm.percentile(99)
            words.append(f"{name}: gone after {gone_s:.1f} s, p99 {p99:.0f} ms, before {was:.0f} ms")
            held = held and 0 < gone_s <= _GONE_S and p99 <= 2 * was and not seen.wrong
    return Seen(f"{number} each; {'; '.join(words)}", held=held)


async def _attacked(daemon: Daemon, number: int, path: str, arguments: list[str]) -> tuple[float, Ordinary]:
    """How long it held connections that it should not, and what others saw meanwhile."""
    base = Usage.of(daemon.pid).descriptors
    with tempfile.TemporaryDirectory() as folder:
        tool = await asyncio.create_subprocess_exec(
            *(_TOOL, "-c", str(number), "-r", str(number), "-l", str(_ATTACK_S)),
            *("-u", f"http://{HOST}:{daemon.port}{path}", *arguments),
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ended = asyncio.create_task(tool.wait(), name="the tool's end")
        attack = asyncio.create_task(_held_s(daemon.pid, base, ended), name="attack")
        try:
            seen = await ordinary_during(daemon.port, _CLIENTS, attack)
            return await attack, seen
        finally:
            with suppress(ProcessLookupError):
                tool.kill()
            await ended


async def _held_s(pid: int, base: int, ended: asyncio.Future[int]) -> float:
    """From the first connections' coming to the last one's going; 0 where none was held."""
    began = 0.0
    while not ended.done():
        now, more = time.monotonic(), Usage.of(pid).descriptors - base
        if not began and more > _OTHERS + _SURELY_HELD:
            began = now
        elif began and more <= _OTHERS:
            return now - began
        await asyncio.sleep(_LOOK_EVERY_S)
    return time.monotonic() - began if began else 0.0


ROWS: tuple[Row, ...] = (slowhttptest,)
