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
from typing import Self

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
    """Notifies a service manager of the service's state. Every message is one datagram, sent without waiting.

    Args:
        sock: where the messages go, non-blocking; closed here. None: nowhere.
        address: of the service manager, if the socket is not connected to it.
        ping_every_s: how often the event loop pings the watchdog; None: never.
    """

    def __init__(
        self, sock: socket.socket | None, address: str = "", *, ping_every_s: float | None = None
    ) -> None:
        self._socket = sock
        self._address = address
        self._ping_every_s = ping_every_s
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Self:
        """Return the notifier of systemd, if that started this process.

        Args:
            env: NOTIFY_SOCKET is the address; WATCHDOG_USEC and WATCHDOG_PID ask for watchdog pings.
        """
        address = env.get("NOTIFY_SOCKET", "")
        if not address:
            return cls(None)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.setblocking(False)  # noqa: FBT003 - as above
        period_s = watchdog_period_s(env)
        return cls(
            sock,
            # "@" stands for the zero byte that begins an abstract address (unix(7)).
            "\0" + address[1:] if address.startswith("@") else address,
            ping_every_s=None if period_s is None else period_s / _PINGS_A_PERIOD,
        )

    def ready(self, status: str) -> None:
        """Say that work is accepted; from now on the event loop pings the watchdog."""
        self.notify(f"READY=1\nSTATUS={status}")
        if self._ping_every_s is not None:
            self._ping(self._ping_every_s)

    def reloading(self) -> None:
        """Say that the configuration is being read again; `reloaded` follows."""
        self.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """Say that it was read, whether it could be used or not."""
        self.notify("READY=1")

    def stopping(self, within_s: float) -> None:
        """Say that the service stops, and may take this long."""
        self.notify(f"STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC={round(within_s * _MICROSECONDS)}")

    def close(self) -> None:
        """Stop the pings and close the socket."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ping(self) -> None:
        """Give the watchdog one sign of life."""
        self.notify("WATCHDOG=1")

    def _ping(self, every_s: float) -> None:
        self.ping()
        self._timer = asyncio.get_running_loop().call_later(every_s, self._ping, every_s)

    def notify(self, message: str) -> None:
        """Send a message as sd_notify(3) describes it."""
        if self._socket is None:
            return
        try:
            if self._address:
                self._socket.sendto(message.encode(), self._address)
            else:
                self._socket.send(message.encode())
        except OSError as error:
            # A lost message must not end streams; without pings, the service manager acts by itself.
            _log.warning("the service manager was not told %r: %s", message.partition("\n")[0], error)


def watchdog_period_s(env: Mapping[str, str]) -> float | None:
    """Return after how many seconds without a ping systemd ends this process; None: never."""
    period = env.get("WATCHDOG_USEC", "")
    if not env.get("NOTIFY_SOCKET") or not period.isdecimal() or int(period) == 0:
        return None
    if env.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(period) / _MICROSECONDS
