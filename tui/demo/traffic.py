"""Made-up requests: who asks, for what, how fast it answers and how it ends.

A request's whole life is drawn when it starts, so where it is at any moment is arithmetic.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from relayd.admin.schema import Outcome, Phase, RecordedError, RequestRecord, StreamProgress
from tui.model.units import utc_from_ms

_ID_CHARS = "0123456789abcdefghjkmnpqrstvwxyz"
_BROWSER = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36"
)


@dataclass(frozen=True, slots=True)
class Caller:
    """One program or person that uses a key."""

    client: str
    ip: str
    user_agent: str
    origin: str | None
    models: tuple[str, ...]
    weight: float
    reads_slowly: bool = False


CALLERS = (
    Caller("web", "198.51.100.21", _BROWSER, "https://chat.example.org", ("gpt-4o-mini",), 5.0),
    Caller("web", "198.51.100.87", _BROWSER, "https://chat.example.org", ("gpt-4o-mini", "gpt-4o"), 4.0),
    Caller("web", "203.0.113.9", _BROWSER, "https://old.example.org", ("gpt-4o-mini",), 1.6),
    Caller("web", "10.0.0.4", "nightly-report/2.1", None, ("gpt-4o",), 1.2),
    Caller("laptop", "192.0.2.14", "python-httpx/0.28.1", None, ("gpt-5-mini", "gpt-4o"), 2.5),
    Caller("ci", "10.0.0.30", "curl/8.14.1", None, ("gpt-4o-mini",), 2.0),
    Caller("support-bot", "203.0.113.77", "support-bot/4.0 (node)", None, ("gpt-5-mini",), 3.0),
    Caller("phone", "198.51.100.140", "okhttp/5.1.0", None, ("gpt-4o-mini",), 0.9, reads_slowly=True),
)
STRANGER = Caller("", "192.0.2.200", "zgrab/0.x", None, ("gpt-4o",), 0.0)

# First token (ms, median) and deltas a second, by model.
_PACE = {"gpt-4o-mini": (380, 85.0), "gpt-4o": (620, 62.0), "gpt-5-mini": (1150, 110.0)}


@dataclass(frozen=True, slots=True)
class Fate:
    """How a request ends, and after what part of its life."""

    outcome: Outcome
    status: int
    code: str = ""
    message: str = ""
    before_first_token: bool = False


OK = Fate(Outcome.COMPLETED, 200)
UNAUTHORIZED = Fate(
    Outcome.DENIED, 401, "unauthorized", "This key is not valid here.", before_first_token=True
)
PAUSED = Fate(
    Outcome.DENIED, 503, "draining", "The relay is paused; try again soon.", before_first_token=True
)
_FATES = (
    (0.915, OK),
    (0.030, Fate(Outcome.CLIENT_CLOSED, 200)),
    (
        0.012,
        Fate(
            Outcome.UPSTREAM_ERROR,
            502,
            "upstream_failed",
            "The provider answered 500.",
            before_first_token=True,
        ),
    ),
    (0.008, Fate(Outcome.UPSTREAM_ERROR, 200, "upstream_truncated", "The provider's stream ended early.")),
    (
        0.010,
        Fate(
            Outcome.UPSTREAM_ERROR,
            429,
            "upstream_limited",
            "Rate limit reached for gpt-4o.",
            before_first_token=True,
        ),
    ),
    (
        0.007,
        Fate(
            Outcome.UPSTREAM_ERROR,
            504,
            "upstream_timeout",
            "No first token within 10 s.",
            before_first_token=True,
        ),
    ),
    (
        0.010,
        Fate(Outcome.REJECTED, 400, "bad_request", "messages[0].role is missing.", before_first_token=True),
    ),
    (0.008, UNAUTHORIZED),
)
_INCIDENT_FATE = Fate(
    Outcome.UPSTREAM_ERROR, 502, "upstream_failed", "The provider answered 503.", before_first_token=True
)


@dataclass(slots=True)
class Plan:
    """One request, drawn whole."""

    id: str
    seq: int
    start_s: float
    caller: Caller
    key_id: str | None
    model: str
    connect_ms: int
    first_token_ms: int
    deltas: int
    deltas_per_s: float
    stalled_part: float
    fate: Fate
    end_ms: int
    prompt_tokens: int
    boot_id: str

    @property
    def end_s(self) -> float:
        """When it ends."""
        return self.start_s + self.end_ms / 1000

    def delta_count(self, age_ms: float) -> int:
        """How many deltas it has sent after this time."""
        if self.fate.before_first_token or age_ms < self.first_token_ms:
            return 0
        pace = self.deltas_per_s * (1 - self.stalled_part)
        return min(self.deltas, 1 + int((age_ms - self.first_token_ms) / 1000 * pace))

    def _stalled_ms(self, age_ms: float) -> int:
        return int(max(0.0, age_ms - self.first_token_ms) * self.stalled_part)

    def phase(self, age_ms: float) -> Phase:
        """Where it is after this time."""
        if age_ms < self.connect_ms:
            return Phase.CONNECTING
        return Phase.WAITING if self.delta_count(age_ms) == 0 else Phase.STREAMING

    def progress(self, now_s: float) -> StreamProgress:
        """Its line in a progress event."""
        age_ms = max(0, round((now_s - self.start_s) * 1000))
        count = self.delta_count(age_ms)
        stalled = self.stalled_part > 0 and count > 0 and math.sin(age_ms / 1700) > -0.6  # noqa: PLR2004 - now and then it reads
        since = int((age_ms - self.first_token_ms) % (1000 / self.deltas_per_s)) if count else None
        if since is not None and stalled:
            since = age_ms % 4000
        return StreamProgress(
            id=self.id,
            client=self.caller.client,
            key_id=self.key_id,
            ip=self.caller.ip,
            model=self.model,
            phase=self.phase(age_ms),
            waiting_for="client" if stalled else "upstream",
            age_ms=age_ms,
            deltas=count,
            bytes_out=count * 61,
            stalled_ms=self._stalled_ms(age_ms),
            last_delta_ms=since,
        )

    def record(self, now_s: float, ending: Fate | None = None) -> RequestRecord:
        """Its record now; with `ending` (its own fate, or what cut it short), the closed one."""
        age_ms = max(0, round((now_s - self.start_s) * 1000))
        count = self.delta_count(age_ms)
        record = RequestRecord(
            id=self.id,
            boot_id=self.boot_id,
            started_at=utc_from_ms(round(self.start_s * 1000)),
            seq=self.seq,
            client=self.caller.client or None,
            key_id=self.key_id,
            ip=self.caller.ip,
            origin=self.caller.origin,
            user_agent=self.caller.user_agent,
            path="/chat",
            model=self.model,
            phase=self.phase(age_ms),
            connect_ms=self.connect_ms if self.connect_ms <= age_ms else None,
            first_token_ms=self.first_token_ms if count else None,
            deltas=count,
            bytes_out=count * 61,
            stalled_ms=self._stalled_ms(age_ms),
        )
        if ending is not None:
            self._close(record, ending, age_ms)
        return record

    def _close(self, record: RequestRecord, ending: Fate, age_ms: int) -> None:
        record.phase = Phase.DONE
        record.status = ending.status
        record.outcome = ending.outcome
        record.duration_ms = age_ms
        if ending.code:
            record.error = RecordedError(ending.code, ending.message)
        if ending.outcome in {Outcome.DENIED, Outcome.REJECTED}:
            record.connect_ms = None
            return
        record.upstream_request_id = f"req_{self.id[::-1]}"
        if ending is OK:
            record.prompt_tokens = self.prompt_tokens
            record.completion_tokens = record.deltas
            record.finish_reason = "stop"


class Traffic:
    """Draws requests, one after the other, from one seed."""

    def __init__(self, seed: int, boot_id: str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - simulated traffic, nothing secret
        self.boot_id = boot_id
        self.requests_per_s = 1.0

    def new_id(self) -> str:
        """An id that looks like the daemon's."""
        return "".join(self._random.choices(_ID_CHARS, k=16))

    def gap_s(self, at_s: float) -> float:
        """The time from this arrival to the next: busier in waves of four minutes."""
        wave = 1 + 0.6 * math.sin(at_s / 38.0)
        return self._random.expovariate(self.requests_per_s * wave)

    def caller(self) -> Caller:
        """Who asks next."""
        return self._random.choices(CALLERS, [caller.weight for caller in CALLERS])[0]

    def uniform(self, low: float, high: float) -> float:
        """A number between the two."""
        return self._random.uniform(low, high)

    def fate(self, *, incident: bool) -> Fate:
        """How the next request ends."""
        if incident and self._random.random() < 0.45:  # noqa: PLR2004 - nearly half fail in an incident
            return _INCIDENT_FATE
        return self._random.choices([fate for _, fate in _FATES], [weight for weight, _ in _FATES])[0]

    def draw(self, seq: int, at_s: float, caller: Caller, key_id: str | None, fate: Fate) -> Plan:
        """One request."""
        draw = self._random
        model = draw.choice(caller.models)
        median_ms, pace = _PACE[model]
        connect_ms = int(draw.lognormvariate(math.log(70), 0.3))
        first_ms = connect_ms + int(draw.lognormvariate(math.log(median_ms), 0.45))
        deltas = max(3, int(draw.lognormvariate(math.log(230), 0.8)))
        pace *= draw.uniform(0.75, 1.25)
        stalled = 0.82 if caller.reads_slowly and fate is OK else 0.0
        plan = Plan(
            id=self.new_id(),
            seq=seq,
            start_s=at_s,
            caller=caller,
            key_id=key_id,
            model=model,
            connect_ms=connect_ms,
            first_token_ms=first_ms,
            deltas=deltas,
            deltas_per_s=pace,
            stalled_part=stalled,
            fate=fate,
            end_ms=0,
            prompt_tokens=int(draw.lognormvariate(math.log(400), 0.9)),
            boot_id=self.boot_id,
        )
        plan.end_ms = self._end_ms(plan)
        return plan

    def _end_ms(self, plan: Plan) -> int:
        whole = plan.first_token_ms + int(1000 * plan.deltas / (plan.deltas_per_s * (1 - plan.stalled_part)))
        fate = plan.fate
        if fate.outcome in {Outcome.DENIED, Outcome.REJECTED}:
            return self._random.randint(1, 4)
        if fate.code == "upstream_timeout":
            return 10_000
        if fate.before_first_token:
            return plan.connect_ms + int(self._random.uniform(200, 9500))
        if fate is OK:
            return whole
        return int(plan.first_token_ms + (whole - plan.first_token_ms) * self._random.uniform(0.1, 0.9))
