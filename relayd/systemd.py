"""The service side of systemd: sockets passed in, readiness, the watchdog.

The protocols are sd_listen_fds(3) and sd_notify(3). Without systemd every call does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping

_log = logging.getLogger(__name__)

_FIRST_FD = 3
_MICROSECONDS = 1_000_000
_PINGS_A_PERIOD = 3
"""Two pings may be late or lost before systemd kills the process."""


class SystemdError(Exception):
    """What systemd passed cannot be used; the text says why."""


def inherited_sockets(env: Mapping[str, str]) -> list[socket.socket]:
    """Return the listening TCP sockets that systemd opened for this process; empty without systemd.

    Args:
        env: the environment, with LISTEN_PID and LISTEN_FDS; those of another process are ignored.

    Raises:
        SystemdError: one of the sockets does not listen on TCP.
    """
    if env.get("LISTEN_PID") != str(os.getpid()):
        return []
    number = env.get("LISTEN_FDS", "")
    if not number.isdecimal():
        raise SystemdError(
            f"LISTEN_FDS is {number!r}, but must be a number; start relayd by its socket unit."
        )
    return [_adopted(descriptor) for descriptor in range(_FIRST_FD, _FIRST_FD + int(number))]


def _adopted(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        is_tcp = sock.type == socket.SOCK_STREAM and sock.family in {socket.AF_INET, socket.AF_INET6}
    except OSError:
        listens = is_tcp = False
    if not listens or not is_tcp:
        raise SystemdError(
            f"Descriptor {descriptor} from systemd does not listen on TCP; relayd.socket takes "
            "ListenStream=<address>:<port>, with Accept=no."
        )
    sock.set_inheritable(False)
    sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
    return sock


class ServiceManager:
    """Notifies systemd of the service's state. Every message is one datagram, sent without waiting.

    Args:
        env: NOTIFY_SOCKET is the address; WATCHDOG_USEC and WATCHDOG_PID ask for watchdog pings.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        # "@" stands for the zero byte that begins an abstract address (unix(7)).
        address = env.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        if self._socket is not None:
            self._socket.setblocking(False)  # noqa: FBT003 - as above
        self._ping_every_s = _ping_every_s(env) if address else None
        self._timer: asyncio.TimerHandle | None = None

    def ready(self, status: str) -> None:
        """Say that work is accepted; from now on the event loop pings the watchdog."""
        self._send(f"READY=1\nSTATUS={status}")
        self._ping()

    def reloading(self) -> None:
        """Say that the configuration is being read again; `reloaded` follows."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """Say that it was read, whether it could be used or not."""
        self._send("READY=1")

    def stopping(self, within_s: float) -> None:
        """Say that the service stops, and may take this long."""
        self._send(f"STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC={round(within_s * _MICROSECONDS)}")

    def close(self) -> None:
        """Stop the pings and close the socket."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ping(self) -> None:
        if self._ping_every_s is None:
            return
        self._send("WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(self._ping_every_s, self._ping)

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            # A lost message must not end streams; without pings, systemd acts by itself.
            _log.warning("systemd was not notified of %r: %s", message.partition("\n")[0], error)


def _ping_every_s(env: Mapping[str, str]) -> float | None:
    """Return the watchdog's ping interval in seconds, or None."""
    period = env.get("WATCHDOG_USEC", "")
    if not period.isdecimal() or int(period) == 0:
        return None
    if env.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(period) / _MICROSECONDS / _PINGS_A_PERIOD
