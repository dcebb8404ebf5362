"""Bodies that nest without end, against a real daemon."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.daemon import KEY, Daemon
from tests.wire import DONE, ask, body

_MAX_BODY_BYTES = 2 << 20
_DEEP = b"[" * 100_000 + b"]" * 100_000
_TOO_DEEP = "bad_request: The body is nested too deeply."
_BODIES = {
    b"[" * _MAX_BODY_BYTES: "bad_request: The body is not a chat request: Expected `object`, got `array`.",
    b'{"a":' * 100_000: "bad_request: The body is not a chat request: Object contains unknown field `a`.",
    b'{"messages":[{"role":"user","x":' + _DEEP + b"}]}": _TOO_DEEP,
    b'{"messages":[{"role":"user","content":[{"x":' + _DEEP + b"}]}]}": _TOO_DEEP,
    b'{"messages":[{"role":"user"}],"response_format":{"x":' + _DEEP + b"}}": _TOO_DEEP,
    b'{"messages":[{"role":"user","content":[' + b'{"x":[' * 100_000: _TOO_DEEP,
}


async def test_a_body_that_nests_without_end_is_refused_in_words(tmp_path: Path) -> None:
    """Wherever it nests, closed or not, up to the largest body: 400 and one typed line."""
    with Daemon(tmp_path, settings={"server.max_body_bytes": _MAX_BODY_BYTES}) as daemon:
        for payload, words in _BODIES.items():
            reply = await ask(daemon.port, KEY, payload)
            assert (reply.status, reply.error, reply.lines[-1]) == (400, words, DONE)
        assert (await ask(daemon.port, KEY, body("demo:interval_ms=0"))).status == 200
    assert "Traceback" not in daemon.stderr
