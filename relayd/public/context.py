"""What the public handlers work with: built once by the server, which owns every part."""

from __future__ import annotations

from dataclasses import dataclass

from relayd.public.allowances import Allowances
from relayd.public.chat_request import ChatRules
from relayd.public.client_address import TrustedProxies
from relayd.public.cors import Cors
from relayd.public.disconnect import DisconnectWatcher
from relayd.public.limits import Slots
from relayd.public.v1_endpoints import V1Rules
from relayd.relay.accepting import Accepting
from relayd.relay.active_streams import ActiveStreams
from relayd.relay.probe import Probe
from relayd.relay.request_recorder import RequestRecorder
from relayd.relay.stream import StreamLimits
from relayd.relay.upstream import Upstream
from relayd.state.keyring import KeyRing
from relayd.state.stored_objects import StoredObjects


@dataclass(slots=True, kw_only=True)
class AppContext:
    """The parts; the server replaces rules and limits when the configuration is read again."""

    boot_id: str
    keys: KeyRing
    allowances: Allowances
    accepting: Accepting
    slots: Slots
    streams: ActiveStreams
    recorder: RequestRecorder
    upstream: Upstream
    probe: Probe
    disconnects: DisconnectWatcher
    proxies: TrustedProxies
    cors: Cors
    page: dict[str, bytes]
    """The files at `/` by name."""
    chat_rules: ChatRules
    v1_rules: V1Rules
    stored_objects: StoredObjects
    stream_limits: StreamLimits
    max_body_bytes: int
    body_timeout_s: float
    write_timeout_s: float
