"""The row `tui`: the operator's app at 80x24, alone on the measured core; its daemon is on the load's."""

from __future__ import annotations

import itertools
import random
import statistics
import subprocess
import time

import httpx2

from benchmark.relays import KEY, OPENAI_BODY, OPENAI_PATH, environment
from benchmark.rows import HOST, Figures, Run, is_served, ring, rotate
from benchmark.terminal import Terminal

_STARTS = 3
_SCREENS = (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8")
_TO_A_KEY = (b"4", b"\r", b"j", b"\r")
"""The clients, the keys of the first one, its key that counts down, all about that."""
_KEY_S = 0.5
_DRAWN_S = 2.0
_AT_REST_S = 8.0
_LOAD = {"workers": 210, "every_ms": 200, "deltas": 1, "interval_ms": 0, "for_s": 15}
"""1,050 requests a second; each is an event when it starts, and one when it ends."""
_LINE_BYTES_A_S = 4000
_A_MINUTE = {"workers": 7, "every_ms": 6000, "deltas": 60, "interval_ms": 50, "for_s": 90}
"""70 requests a minute, of which each takes three seconds."""
_ANSWERS = (
    (b"2", b"[2 In flight"),
    (b"4", b"[4 Clients"),
    (b"3", b"[3 Stats"),
    (b"7", b"[7 Usage"),
    (b"5", b"[5 Audit"),
    (b"8", b"[8 Config"),
    (b"1", b"[1 Requests"),
    (b" ", b"FROZEN"),
    (b" ", b"FOLLOW"),
    (b"?", b"Requests (this screen)"),
    (b"\x1b", b"[1 Requests"),
)
"""Keys, and by what the screen shows that it has acted on each."""
_STOPWATCHES = 3
_TIMEOUT_S = 30.0


def terminal(run: Run) -> Figures:
    """Measure the app from its start to a key that is refused."""
    painted_s = []
    for _ in range(_STARTS):
        with _app(run) as app:
            app.until(b"Requests")
            painted_s.append(app.age_s)
    figures = {"tui: ms from the start to the first paint": statistics.median(painted_s) * 1000}
    rotate(run.admin_socket, *ring(run.admin_socket), grace_s=3600)
    # On /v1 the daemon has more time for the load, and for the provider, on the same core.
    run.target |= {"path": OPENAI_PATH, "body": OPENAI_BODY}
    return figures | _at_rest(run) | _under_load(run) | _on_a_slow_line(run) | _stopwatch(run)


def _app(run: Run, line_bytes_a_s: int | None = None) -> Terminal:
    """Start the app; it remembers its last screen in its home."""
    command = [run.start.command[0], "-m", "tui", "--socket", str(run.admin_socket)]
    env = environment(run.start) | {"HOME": str(run.bench.folder("home"))}
    return Terminal(command, env, run.bench.cores.measured, line_bytes_a_s)


def _at_rest(run: Run) -> Figures:
    """Look at each screen while a key counts down, and at that key."""
    costs = []
    with _app(run) as app:
        app.until(b"LIVE")
        for keys in (*((screen,) for screen in _SCREENS), _TO_A_KEY):
            for key in keys:
                app.press(key)
                app.watch(_KEY_S)
            app.watch(_DRAWN_S)
            costs.append(app.watch(_AT_REST_S))
    return {
        "tui: % CPU at rest, a key counting down": 100 * max(cost.cpu for cost in costs),
        "tui: % CPU at rest, on that key's own screen": 100 * costs[-1].cpu,
        "tui: bytes/s at rest, a key counting down": max(cost.bytes_a_s for cost in costs),
    }


def _under_load(run: Run) -> Figures:
    """Move the cursor while events come all the time."""
    waits_ms: list[float] = []
    with _app(run) as app:
        app.until(b"LIVE")
        run.play({"workers": 32, "deltas": 1, "interval_ms": 0, "for_s": 0.1})
        # The list stands still while the cursor is inside it, so that every key moves the cursor.
        app.press(b"kkkk")
        app.watch(_KEY_S)
        before_s = app.cpu_s()
        result, daemon_s = run.play(_LOAD, lambda: waits_ms.append(app.key_to_cursor_ms()))
        app_s = app.cpu_s() - before_s
        mib = app.resident_mib()
    events = 2 * result["complete"]
    return {
        "tui: events/s under load": events / result["seconds"],
        "tui: CPU µs of the app an event": app_s * 1e6 / events,
        "tui: CPU µs of the daemon an event": daemon_s * 1e6 / events,
        "tui: ms from a key to the screen, p50": statistics.median(waits_ms),
        "tui: ms from a key to the screen, p99": statistics.quantiles(waits_ms, n=100)[98],
        "tui: resident MiB after the load": mib,
    }


def _on_a_slow_line(run: Run) -> Figures:
    """Press a key every second or two, over a line that takes a second for a whole screen."""
    answers, waits_ms = itertools.cycle(_ANSWERS), []
    with _app(run, _LINE_BYTES_A_S) as app:

        def press() -> None:
            app.watch(random.uniform(1.0, 2.0))  # noqa: S311 - nothing secret
            waits_ms.append(app.answer_ms(*next(answers)))

        app.until(b"FOLLOW")
        run.play(_A_MINUTE, press)
    return {
        "tui: keys pressed over a line of 4 kB/s": len(waits_ms),
        "tui: ms to the answer of a key at 4 kB/s, median": statistics.median(waits_ms),
        "tui: ms to the answer of a key at 4 kB/s, worst": max(waits_ms),
    }


def _stopwatch(run: Run) -> Figures:
    """Revoke the key of a daemon, then one that is found by its text; a machine types without a pause."""
    launched_s, found_s = [], []
    for _ in range(_STOPWATCHES):
        with run.bench.running(run.relay, run.bench.cores.load) as daemon:
            launched_s.append(_from_launch(daemon))
            found_s.append(_from_w(daemon))
    return {
        "tui: s from launch to a refused key, 7 keys": statistics.median(launched_s),
        "tui: s from W to a refused key, 4 keys and a paste": statistics.median(found_s),
    }


def _from_launch(daemon: Run) -> float:
    """Launch the app and revoke the only key; return how many seconds later it is refused."""
    _, key_id = ring(daemon.admin_socket)
    with _app(daemon) as app:
        app.until(b"LIVE")
        app.press(b"K")
        app.until(b"rotate")
        app.press(b"!")
        app.until(b"for the key of")
        app.press(key_id[-4:].encode())
        app.until(b"Ends the active key")
        app.press(b"\r")
        _until_refused(daemon, app, KEY)
        return app.age_s


def _from_w(daemon: Run) -> float:
    """Paste a key of another client and revoke it; return how many seconds after W it is refused."""
    add = [*daemon.start.command[:-1], "keys", "add", "web", "--socket", str(daemon.admin_socket)]
    added = subprocess.run(
        add, env=environment(daemon.start), check=True, capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    key = added.stdout.split()[-1]
    with _app(daemon) as app:
        app.until(b"LIVE")
        app.watch(_KEY_S)
        began_s = time.monotonic()
        app.press(b"W")
        app.until(b"any key")
        app.press(b"\x1b[200~%b\x1b[201~" % key.encode())
        app.until("•".encode() * 8)
        app.press(b"\r")
        app.until(b"It is the key")
        app.press(b"!")
        app.until(b"now?")
        app.press(b"y")
        _until_refused(daemon, app, key)
        return time.monotonic() - began_s


def _until_refused(daemon: Run, app: Terminal, key: str) -> None:
    deadline_s = time.monotonic() + _TIMEOUT_S
    with httpx2.Client(base_url=f"http://{HOST}:{daemon.target['port']}") as http:
        while is_served(http, key):
            if time.monotonic() > deadline_s:
                raise TimeoutError("The key that was revoked is still served.")
            app.watch(0.01)
