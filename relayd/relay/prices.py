"""What a model costs: the operator's prices before a dated default list.

The list is of 27 November 2026, in US dollars a million tokens, for standard processing of text. It was
compiled from public lists of July to November 2026 that quote https://developers.openai.com/api/docs/pricing
(GitHub Copilot's models-and-pricing table, litellm's notes on GPT-6, release notes of codexometer and
PromptFuel, the `adk-model` crate) and from OpenAI's model page of GPT-5.1; check it against that page before
you rely on it. Surcharges for prompts above 272,000 tokens, for cache writes and for other service tiers are
not in it, nor are models that are billed by the image, the minute or the character.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from relayd.relay.usage import TokenCounts

_NANO_USD_PER_TOKEN = 1000
"""A dollar a million tokens is a thousand nano-dollars a token."""
# `gpt-4o-2024-08-06`, `gpt-3.5-turbo-0125`, `gpt-4-turbo-2024-04-09`.
_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{4})$")


class Price(NamedTuple):
    """US dollars a million tokens."""

    input: float
    cached_input: float
    output: float


DEFAULT_PRICES = {
    # Chat and reasoning.
    "gpt-6-astra": Price(10.0, 1.0, 50.0),
    "gpt-6.1-sol": Price(2.0, 0.10, 10.0),
    "gpt-6.1-terra": Price(1.0, 0.05, 5.0),
    "gpt-6-sol": Price(2.0, 0.20, 10.0),
    "gpt-6-luna": Price(0.10, 0.01, 0.50),
    "gpt-5.6-sol": Price(4.0, 0.40, 20.0),
    "gpt-5.6-terra": Price(2.0, 0.20, 12.0),
    "gpt-5.6-luna": Price(0.20, 0.02, 1.20),
    "gpt-5.5": Price(5.0, 0.50, 30.0),
    "gpt-5.5-pro": Price(30.0, 30.0, 180.0),
    "gpt-5.4": Price(2.50, 0.25, 15.0),
    "gpt-5.4-mini": Price(0.75, 0.075, 4.50),
    "gpt-5.4-nano": Price(0.20, 0.02, 1.25),
    "gpt-5.3-codex": Price(1.75, 0.175, 14.0),
    "gpt-5.2": Price(1.75, 0.175, 14.0),
    "gpt-5.2-codex": Price(1.75, 0.175, 14.0),
    "gpt-5.1": Price(1.25, 0.125, 10.0),
    "gpt-5.1-codex": Price(1.25, 0.125, 10.0),
    "gpt-5": Price(1.25, 0.125, 10.0),
    "gpt-5-codex": Price(1.25, 0.125, 10.0),
    "gpt-5-mini": Price(0.25, 0.025, 2.0),
    "gpt-5-nano": Price(0.05, 0.005, 0.40),
    "gpt-5-pro": Price(15.0, 15.0, 120.0),
    "gpt-4.1": Price(2.0, 0.50, 8.0),
    "gpt-4.1-mini": Price(0.40, 0.10, 1.60),
    "gpt-4.1-nano": Price(0.10, 0.025, 0.40),
    "gpt-4o": Price(2.50, 1.25, 10.0),
    "gpt-4o-mini": Price(0.15, 0.075, 0.60),
    "o1": Price(15.0, 7.50, 60.0),
    "o3": Price(2.0, 0.50, 8.0),
    "o3-mini": Price(1.10, 0.55, 4.40),
    "o4-mini": Price(1.10, 0.275, 4.40),
    "gpt-4-turbo": Price(10.0, 10.0, 30.0),
    "gpt-4": Price(30.0, 30.0, 60.0),
    "gpt-3.5-turbo": Price(0.50, 0.50, 1.50),
    # Embeddings have no output; moderation is free.
    "text-embedding-3-large": Price(0.13, 0.13, 0.0),
    "text-embedding-3-small": Price(0.02, 0.02, 0.0),
    "text-embedding-ada-002": Price(0.10, 0.10, 0.0),
    "omni-moderation-latest": Price(0.0, 0.0, 0.0),
}


class Pricing:
    """Finds the price of a model, and the cost of a request in whole nano-dollars.

    Args:
        prices: the operator's, by model; they come before the default list.
    """

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._prices = DEFAULT_PRICES | dict(prices)

    def price(self, model: str) -> Price | None:
        """Return a model's price, or None. A dated snapshot costs what its model does.

        No other part of a name is cut off: `gpt-4o-audio-preview` and fine-tuned models have other prices.
        """
        price = self._prices.get(model)
        return self._prices.get(_SNAPSHOT.sub("", model)) if price is None else price

    def nano_usd(self, model: str, counts: TokenCounts) -> int | None:
        """Return what these tokens cost, or None if the model has no price."""
        price = self.price(model)
        if price is None:
            return None
        cost = (
            (counts.prompt_tokens - counts.cached_tokens) * price.input
            + counts.cached_tokens * price.cached_input
            + counts.completion_tokens * price.output
        )
        return round(cost * _NANO_USD_PER_TOKEN)
