"""Log events as JSON."""

from __future__ import annotations

import msgspec
import pytest

from relayd.state.audit import new_entry
from relayd.state.events import Audited, Ended, Gap, LogEvent, Lost, Started
from tests.state.room import ALICE, a_record, as_ended


@pytest.mark.parametrize(
    ("event", "tag"),
    [
        (Started(1, "boot-1", a_record()), "started"),
        (Ended(2, "boot-1", as_ended(a_record(), 502)), "ended"),
        (Audited(3, "boot-1", new_entry("pause", "done", ALICE, "2027-01-15T08:00:00.000Z", 1)), "audit"),
        (Lost(4, "boot-1", "2027-01-15T08:00:00.000Z", 7, "disk full"), "lost"),
        (Gap(1, 9), "gap"),
    ],
)
def test_an_event_is_told_by_its_name(event: LogEvent | Gap, tag: str) -> None:
    """Each kind carries its name, and comes back as what it was."""
    encoded = msgspec.json.encode(event)
    assert msgspec.json.decode(encoded)["event"] == tag
    assert msgspec.json.decode(encoded, type=LogEvent | Gap) == event
