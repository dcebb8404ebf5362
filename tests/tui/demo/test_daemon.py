"""`tui.demo.daemon`: what a simulated daemon has behind it when it is first looked at."""

from __future__ import annotations

from relayd.admin.schema import KeyState, epoch_s
from tui.demo.daemon import DemoDaemon

_NOW_S = 1_790_000_000.0


def test_the_audit_says_how_every_key_came_to_be_and_ended() -> None:
    """One entry made each key at its time, one revoked each that is revoked, all in order and in the past."""
    daemon = DemoDaemon(4, _NOW_S)
    made = {entry.key_ids[-1]: entry for entry in daemon.audit if entry.action in {"add", "rotate"}}
    revoked = [entry.key_ids[0] for entry in daemon.audit if entry.action == "revoke"]
    keys = daemon.ring.keys
    assert {key: entry.at for key, entry in made.items()} == {key.id: key.created_at for key in keys.values()}
    assert revoked == [key.id for key in keys.values() if key.state is KeyState.REVOKED]
    times = [epoch_s(entry.at) for entry in daemon.audit]
    assert times == sorted(times)
    assert times[-1] < _NOW_S
    seqs = [entry.seq for entry in daemon.audit]
    assert seqs == sorted(set(seqs))
    assert daemon.audit[-1].generation == daemon.ring.generation
