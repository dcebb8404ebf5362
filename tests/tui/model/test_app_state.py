"""What events make of the state."""

from __future__ import annotations

from msgspec.structs import replace

from relayd.admin.schema import (
    Phase,
    Progress,
    RequestRecord,
    Started,
    StreamProgress,
    parse_filter,
    utc_text,
)
from relayd.state.records import Ended
from tests.tui.samples import NOON_S, a_record, an_open
from tui.model.app_state import AppState
from tui.model.store import record_key


def progress_of(record: RequestRecord, phase: Phase, deltas: int) -> Progress:
    """One second of progress of one request."""
    stream = StreamProgress(
        id=record.id,
        client=record.client,
        key_id=record.key_id,
        ip=record.ip,
        model=record.model,
        phase=phase,
        waiting_for="upstream",
        age_ms=1000,
        deltas=deltas,
        bytes_out=deltas * 50,
        stalled_ms=0,
        last_delta_ms=20 if deltas else None,
    )
    return Progress(utc_text(NOON_S + record.seq + 1), [stream])


def matches(state: AppState) -> list[int]:
    """The `seq` of every record that passes the filter."""
    while state.view.scan():
        pass
    return [state.view.key_at(index) >> 1 for index in range(len(state.view))]


def test_a_filter_sees_how_far_an_open_request_is() -> None:
    """The log has its start alone; the filter goes by its last progress, set before or after it."""
    state = AppState(1000)
    running = an_open(7)
    state.started(Started(7, "boot-1", running))
    state.view.set_filter(parse_filter("phase=streaming deltas>=5"))
    assert matches(state) == []
    state.progress(progress_of(running, Phase.STREAMING, 5))
    assert matches(state) == [7]
    state.view.set_filter(parse_filter("phase=streaming"))
    assert matches(state) == [7]
    state.view.set_filter(parse_filter("phase=waiting"))
    assert matches(state) == []
    state.view.set_filter(parse_filter("phase!=done"))
    state.ended(Ended(9, "boot-1", a_record(7)))
    assert matches(state) == []


def test_a_stream_finds_its_record_whichever_came_first() -> None:
    """A stream that was open before the app came is joined to its record when that is loaded."""
    state = AppState(1000)
    state.boot_id = "boot-1"
    running = an_open(3)
    state.progress(progress_of(running, Phase.STREAMING, 4))
    assert state.open_streams.streams[running.id].seq is None
    state.backlog([running])
    assert state.open_streams.streams[running.id].seq == 3
    row = state.view.get(record_key(3))
    assert isinstance(row, RequestRecord)
    assert (row.phase, row.deltas) == (Phase.STREAMING, 4)


def test_a_rate_is_that_of_the_stream_from_its_first_token_or_not_known() -> None:
    """40 a second after a second of waiting are 40 at once, never 20; one met midway has none at first."""
    state = AppState(1000)
    running = an_open(0)
    state.started(Started(1, "boot-1", running))
    rates: list[tuple[float | None, float | None]] = []
    for age_s in (1, 2, 3):
        event = progress_of(running, Phase.STREAMING, 1 + 40 * age_s - 20)
        [stream] = event.streams
        moved = replace(stream, age_ms=1000 * age_s, first_token_ms=500)
        state.progress(Progress(utc_text(NOON_S + age_s), [moved]))
        rates.append((state.open_streams.streams[running.id].deltas_per_s, state.open_streams.deltas_per_s))
    assert rates == [(40.0, None), (40.0, 40.0), (40.0, 40.0)]
    state.open_streams.clear()
    state.progress(Progress(utc_text(NOON_S + 4), [replace(moved, age_ms=4000)]))
    assert state.open_streams.streams[running.id].deltas_per_s is None
    assert state.open_streams.deltas_per_s is None
