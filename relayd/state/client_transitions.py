"""The rules for changes of clients: pure functions, as those for keys."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from relayd.state.bounds import describe, with_changes
from relayd.state.errors import BadChange, NoSuchClient, WrongState
from relayd.state.key_transitions import Decision, StoredRing, as_revoked, make_key, new_client
from relayd.state.records import LIVE_STATES, Client, utc_text

DEFAULT_CLIENT = "default"
"""Exists from the start, for the first key."""


def add_client(ring: StoredRing, name: str, now_s: float, *, bounds: Mapping[str, object]) -> Decision:
    """Make a client with its bounds and its first key."""
    if ring.client(name) is not None:
        has_key = ring.active(name) is not None
        hint = (
            f"rotate its key: relayd keys rotate {name}" if has_key else f"add a key: relayd keys add {name}"
        )
        raise WrongState(
            f"There is a client '{name}' already. Change its bounds: relayd clients set {name}; or {hint}"
        )
    client = with_changes(new_client(name, now_s), bounds, now_s)
    made = make_key(name, now_s)
    return Decision(made.info, made=made, client=client, detail=describe(client, bounds) or None)


def set_client(ring: StoredRing, name: str, now_s: float, *, changes: Mapping[str, object]) -> Decision:
    """Change the note or bounds of a client; the next request already sees them."""
    client = _client(ring, name)
    if not changes:
        raise BadChange(f"Nothing to change: name at least one bound of client '{name}', or its note.")
    changed = with_changes(client, changes, now_s)
    return Decision(None, client=changed, detail=describe(changed, changes))


def remove_client(ring: StoredRing, name: str, now_s: float, *, cut: bool) -> Decision:
    """Remove a client and revoke all its keys, for good. Its name may be used again."""
    client = _client(ring, name)
    if name == DEFAULT_CLIENT:
        raise WrongState(
            f"The client '{name}' always exists. Revoke its keys (relayd keys revoke ID), or bound it: "
            f"relayd clients set {name}"
        )
    now = utc_text(now_s)
    keys = (key for key in ring.keys if key.client == name and key.as_of(now).state in LIVE_STATES)
    revoked = tuple(as_revoked(key, now_s) for key in keys)
    detail = "its open streams are cut" if cut else "its open streams continue"
    return Decision(None, changed=revoked, client=replace(client, removed_at=now), detail=detail, cut=cut)


def _client(ring: StoredRing, name: str) -> Client:
    client = ring.client(name)
    if client is None:
        raise NoSuchClient(f"There is no client '{name[:64]}'. List them: relayd clients list")
    return client
