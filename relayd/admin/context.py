"""What the admin routes work with; built once by the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relayd.admin.events import EventBus
from relayd.admin.offload import Offload
from relayd.admin.peer import PeerBook
from relayd.admin.tally import Tally
from relayd.relay.accepting import Accepting
from relayd.relay.active_streams import ActiveStreams
from relayd.state.state import State


@dataclass(frozen=True, slots=True)
class DaemonFacts:
    """What does not change while the daemon runs."""

    boot_id: str
    started_at_s: float
    """Unix time."""
    address: str
    """Where clients are served, as a URL."""
    upstream: str
    """Where models are asked, as a URL."""
    demo: bool
    state_dir: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings that the operator may change while the daemon runs."""

    max_streams: int
    drain_timeout_s: float
    grace_s: float


@dataclass(frozen=True, slots=True)
class AdminContext:
    """The daemon, as the admin side sees it."""

    facts: DaemonFacts
    limits: Callable[[], Limits]
    state: State
    registry: ActiveStreams
    intake: Accepting
    tally: Tally
    hub: EventBus
    offload: Offload
    """For what reads the log."""
    quick: Offload
    """For what must not wait behind a long read."""
    peers: PeerBook
    stop: Callable[[], None]
    """Begin to drain, as a signal would."""
