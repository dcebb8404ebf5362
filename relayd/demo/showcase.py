"""The daemon behind `relayd-tui --demo`: a real one, with a made-up past and made-up clients.

`python -m relayd.demo.showcase DIRECTORY` serves on a free port of 127.0.0.1 with its state in that
directory. It ends, and removes the directory, as soon as its standard input closes: whoever started it
holds the other end of that pipe.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final

import uvloop
from tornado.httpclient import AsyncHTTPClient, HTTPError, HTTPRequest

from relayd.admin.events import EventBus
from relayd.admin.unix_socket import open_admin_socket
from relayd.config import Settings, load
from relayd.files import write_file
from relayd.public.listener import bind
from relayd.relay.prices import Pricing
from relayd.relay.usage import TokenCounts
from relayd.reload import ConfigReloader
from relayd.server import Server, new_boot_id
from relayd.state.budget import NANO
from relayd.state.directory import StateDirectory
from relayd.state.key_operations import Caller, Change
from relayd.state.keyring import KeyRing
from relayd.state.records import (
    KeyState,
    Outcome,
    Peer,
    Phase,
    RecordedError,
    RequestRecord,
    UsageSource,
    utc_text,
)
from relayd.state.state import State
from relayd.state.transitions import Rule
from relayd.systemd import ServiceManager

_PRICING: Final = Pricing({})

_CONFIG: Final = """\
# The configuration of this demo.
[server]
max_streams = 200
workers = {workers}

[chat]
heartbeat_s = {heartbeat_s}

[aliases]
"gpt-3.5-turbo" = "gpt-4o-mini"

[log]
retention_days = 14
"""

_DAY_S: Final = 86_400.0
_HISTORY_S: Final = 3600.0
_ROTATED_AGO_S: Final = 45.5 * 60
_GRACE_S: Final = 3600.0
_REQUESTS_PER_S: Final = 0.7
_OUTAGE_AGO_S: Final = (18 * 60.0, 21 * 60.0)
"""In this part of the past hour the provider failed often."""
_MAX_OPEN: Final = 40
_PATIENCE_S: Final = 600.0
_MOVES_AFTER_S: Final = (2.0, 20.0)
"""How long people take to move to a new key; the lazy ones do it only when they are refused."""
_REFUSED_PAUSE_S: Final = 20.0
"""How long a client whose key was refused stays away."""
_BROWSER: Final = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/142.0.0.0 Safari/537.36"


_V1_CHAT: Final = "/v1/chat/completions"
_RESPONSES: Final = "/v1/responses"

_OPERATOR: Final = Caller(Peer(os.getuid(), os.getpid(), "ada"))


@dataclass(frozen=True, slots=True)
class _Persona:
    """A person or program that uses a client's key."""

    client: str
    ip: str
    user_agent: str
    model: str
    weight: float
    origin: str | None = None
    path: str = "/chat"
    is_lazy: bool = False
    """Uses the key that a rotation replaces for as long as it works."""


_PERSONAS: Final = (
    _Persona("web", "198.51.100.21", _BROWSER, "gpt-4o-mini", 5.0, "https://chat.example.org"),
    _Persona("web", "198.51.100.87", _BROWSER, "gpt-4o", 4.0, "https://chat.example.org"),
    _Persona("web", "203.0.113.9", _BROWSER, "gpt-4o-mini", 1.6, "https://old.example.org", is_lazy=True),
    _Persona("web", "10.0.0.4", "nightly-report/2.1", "gpt-4o", 1.2, is_lazy=True),
    _Persona("laptop", "192.0.2.14", "OpenAI/Python 2.8.0", "gpt-5-mini", 2.5, path=_V1_CHAT),
    _Persona("ci", "10.0.0.30", "curl/8.14.1", "gpt-4o-mini", 2.0),
    _Persona("support-bot", "203.0.113.77", "OpenAI/JS 6.9.1", "gpt-5-mini", 3.0, path=_RESPONSES),
    _Persona("phone", "198.51.100.140", "okhttp/5.1.0", "gpt-4o-mini", 0.9),
)
_STRANGER: Final = _Persona("", "192.0.2.200", "zgrab/0.x", "gpt-4o", 0.0)


@dataclass(frozen=True, slots=True)
class _Fate:
    """How a request goes: what its client asks for, and what its record says in the end."""

    weight: float
    message: str = "Say hi."
    leave_after_s: float | None = None
    outcome: Outcome = Outcome.COMPLETED
    status: int = 200
    error: tuple[str, str] | None = None
    """Code and sentence."""


