"""Packed records."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.admin.schema import Outcome, Phase, RecordedError, RequestRecord, UsageSource, utc_text
from tests.tui.samples import a_record
from tui.model.packed import Packer

TEXT = st.text(max_size=30)
COUNT = st.none() | st.integers(0, 2**40)


@given(
    at_ms=st.integers(0, 4_000_000_000_000),
    texts=st.lists(TEXT, min_size=4, max_size=4),
    maybe=st.none() | TEXT,
    kinds=st.tuples(
        st.sampled_from(Phase),
        st.none() | st.sampled_from(Outcome),
        st.none() | st.sampled_from(UsageSource),
    ),
    numbers=st.lists(COUNT, min_size=6, max_size=6),
    error=st.none() | st.builds(RecordedError, TEXT, TEXT),
)
@settings(max_examples=150, derandomize=True)
def test_a_record_comes_back_as_it_was(
    at_ms: int,
    texts: list[str],
    maybe: str | None,
    kinds: tuple[Phase, Outcome | None, UsageSource | None],
    numbers: list[int | None],
    error: RecordedError | None,
) -> None:
    """Every field survives packing, whatever its value."""
    record = RequestRecord(
        id=texts[0],
        boot_id=texts[1],
        started_at=utc_text(at_ms / 1000),
        seq=5,
        client=maybe,
        ip=texts[2],
        origin=maybe,
        path=texts[3],
        model=maybe,
        phase=kinds[0],
        outcome=kinds[1],
        error=error,
        status=numbers[0],
        connect_ms=numbers[1],
        first_token_ms=numbers[2],
        duration_ms=numbers[3],
        prompt_tokens=numbers[4],
        completion_tokens=numbers[5],
        cached_tokens=numbers[0],
        cost_usd=None if numbers[0] is None else numbers[0] / 7,
        usage_source=kinds[2],
        route=maybe,
        upstream_request_id=maybe,
    )
    packer = Packer()
    assert packer.unpack(packer.pack(record), 5) == record


def test_a_packed_record_is_small() -> None:
    """A usual record takes well under 200 bytes: a million of them fit at 500 bytes each with all else."""
    record = a_record(1, id="01jd9z9w7xk3j8vq", user_agent="Mozilla/5.0 " * 10)
    packer = Packer()
    packer.pack(record)
    assert len(packer.pack(record)) < 200


def test_made_up_texts_do_not_fill_the_table() -> None:
    """Past its limit the table takes no new texts: a record keeps its own, each time anew."""
    packer = Packer()
    for number in range(60_000):
        packer.pack(a_record(1, user_agent=f"agent {number}"))
    late = a_record(2, user_agent="a late agent")
    assert b"a late agent" in packer.pack(late)
    assert b"a late agent" in packer.pack(late)
    assert packer.unpack(packer.pack(late), 2) == late
