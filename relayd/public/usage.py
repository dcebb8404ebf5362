"""`GET /v1/usage`: what the client of a key has used of its bounds, and nobody else's."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from relayd.json_handler import JSON_TYPE
from relayd.public.allowances import OWN_USAGE_PATH
from relayd.public.v1 import V1Handler
from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.openai_errors import NotFound
from relayd.state.budget import NANO, Standing, Use
from relayd.state.errors import StateError
from relayd.state.records import Outcome, Phase, utc_text


class _Used(msgspec.Struct, frozen=True):
    requests: int
    tokens: int
    cost_usd: float


class _Bound(msgspec.Struct, frozen=True):
    bound: str
    limit: float
    used: float
    """With what requests under way have reserved."""
    remaining: float
    resets_at: str


class _Usage(msgspec.Struct, frozen=True):
    client: str
    minute: _Used
    today: _Used
    month: _Used
    bounds: list[_Bound]
    max_streams: int | None
    max_output_tokens: int | None
    models: tuple[str, ...]
    expires_at: str | None


class OwnUsageHandler(V1Handler):
    """Answers from the database; the provider is not asked, and the request counts nowhere."""

    def admit(self) -> None:
        """Acquire a slot of the address alone: a client whose bounds are used up may look at them."""
        if not self.context.v1_rules.enabled or self.request.method != "GET":
            raise NotFound(f"Invalid URL ({self.request.method} {OWN_USAGE_PATH})")
        self.context.slots.acquire(self.record.ip)
        self.held.callback(self.context.slots.release, self.record.ip)

    async def _send_usage(self, *_path: str) -> None:
        self.body_arrived()
        if self.body is None:
            # Refused.
            self.finish()
            return
        client, record, context = self.client, self.record, self.context
        try:
            standings, (minute, today, month) = await context.allowances.budget.standing(client)
        except StateError as error:
            self.refuse(
                RelayError(
                    ErrorCode.STATE_UNAVAILABLE,
                    "This relay cannot read what its clients used at the moment; try again shortly.",
                    recorded=f"Usage could not be read. {error}",
                )
            )
            return
        if record.outcome is not None:
            # The client left meanwhile.
            return
        self.body = None
        self.held.close()
        usage = _Usage(
            client=client.name,
            minute=_used(minute),
            today=_used(today),
            month=_used(month),
            bounds=[_bound(standing) for standing in standings],
            max_streams=client.max_streams,
            max_output_tokens=client.max_output_tokens,
            models=client.models,
            expires_at=client.expires_at,
        )
        answer = msgspec.json.encode(usage) + b"\n"
        record.phase, record.outcome, record.status = Phase.DONE, Outcome.COMPLETED, int(HTTPStatus.OK)
        record.duration_ms, record.bytes_out = self.age_ms, len(answer)
        context.recorder.open(record)
        context.recorder.close(record)
        self.set_header("Content-Type", JSON_TYPE)
        self.finish(answer)

    get = post = put = patch = delete = _send_usage


def _used(use: Use) -> _Used:
    return _Used(use.requests, use.tokens, use.nano_usd / NANO)


def _bound(standing: Standing) -> _Bound:
    figures: list[float] = [standing.limit, standing.used, standing.remaining]
    if standing.bound.unit == "nano_usd":
        figures = [figure / NANO for figure in figures]
    limit, used, remaining = figures
    return _Bound(standing.bound.field, limit, used, remaining, utc_text(standing.resets_at_s))
