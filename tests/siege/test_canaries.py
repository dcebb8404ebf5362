"""Keys and prompts leave no trace: not in the database, not in its WAL, not in the log, at any level."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.support.siege import besieged, provider
from tests.wire import Wire, body, post, until

_KEY = "canary-key-7f3a9c51e2"
_WRONG_KEY = "canary-wrong-key-55aa"
_PROMPT = "canary-prompt-4b8d"
_EACH = 3
_MODELS = {
    "completed": "demo:text=echo,interval_ms=0",
    "refused by the provider": "demo:fault=status,code=400,interval_ms=0",
    "limited": "demo:fault=status,code=429,retry_after=0,interval_ms=0",
    "provider's own failure": "demo:fault=status,code=500,interval_ms=0",
    "no access": "demo:fault=status,code=401,interval_ms=0",
    "echoed key": "demo:fault=echo_key,interval_ms=0",
    "error event": "demo:text=echo,fault=error_event,interval_ms=0",
    "cut": "demo:text=echo,fault=cut_mid,interval_ms=0",
    "garbage": "demo:fault=garbage,interval_ms=0",
    "not JSON": "demo:text=echo,fault=bad_json,interval_ms=0",
    "HTML": "demo:fault=html,interval_ms=0",
    "truncated": "demo:text=echo,fault=end_early,interval_ms=0",
}


async def test_no_key_and_no_prompt_is_ever_written_down(tmp_path: Path) -> None:
    """Through every outcome, at the level that shows most, both appear nowhere on disk."""
    settings = {"log.level": "debug", "upstream.max_retries": 0, "server.max_body_bytes": 2000}
    ends: Counter[int] = Counter()
    with (
        provider() as base_url,
        besieged(tmp_path, base_url, settings, {"AUTHORIZATION_KEY": _KEY}) as daemon,
    ):
        chat = [{"role": "user", "content": _PROMPT}]
        requests = [post(_KEY, body(model, messages=chat)) for model in _MODELS.values()]
        requests += [
            post(_WRONG_KEY, body("demo", messages=chat)),
            post(_KEY + "x", body("demo", messages=chat)),
            post(_KEY, body("demo", messages=chat, nonsense=_PROMPT)),
            post(_KEY, body("demo", messages=chat, user="x" * 3000)),
            post(_KEY, body("demo", messages=chat)[:-1]),
            post(_KEY, _PROMPT.encode()),
            post(_KEY, body("demo", messages=chat)).replace(b"HTTP/1.1", b"HTTP/1.3"),
            post(_KEY, body("demo", messages=chat), {"Content_Length": _KEY}),
        ]
        for request in requests * _EACH:
            async with await Wire.open(daemon.port) as wire:
                wire.send(request)
                ends[(await wire.reply()).status] += 1
        async with await Wire.open(daemon.port) as wire:
            wire.send(post(_KEY, body("demo:text=echo,deltas=100,interval_ms=50", messages=chat)))
            await wire.head()
        await until(lambda: any(record.outcome == "client_closed" for record in daemon.records()))
        files = [path for path in daemon.state_dir.iterdir() if path.is_file()]
        written = {path.name: path.read_bytes() for path in files}
        assert daemon.stop() == 0
        with suppress(FileNotFoundError):
            written |= {f"{path.name} at the end": path.read_bytes() for path in files if path.exists()}
    written["stderr"] = daemon.stderr.encode()
    assert set(ends) >= {200, 400, 401, 413, 429, 502}, ends
    assert b"request id=" in written["stderr"] or b"request " in written["stderr"]
    for name, data in written.items():
        for canary in (_KEY, _WRONG_KEY, _PROMPT):
            assert canary.encode() not in data, f"{canary} in {name}"
