"""What a client may do, and what each of its requests costs."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import datetime
from enum import Enum, auto

import msgspec

from relayd.public.auth import unauthorized
from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.prices import Pricing
from relayd.relay.usage import BYTES_PER_TOKEN, MEDIA_BYTES_PER_TOKEN, Estimates, TokenCounts
from relayd.state.bounds import allows
from relayd.state.budget import NANO, Budget, Demand, OverBudget, Standing, TooManyStreams, Use
from relayd.state.calendar import Window
from relayd.state.errors import StateError
from relayd.state.records import Client, RequestRecord, UsageSource, epoch_s

OWN_USAGE_PATH = "/v1/usage"
"""Where every client may see what it used."""
_RETRY_AFTER_S = 5
_STREAM_RETRY_S = 0.1
_STREAM_ATTEMPTS = 5
"""Of a client that has all its streams: the end of one is on disk a tenth of a second later."""
_UNUSED = frozenset({"upstream_rejected", "upstream_limited", "upstream_auth", "upstream_unreachable"})
"""Errors after which the provider has done nothing that it charges for."""
_WINDOW_WORDS = {Window.MINUTE: "a minute", Window.DAY: "a day", Window.MONTH: "a month"}


class AnswerForm(Enum):
    """How an answer comes: by what its tokens are estimated if the provider does not count them."""

    PIECES = auto()
    """A stream, of about a token a piece."""
    TEXT = auto()
    """One body of JSON: by its bytes."""
    MEDIA = auto()
    """One body of sound or images: by its bytes, roughly."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks a model for, as far as its body tells."""

    prompt_guess: int
    """Tokens, by `relayd.relay.usage.guess_prompt_tokens`."""
    output_limit: int | None = None
    """The most tokens that one answer may have; None: the request names no limit."""
    output_limit_name: str = "max_tokens"
    """The field that names it."""
    answers: int = 1
    """`n`."""
    has_output: bool = True
    """Whether the model answers with tokens; an embedding has none."""
    form: AnswerForm = AnswerForm.PIECES
    """How the answer comes."""
    background: bool = False
    """Whether the provider would go on by itself."""


