"""What a provider's `usage` says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.usage import TokenCounts, read_usage


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}, TokenCounts(7, 2)),
        (
            {"prompt_tokens": 70, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 64}},
            TokenCounts(70, 2, 64),
        ),
        (
            {"input_tokens": 70, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 1}},
            TokenCounts(70, 5, 1),
        ),
        # Embeddings have no output.
        ({"prompt_tokens": 8, "total_tokens": 8}, TokenCounts(8)),
        ({"total_tokens": 8}, TokenCounts(8)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, TokenCounts()),
        # No provider has more in its cache than it was sent.
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}}, TokenCounts(3, 0, 3)),
        ({"prompt_tokens": 3, "prompt_tokens_details": [9]}, TokenCounts(3)),
        ({"prompt_tokens": None}, None),
        ({"type": "duration", "seconds": 12}, None),
        ({}, None),
        ([7, 2], None),
        (None, None),
    ],
)
def test_usage_is_read_in_every_shape(usage: object, counts: TokenCounts | None) -> None:
    """Chat, Responses and embeddings name the same things differently; a zero is a count."""
    assert read_usage(usage) == counts


NAMES = st.sampled_from(["prompt_tokens", "output_tokens", "total_tokens", "input_tokens_details", "x"])


@given(st.dictionaries(NAMES, st.none() | st.integers() | st.floats() | st.text() | st.booleans()))
def test_any_usage_gives_sane_counts(usage: dict[str, object]) -> None:
    """Whatever a provider claims, no count is negative or beyond 2^53."""
    counts = read_usage(usage)
    assert counts is None or all(0 <= n <= 1 << 53 for n in (counts.prompt_tokens, counts.completion_tokens))
