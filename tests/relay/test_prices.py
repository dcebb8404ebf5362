"""What models cost."""

from __future__ import annotations

import pytest

from relayd.relay.prices import DEFAULT_PRICES, Price, Pricing
from relayd.relay.usage import TokenCounts


@pytest.mark.parametrize(
    ("model", "like"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("gpt-3.5-turbo-0125", "gpt-3.5-turbo"),
        ("o3-2025-04-16", "o3"),
    ],
)
def test_a_dated_snapshot_costs_what_its_model_does(model: str, like: str) -> None:
    """Providers add a date to a model's name, and seldom another price."""
    pricing = Pricing({})
    assert pricing.price(like) is not None
    assert pricing.price(model) == pricing.price(like)


@pytest.mark.parametrize(
    "model",
    [
        "",
        "llama-3",
        "gpt-4o-audio-preview",
        "gpt-4o-12345",
        "gpt-4o-2024-08-06-x",
        "ft:gpt-4o-2024-08-06:me::1",
        "openai/gpt-4o",
        "GPT-4o",
    ],
)
def test_no_price_is_invented(model: str) -> None:
    """A name that only looks like a known one has no price, and costs None rather than nothing."""
    assert Pricing({}).price(model) is None
    assert Pricing({}).nano_usd(model, TokenCounts(10, 10)) is None


def test_the_listed_prices_are_plausible() -> None:
    """A cached token costs no more than a new one, and that no more than one of an answer, if it has one."""
    for model, price in DEFAULT_PRICES.items():
        assert 0 <= price.cached_input <= price.input <= (price.output or price.input), model


def test_the_operator_s_price_comes_first() -> None:
    """It replaces the default one, also for snapshots, unless these have one of their own."""
    mine, dated = Price(1.0, 0.5, 2.0), Price(3.0, 3.0, 3.0)
    pricing = Pricing({"gpt-4o": mine, "llama-3": mine, "gpt-4o-2024-08-06": dated})
    assert pricing.price("gpt-4o") == pricing.price("gpt-4o-2026-01-01") == pricing.price("llama-3") == mine
    assert pricing.price("gpt-4o-2024-08-06") == dated


@pytest.mark.parametrize(
    ("counts", "nano_usd"),
    [
        (TokenCounts(), 0),
        (TokenCounts(1), 150),
        (TokenCounts(1_000_000), 150_000_000),
        (TokenCounts(1_000_000, 1_000_000), 750_000_000),
        (TokenCounts(1_000_000, 0, 400_000), 120_000_000),
    ],
)
def test_cached_tokens_are_cheaper_and_every_token_counts(counts: TokenCounts, nano_usd: int) -> None:
    """gpt-4o-mini is 0.15, cached 0.075, and 0.60 a million tokens."""
    assert Pricing({}).nano_usd("gpt-4o-mini", counts) == nano_usd