_PROVIDER: Final = Outcome.UPSTREAM_ERROR
_GOOD: Final = _Fate(86, "Say in a few sentences what a relay is for, and who is glad to have one.")
_LONG: Final = _Fate(3, "demo-long")
_FAILED: Final = _Fate(
    1.5, "demo-failing", None, _PROVIDER, 502, ("upstream_failed", "The provider failed (500).")
)
_NO_KEY: Final = ("unauthorized", "The Authorization header has no valid key.")
_WRONG_KEY: Final = _Fate(1, "Say hi.", None, Outcome.DENIED, 401, _NO_KEY)
_LIMITED: Final = ("upstream_limited", "The provider's rate limit is reached.")
_FATES: Final = (
    _GOOD,
    _LONG,
    _FAILED,
    _WRONG_KEY,
    _Fate(3, "demo-slow"),
    _Fate(3, "demo-long", 4.0, Outcome.CLIENT_CLOSED),
    _Fate(1, "demo-limited", None, _PROVIDER, 429, _LIMITED),
    _Fate(1, "demo-broken", None, _PROVIDER, 200, ("upstream_failed", "The provider's answer broke off.")),
    _Fate(0.5, "", None, Outcome.REJECTED, 400, ("bad_request", "`messages` must not be empty.")),
)
_KEY_CHANGES: Final = (
    (200, "add", "ci"),
    (90, "add", "web"),
    (60, "add", "laptop"),
    (32, "rotate", "web"),
    (19, "add", "phone"),
    (11, "revoke", "ci"),
    (11, "add", "ci"),
    (4, "add", "support-bot"),
)
"""What the operator did so many days ago."""
_BOUNDS: Final[dict[str, dict[str, object]]] = {
    "web": {"note": "chat.example.org", "usd_per_month": 40, "max_streams": 30, "max_output_tokens": 4000},
    "laptop": {"note": "Ada's editor", "usd_per_day": 2, "usd_per_month": 3},
    "ci": {"note": "nightly tests", "tokens_per_day": 400_000, "requests_per_minute": 60},
    "support-bot": {"note": "until the new one", "models": ["gpt-5*"], "usd_per_month": 20},
}
_CACHED_FROM_TOKENS: Final = 1024
_USE_DAYS: Final = 29
_EARLIER_PER_DAY: Final = 3
"""Requests a day of each persona before the past hour: few, and each with many tokens."""


class _Clock:
    """Unix time, set back while the past is written."""

    def __init__(self) -> None:
        self.past_s: float | None = None

    def __call__(self) -> float:
        return time.time() if self.past_s is None else self.past_s


class _ObservedRing(KeyRing):
    """A key ring that tells of each change, with the text of a new key."""

    observer: Callable[[Change], None]

    async def _change(self, action: str, subject: str, parameters: str, rule: Rule, caller: Caller) -> Change:
        change = await super()._change(action, subject, parameters, rule, caller)
        self.observer(change)
        return change


class _ShowcaseState(State):
    ring_class = _ObservedRing
    ring: _ObservedRing


