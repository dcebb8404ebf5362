"""Audit entries before they have a place in the log."""

from __future__ import annotations

from relayd.state.records import AuditEntry, Peer


def new_entry(action: str, result: str, peer: Peer, at: str, generation: int) -> AuditEntry:
    """An entry for `Tx.audit`, which gives it its `seq` and `boot_id`."""
    return AuditEntry(
        seq=0,
        boot_id="",
        at=at,
        action=action,
        result=result,
        uid=peer.uid,
        pid=peer.pid,
        login=peer.login,
        generation=generation,
    )
