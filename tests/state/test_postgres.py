"""What is PostgreSQL's own: connections that break, waits that end, commits without an answer."""

from __future__ import annotations

from pathlib import Path

from relayd.state.directory import StateDirectory
from relayd.state.filter import parse_filter
from relayd.state.keyring import KeyOwner
from relayd.state.postgres import Postgres
from relayd.state.state import State
from tests.state.harness import ALICE, Published, a_record, as_ended


async def test_keys_log_and_audit_live_in_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """A key works at once and after a restart; a request is published, filtered and replayed."""
    published = Published()

    def opened(boot_id: str) -> State:
        return State.open(
            StateDirectory(tmp_path / "state", has_database=False),
            boot_id=boot_id,
            keep_days=30,
            max_mib=512,
            on_commit=published,
            engine=Postgres(postgres_url),
        )

    state = opened("boot-1")
    made = await state.ring.add("web", caller=ALICE)
    assert made.secret is not None
    record = a_record()
    state.log.started(record)
    state.log.ended(as_ended(record, 502))
    published.wait_for(3)
    assert [event.seq for event in published.events] == [1, 2, 3]
    assert state.reader.events(0) == published.events
    where = parse_filter("model~GPT-4o ip=203.0.113.0/24 first_token_ms~20 provider")
    assert state.reader.page(where).records == [state.reader.get(record.id)]
    assert state.close()
    state = opened("boot-2")
    assert state.ring.verify(made.secret.encode()) == KeyOwner(made.key.id, "web")
    assert [entry.action for entry in state.reader.audit().entries] == ["add"]
    assert state.close()