class _Showcase:
    """Clients with their keys: what they did in the past, and what they do now."""

    def __init__(self, state: _ShowcaseState, boot_id: str, clock: _Clock) -> None:
        self._state = state
        state.ring.observer = self._key_changed
        self._boot_id = boot_id
        self._clock = clock
        self._random = random.Random(4)  # noqa: S311 - made-up traffic, nothing secret
        self._secrets: dict[str, str] = {}
        """The text of each key by its id."""
        self._newest: dict[str, str] = {}
        """The id of the key that each client should use."""
        self._keys: dict[_Persona, str] = {}
        """The id of the key that each persona does use."""
        self._moves_at_s: dict[_Persona, float] = {}
        """When each persona takes the newest key."""
        self._away_until_s: dict[_Persona, float] = {}
        self._http = AsyncHTTPClient(max_clients=_MAX_OPEN)
        self._open = 0

    async def write_past(self) -> None:
        """Write the keys and the requests of the past into the state, in the order of their times."""
        ring, now_s = self._state.ring, self._clock()
        for days_ago, action, client in _KEY_CHANGES:
            self._clock.past_s = now_s - days_ago * _DAY_S
            if action == "add":
                await ring.add(client, caller=_OPERATOR)
            elif action == "rotate":
                await ring.rotate(self._newest[client], grace_s=_DAY_S, caller=_OPERATOR)
            else:
                await ring.revoke(self._newest[client], cut=True, caller=_OPERATOR)
        for client, bounds in _BOUNDS.items():
            await ring.set_client(client, bounds, caller=_OPERATOR)
        self._keys = {persona: self._newest[persona.client] for persona in _PERSONAS}
        await self._write_earlier(now_s)
        await self._write_requests(now_s - _HISTORY_S, now_s - _ROTATED_AGO_S, now_s)
        self._clock.past_s = now_s - _ROTATED_AGO_S
        await ring.rotate(self._newest["web"], grace_s=_GRACE_S, caller=_OPERATOR)
        await self._write_requests(now_s - _ROTATED_AGO_S, now_s, now_s)
        self._clock.past_s = None

    async def play(self, announced: asyncio.Future[str]) -> None:
        """Let the clients ask, from when the daemon's URL is announced until cancelled."""
        url = await announced
        async with asyncio.TaskGroup() as group:

            def start(persona: _Persona, fate: _Fate) -> None:
                group.create_task(self._ask(url, persona, fate), name=f"request of {persona.ip}")

            for persona in _PERSONAS:
                start(persona, _LONG if persona.is_lazy else _GOOD)
            start(_PERSONAS[0], _FAILED)
            while True:
                await asyncio.sleep(self._random.expovariate(_REQUESTS_PER_S))
                persona, fate = self._draw(outage=False)
                if self._open < _MAX_OPEN and self._away_until_s.get(persona, 0.0) <= self._clock():
                    start(persona, fate)

    def _key_changed(self, change: Change) -> None:
        """Give the users of a client its new key, or an old key that is active again."""
        key = change.key
        if key is None:
            return
        if change.secret is not None:
            self._secrets[key.id] = change.secret
        if key.state is KeyState.ACTIVE and key.id in self._secrets:
            self._newest[key.client] = key.id
            for persona in _PERSONAS:
                if persona.client == key.client and not persona.is_lazy:
                    self._moves_at_s[persona] = self._clock() + self._random.uniform(*_MOVES_AFTER_S)

    def _key_of(self, persona: _Persona) -> str:
        """Return the id of the key that this persona uses now."""
        if self._clock() >= self._moves_at_s.get(persona, math.inf):
            del self._moves_at_s[persona]
            self._keys[persona] = self._newest[persona.client]
        return self._keys[persona]

    def _draw(self, *, outage: bool) -> tuple[_Persona, _Fate]:
        persona = self._random.choices(_PERSONAS, [persona.weight for persona in _PERSONAS])[0]
        fate = self._random.choices(_FATES, [fate.weight for fate in _FATES])[0]
        if outage and self._random.random() < 0.4:  # noqa: PLR2004 - two of five fail
            fate = _FAILED
        return (_STRANGER if fate is _WRONG_KEY else persona), fate

    async def _write_earlier(self, now_s: float) -> None:
        """Write what the clients used in the days before, so that days and months have something to show."""
        made_days_ago = {client: days_ago for days_ago, _, client in _KEY_CHANGES}
        moments = sorted(
            (now_s - _HISTORY_S - self._random.uniform(days_ago - 1, days_ago) * _DAY_S, number)
            for days_ago in range(_USE_DAYS, 0, -1)
            for number, persona in enumerate(_PERSONAS)
            if days_ago <= made_days_ago[persona.client]
            for _ in range(_EARLIER_PER_DAY)
        )
        for at_s, number in moments:
            self._clock.past_s = at_s
            persona = _PERSONAS[number]
            record = self._past_record(at_s, persona, _GOOD)
            self._state.log.started(record)
            _close(record, _GOOD, self._random)
            prompt_tokens = int(self._random.lognormvariate(math.log(20_000 * persona.weight), 0.5))
            _charge(record, prompt_tokens)
            self._state.log.ended(record)
        await self._logged()

    async def _logged(self) -> None:
        while self._state.log.queued:  # noqa: ASYNC110 - what follows must come after these in the log
            await asyncio.sleep(0.002)

    async def _write_requests(self, begin_s: float, end_s: float, now_s: float) -> None:
        at_s = begin_s
        while (at_s := at_s + self._random.expovariate(_REQUESTS_PER_S)) < end_s:
            self._clock.past_s = at_s
            persona, fate = self._draw(outage=_OUTAGE_AGO_S[0] < now_s - at_s < _OUTAGE_AGO_S[1])
            record = self._past_record(at_s, persona, fate)
            self._state.log.started(record)
            _close(record, fate, self._random)
            self._state.log.ended(record)
        await self._logged()

    def _past_record(self, at_s: float, persona: _Persona, fate: _Fate) -> RequestRecord:
        key_id = None if fate is _WRONG_KEY else self._key_of(persona)
        if key_id is not None:
            self._state.ring.record_use(key_id, persona.ip)
        return RequestRecord(
            id=f"{self._random.getrandbits(80):016x}"[:16],
            boot_id=self._boot_id,
            started_at=utc_text(at_s),
            client=persona.client or None,
            key_id=key_id,
            ip=persona.ip,
            origin=persona.origin,
            user_agent=persona.user_agent,
            path=persona.path,
            model=None if fate is _WRONG_KEY else persona.model,
        )

    async def _ask(self, url: str, persona: _Persona, fate: _Fate) -> None:
        """Send one request as this persona, and read its answer; a stranger's key is made up."""
        known = persona is not _STRANGER
        key = self._secrets[self._key_of(persona)] if known else "a-guessed-key-of-a-stranger"
        messages = [{"role": "user", "content": fate.message}] if fate.message else []
        body: dict[str, object] = {"model": persona.model}
        body["input" if persona.path == _RESPONSES else "messages"] = messages
        if persona.path != "/chat":
            body["stream"] = True
        headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": persona.ip}
        request = HTTPRequest(
            f"{url}{persona.path}",
            "POST",
            headers if persona.origin is None else {**headers, "Origin": persona.origin},
            json.dumps(body),
            user_agent=persona.user_agent,
            request_timeout=fate.leave_after_s or _PATIENCE_S,
        )
        self._open += 1
        try:
            answer = await self._http.fetch(request, raise_error=False)
            if answer.code == HTTPStatus.UNAUTHORIZED and known:
                self._away_until_s[persona] = self._clock() + _REFUSED_PAUSE_S
                self._moves_at_s[persona] = self._away_until_s[persona]
        except (OSError, HTTPError):
            # It left, or the daemon did: a drain is part of the show.
            pass
        finally:
            self._open -= 1