class Allowances:
    """Holds each request against its client's bounds, as they are when it comes.

    Args:
        find_client: returns the client of a name, unless it was removed.
        budget: of all clients.
        pricing: replaced when the configuration is read again.
        clock: returns the Unix time.
    """

    def __init__(
        self,
        find_client: Callable[[str], Client | None],
        budget: Budget,
        pricing: Pricing,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.pricing = pricing
        self.budget = budget
        self.clock = clock
        self.estimates = Estimates()
        self._find_client = find_client
        self._streams: Counter[str] = Counter()

    def admit(self, name: str, *, path: str, origin: str | None) -> Client:
        """Return the client of a valid key if it may come here; from the headers alone.

        OpenAI, too, answers 401 to a key that is restricted to other endpoints.

        Raises:
            RelayError: `unauthorized`.
        """
        client = self._find_client(name)
        if client is None or (client.expires_at is not None and epoch_s(client.expires_at) <= self.clock()):
            raise unauthorized()
        if path != OWN_USAGE_PATH and not allows(client.endpoints, path):
            raise RelayError(ErrorCode.UNAUTHORIZED, "This key may not be used at this path.")
        if client.origins and origin is not None and origin not in client.origins:
            raise RelayError(ErrorCode.UNAUTHORIZED, "This key may not be used by pages of this origin.")
        return client

    def acquire(self, client: Client) -> None:
        """Count an open request of a client; `release` must follow.

        Raises:
            RelayError: `busy`, it has as many as it may have.
        """
        if client.max_streams is not None and self._streams[client.name] >= client.max_streams:
            raise _too_many_streams(client)
        self._streams[client.name] += 1

    def release(self, client: Client) -> None:
        """Count that the request has ended."""
        self._streams[client.name] -= 1
        if not self._streams[client.name]:
            del self._streams[client.name]

    def open_streams(self, client: Client) -> int:
        """Return how many requests of a client are open in this process."""
        return self._streams[client.name]

    def check(self, client: Client, model: str, wanted: Wanted) -> None:
        """Raise unless the client may ask this of a model, whose name is the provider's own.

        Raises:
            RelayError: `model_not_allowed`, `model_unpriced` or `bad_request`.
        """
        if not may_use(client, model):
            raise RelayError(
                ErrorCode.MODEL_NOT_ALLOWED,
                f"The model {model[:80]!r} is not allowed for the client '{client.name}'; allowed are: "
                f"{', '.join(client.models)}.",
            )
        if client.has_money_bound and self.pricing.price(model) is None:
            raise RelayError(
                ErrorCode.MODEL_UNPRICED,
                f"The client '{client.name}' has a bound in money, and the model {model[:80]!r} has no price "
                "here. Use another model, or ask the operator to add one.",
            )
        ceiling = client.max_output_tokens
        if ceiling is not None and wanted.output_limit is not None and wanted.output_limit > ceiling:
            raise RelayError(
                ErrorCode.BAD_REQUEST,
                f"{wanted.output_limit_name} may be at most {ceiling} (max_output_tokens of the client "
                f"'{client.name}'), not {wanted.output_limit}.",
            )
        if wanted.background and client.has_usage_bound:
            raise RelayError(
                ErrorCode.BAD_REQUEST,
                f"background is not for the client '{client.name}', which has bounds in tokens or money: "
                "what runs on by itself could not be counted.",
            )

    def check_uncounted(self, client: Client) -> None:
        """Raise for a client whose bounds would not hold for what relayd cannot count.

        Raises:
            RelayError: `bad_request`.
        """
        if client.has_usage_bound:
            raise RelayError(
                ErrorCode.BAD_REQUEST,
                f"This is not for the client '{client.name}', which has bounds in tokens or money: "
                "what it uses could not be counted.",
            )

    def remember(self, records: Iterable[RequestRecord]) -> None:
        """Learn from the log how long answers usually are, so that a restart does not forget it.

        Args:
            records: that have ended, the oldest first.
        """
        for record in records:
            if record.usage_source is UsageSource.PROVIDER:
                counts = TokenCounts(record.prompt_tokens or 0, record.completion_tokens or 0)
                self.estimates.learn(
                    record.client or "", record.model or "", guess=0, deltas=0, counts=counts
                )

    def meter(self, client: Client, record: RequestRecord, wanted: Wanted | None) -> Meter:
        """Return what reserves and charges one request; without `wanted` it uses no tokens."""
        return Meter(self, client, record, wanted)


class Meter:
    """One request's reservation and charge."""

    def __init__(
        self,
        allowances: Allowances,
        client: Client,
        record: RequestRecord,
        wanted: Wanted | None,
    ) -> None:
        self._allowances = allowances
        self._estimates = allowances.estimates
        self._pricing = allowances.pricing
        self._budget = allowances.budget
        self._clock = allowances.clock
        self._client = client
        self._record = record
        self._wanted = wanted
        self.standings: list[Standing] = []
        """Where the client stands with its bounds, once reserved."""

    @property
    def reserve(self) -> Callable[[], Awaitable[None]] | None:
        """What to await before the provider is asked; None for a client that has nothing to wait for."""
        return self._reserve if self._budget.counts(self._client) else None

    async def _reserve(self) -> None:
        """Reserve the most that the request may use.

        Raises:
            RelayError: `over_budget`, `busy` or `state_unavailable`.
        """
        try:
            self.standings = await self._reserve_in_turn()
        except TooManyStreams as refusal:
            raise _too_many_streams(self._client) from refusal
        except OverBudget as refusal:
            self.standings = [refusal.standing]
            raise _refusal(self._client, refusal, self._clock()) from refusal
        except StateError as error:
            raise RelayError(
                ErrorCode.STATE_UNAVAILABLE,
                "This relay cannot count what its clients use at the moment; try again shortly.",
                recorded=f"A reservation failed. {error}",
            ) from error

    async def _reserve_in_turn(self) -> list[Standing]:
        """Reserve; wait a moment for the end of a request of another process, which is on disk after it."""
        for _ in range(_STREAM_ATTEMPTS - 1):
            with suppress(TooManyStreams):
                return await self._budget.reserve(self._demand())
            await asyncio.sleep(_STREAM_RETRY_S)
        return await self._budget.reserve(self._demand())

    def _demand(self) -> Demand:
        client, record, wanted = self._client, self._record, self._wanted
        model = record.model or ""
        prompt = answer = 0
        is_guess = False
        if wanted is not None:
            prompt = self._estimates.prompt_tokens(client.name, model, wanted.prompt_guess)
            if wanted.has_output:
                is_guess = wanted.output_limit is None
                answer = self._usual_output(model) if wanted.output_limit is None else wanted.output_limit
                answer = max(0, answer) * max(1, wanted.answers)
        least = Use(1, prompt, self._pricing.nano_usd(model, TokenCounts(prompt)) or 0)
        most = Use(1, prompt + answer, self._pricing.nano_usd(model, TokenCounts(prompt, answer)) or 0)
        return Demand(
            request_id=record.id,
            client=client,
            key_id=record.key_id or "",
            model=model,
            most=most,
            least=least if is_guess else most,
            prompt_tokens=prompt,
            streams=self._allowances.open_streams(client),
        )

    def _usual_output(self, model: str) -> int:
        """Return what to reserve for an answer whose request names no limit: the ceiling, if that holds.

        The provider does not know the ceiling, so answers may be longer.
        """
        ceiling = self._client.max_output_tokens or 0
        return max(ceiling, self._estimates.usual_output(self._client.name, model, default=ceiling))

    def rate_limit_headers(self) -> dict[str, str]:
        """Return OpenAI's headers of what is left; of several bounds on tokens, the shortest counts."""
        headers: dict[str, str] = {}
        for standing in self.standings:
            bound = standing.bound
            if bound.unit != "nano_usd":
                left_s = max(0, math.ceil(standing.resets_at_s - self._clock()))
                for what, value in (
                    ("limit", str(standing.limit)),
                    ("remaining", str(standing.remaining)),
                    ("reset", _span(left_s)),
                ):
                    headers[f"x-ratelimit-{what}-{bound.unit}"] = value
        return headers

    def charge(self) -> None:
        """Complete the record of a request that has ended: what it used, how that is known, what it costs."""
        record, wanted, client = self._record, self._wanted, self._client.name
        model = record.model or ""
        if record.usage_source is UsageSource.PROVIDER:
            counts = TokenCounts(
                record.prompt_tokens or 0, record.completion_tokens or 0, record.cached_tokens or 0
            )
            if wanted is not None:
                # One body is no piece of a stream: it says nothing about their size.
                deltas = record.deltas if wanted.form is AnswerForm.PIECES else 0
                self._estimates.learn(client, model, guess=wanted.prompt_guess, deltas=deltas, counts=counts)
        elif wanted is not None and _was_used(record):
            counts = TokenCounts(
                self._estimates.prompt_tokens(client, model, wanted.prompt_guess),
                self._answer_estimate(wanted),
            )
            record.prompt_tokens, record.completion_tokens = counts.prompt_tokens, counts.completion_tokens
            record.usage_source = UsageSource.ESTIMATE
        else:
            return
        nano_usd = self._pricing.nano_usd(model, counts)
        record.cost_usd = None if nano_usd is None else nano_usd / NANO

    def _answer_estimate(self, wanted: Wanted) -> int:
        """Return about how many tokens came of an answer that the provider did not count."""
        record = self._record
        if not wanted.has_output or not record.deltas:
            return 0
        if wanted.form is not AnswerForm.PIECES:
            is_text = wanted.form is AnswerForm.TEXT
            return record.bytes_out // (BYTES_PER_TOKEN if is_text else MEDIA_BYTES_PER_TOKEN)
        return self._estimates.completion_tokens(self._client.name, record.model or "", record.deltas)


def may_use(client: Client, model: str) -> bool:
    """Return whether the client's list allows a model."""
    return allows(client.models, model)


def _was_used(record: RequestRecord) -> bool:
    """Return whether the provider has begun to work on a request for which it reported no usage."""
    if record.connect_ms is None:
        return False
    code = None if record.error is None else record.error.code
    # A server error before the first token is no answer.
    return code not in _UNUSED and (code != "upstream_failed" or record.deltas > 0)


def _too_many_streams(client: Client) -> RelayError:
    return RelayError(
        ErrorCode.BUSY,
        f"The client '{client.name}' has reached its limit of {client.max_streams} requests at once; "
        "wait for one to end.",
        retry_after_s=_RETRY_AFTER_S,
    )


def _refusal(client: Client, refusal: OverBudget, now_s: float) -> RelayError:
    """Return the refusal of a bound: which one, what is used, until when."""
    standing = refusal.standing
    bound = standing.bound
    limit, used, wanted = (_amount(n, bound.unit) for n in (standing.limit, standing.used, refusal.wanted))
    until = datetime.fromtimestamp(standing.resets_at_s).astimezone().isoformat(timespec="seconds")
    message = (
        f"The client '{client.name}' may use {limit} {_WINDOW_WORDS[bound.window]} ({bound.field}): "
        f"{used} used or reserved so far, and this request may need {wanted}. "
        f"The bound begins again at {until}."
    )
    if refusal.wanted > standing.limit:
        message += " This request needs more than all of it: ask for less, with a smaller max_tokens."
    retry_after_s = max(1, math.ceil(standing.resets_at_s - now_s))
    code = ErrorCode.BUSY if bound.window is Window.MINUTE else ErrorCode.OVER_BUDGET
    return RelayError(code, message, retry_after_s=retry_after_s)


def _span(seconds: int) -> str:
    """Return a span as OpenAI writes it: `42s`, `6m0s`, `10h0m5s`."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s" if hours else f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _amount(number: int, unit: str) -> str:
    if unit == "nano_usd":
        return f"${number / NANO:,.2f}" if number >= NANO // 100 else f"${number / NANO:.6f}"
    return f"{number:,} {unit if number != 1 else unit.removesuffix('s')}"