def _close(record: RequestRecord, fate: _Fate, draw: random.Random) -> None:
    """Let a request of the past end as its fate says."""
    record.phase, record.outcome, record.status = Phase.DONE, fate.outcome, fate.status
    if fate.error is not None:
        record.error = RecordedError(*fate.error)
    if fate.outcome in {Outcome.DENIED, Outcome.REJECTED}:
        record.duration_ms = draw.randint(1, 4)
        return
    record.connect_ms = int(draw.lognormvariate(math.log(70), 0.3))
    first_token_ms = record.connect_ms + int(draw.lognormvariate(math.log(500), 0.45))
    record.duration_ms = first_token_ms
    if fate.status == 200:  # noqa: PLR2004 - an answer has begun
        record.first_token_ms = first_token_ms
        record.deltas = max(3, int(draw.lognormvariate(math.log(200), 0.8)))
        record.bytes_out = record.deltas * 61
        record.duration_ms += record.deltas * draw.randint(9, 20)
    if fate.outcome is Outcome.COMPLETED:
        record.finish_reason = "stop"
        _charge(record, int(draw.lognormvariate(math.log(400), 0.9)))


def _charge(record: RequestRecord, prompt_tokens: int) -> None:
    """Let the provider say what a request of the past used."""
    record.prompt_tokens, record.completion_tokens = prompt_tokens, record.deltas
    # The provider caches the beginnings of long prompts.
    record.cached_tokens = prompt_tokens // 3 if prompt_tokens > _CACHED_FROM_TOKENS else 0
    record.usage_source = UsageSource.PROVIDER
    counts = TokenCounts(prompt_tokens, record.deltas, record.cached_tokens)
    nano_usd = _PRICING.nano_usd(record.model or "", counts)
    record.cost_usd = None if nano_usd is None else nano_usd / NANO


def _write_config(directory: Path, *, heartbeat_s: int, workers: int) -> None:
    text = _CONFIG.format(heartbeat_s=heartbeat_s, workers=workers)
    write_file(directory / "relayd.toml", text, mode=0o600)


def _settings(directory: Path) -> Settings:
    return load(
        config_path=None,
        cli={"state_dir": str(directory)},
        env={"HOME": str(directory)},
        cwd=directory,
        system_config=directory / "relayd.toml",
    )


async def _serve(directory: Path) -> int:
    _write_config(directory, heartbeat_s=15, workers=1)
    settings, event_bus, clock = _settings(directory), EventBus(), _Clock()
    # What differs by now can be seen, and reloaded.
    _write_config(directory, heartbeat_s=10, workers=2)
    boot_id, manager = new_boot_id(), ServiceManager(None)
    state = _ShowcaseState.open(
        StateDirectory(settings.state_dir),
        boot_id=boot_id,
        keep_days=settings.log.retention_days,
        max_mib=settings.log.max_mib,
        on_commit=event_bus.publish,
        clock=clock,
    )
    showcase = _Showcase(state, boot_id, clock)
    await showcase.write_past()
    announced: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = Server(
        ConfigReloader(settings, partial(_settings, directory), manager),
        state,
        boot_id=boot_id,
        demo=True,
        announce=lambda _line: announced.set_result(server.url),
        manager=manager,
    )

    def on_input() -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            # Asked twice, it does not wait for the open streams.
            server.request_stop()
            server.request_stop()

    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), on_input)
    with open_admin_socket(settings.admin.socket, group="", state_dir=settings.state_dir) as admin_socket:
        async with asyncio.TaskGroup() as group:
            playing = group.create_task(showcase.play(announced), name="showcase traffic")
            status = await server.run(bind("127.0.0.1", 0), admin_socket, event_bus)
            playing.cancel()
    return status


def main() -> int:
    """Serve until standard input closes; returns the exit status."""
    directory = Path(sys.argv[1])
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
