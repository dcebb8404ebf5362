"""`relayd check --upstream`: each step to the provider, good and failed, over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from relayd.checkupstream import Provider, Step, document, show, steps
from relayd.demo import DemoUpstream
from tests.e2e.daemon import closed_port, command, environment
from tests.support.certificate import certificate
from tests.wire import HOST, PATIENCE_S

KEY = "provider-key-of-the-check"


class _Answer(RequestHandler):
    """Answers everything with what the test says."""

    def initialize(self, status: int, body: str) -> None:
        self._answer = status, body

    def get(self) -> None:
        self.set_status(self._answer[0])
        self.write(self._answer[1])

    def data_received(self, chunk: bytes) -> None:
        raise NotImplementedError


@asynccontextmanager
async def _provider(
    status: int = 200, body: str = '{"data":[{"id":"gpt-4o-mini"}]}', tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    app = Application([(r".*", _Answer, {"status": status, "body": body})], log_function=_silent)
    server = HTTPServer(app, ssl_options=tls)
    sockets = bind_sockets(0, HOST)
    server.add_sockets(sockets)
    try:
        yield sockets[0].getsockname()[1]
    finally:
        server.stop()
        await server.close_all_connections()


def _silent(_handler: RequestHandler) -> None:
    """The test's own access log."""


def _at(port: int, *, scheme: str = "http", host: str = HOST, **fields: Any) -> Provider:
    chosen: dict[str, Any] = {"key": KEY, "models": ("gpt-4o-mini",), **fields}
    return Provider(f"{scheme}://{host}:{port}/v1", **chosen)


async def _steps(provider: Provider) -> list[Step]:
    return [step async for step in steps(provider)]


def _results(done: list[Step]) -> dict[str, str]:
    return {step.name: step.result for step in done}


async def test_a_provider_that_works_is_good_at_every_step() -> None:
    """Name, connection, key and models are good; that there is no TLS is said."""
    async with DemoUpstream(KEY) as demo:
        done = await _steps(Provider(demo.base_url, KEY, ("demo", "gpt-4o-mini")))
    assert _results(done) == {
        "name": "good",
        "connect": "good",
        "TLS": "doubtful",
        "key": "good",
        "models": "good",
    }
    assert done[-1].said == "2 are offered, demo, gpt-4o-mini among them"


async def test_a_name_without_an_address_fails_at_the_name() -> None:
    """The first step fails and is the last."""
    (step,) = await _steps(_at(443, host="nothing.invalid"))
    assert (step.name, step.result) == ("name", "failed")
    assert "nothing.invalid has no address" in step.said
    assert "DNS" in step.todo


async def test_a_closed_port_fails_at_the_connection() -> None:
    """The address and the port are named."""
    port = closed_port()
    done = await _steps(_at(port))
    assert _results(done) == {"name": "good", "connect": "failed"}
    assert done[-1].said == f"{HOST} port {port}: Connection refused"
    assert done[-1].todo == "nothing listens there: is upstream.base_url right?"


@pytest.mark.parametrize(("days", "result"), [(90, "good"), (5, "doubtful")])
async def test_a_trusted_certificate_is_good_for_days(tmp_path: Path, days: int, result: str) -> None:
    """The step says for how long; one that ends soon is doubtful."""
    server, client = certificate(tmp_path, f"IP:{HOST}", days=days)
    async with _provider(tls=server) as port:
        done = await _steps(_at(port, scheme="https", ssl_context=client))
    tls = done[2]
    assert (tls.name, tls.result) == ("TLS", result)
    assert re.fullmatch(rf"TLSv1\.\d, the certificate of 127\.0\.0\.1 is good for {days} days", tls.said)
    assert _results(done)["models"] == "good"


async def test_a_certificate_of_an_unknown_authority_fails_in_words(tmp_path: Path) -> None:
    """Who is not trusted and what to look at."""
    server, _ = certificate(tmp_path, f"IP:{HOST}", days=90)
    async with _provider(tls=server) as port:
        done = await _steps(_at(port, scheme="https"))
    assert _results(done) == {"name": "good", "connect": "good", "TLS": "failed"}
    assert done[-1].said == "the certificate of 127.0.0.1 is not trusted: self-signed certificate"


async def test_a_port_without_tls_fails_at_tls() -> None:
    """HTTPS asked of a plain port."""
    async with _provider() as port:
        done = await _steps(_at(port, scheme="https", connect_timeout_s=1))
    assert (done[-1].name, done[-1].result) == ("TLS", "failed")


async def test_a_refused_key_is_told_without_the_key() -> None:
    """The provider's words come through, the key does not."""
    async with DemoUpstream("another-key") as demo:
        done = await _steps(Provider(demo.base_url, KEY, ("demo",)))
    assert (done[-1].name, done[-1].result) == ("key", "failed")
    assert done[-1].said.startswith("refused: 401 Incorrect API key provided")
    assert KEY not in done[-1].said


async def test_without_a_key_the_step_says_where_one_belongs() -> None:
    """Nothing is asked of the provider then."""
    async with DemoUpstream(KEY) as demo:
        done = await _steps(Provider(demo.base_url, "", ("demo",)))
        assert demo.total_requests == 0
    assert (done[-1].name, done[-1].said) == ("key", "there is none")
    assert "relayd init" in done[-1].todo


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, "{}", "there is no list of models: 404"),
        (307, "", "a redirect: 307"),
        (503, '{"error":{"message":"tired"}}', "the provider failed: 503 tired"),
        (200, "<html>", "answers, but not with a list of models"),
        (200, '{"data":[{}]}', "answers, but not with a list of models"),
        (503, f'{{"error":{{"message":"{KEY}"}}}}', "the provider failed: 503 [key]"),
    ],
)
async def test_a_provider_without_models_fails_there(status: int, body: str, said: str) -> None:
    """Whatever it answers instead is named, and never with the key in it."""
    async with _provider(status, body) as port:
        done = await _steps(_at(port))
    assert (done[-1].name, done[-1].result) == ("models", "failed")
    assert said in done[-1].said
    assert done[-1].todo
    assert KEY not in repr(done)


async def test_a_model_that_is_not_offered_is_doubtful_with_a_hint() -> None:
    """A slip in chat.default_model is found here, with the name that was meant."""
    async with _provider() as port:
        done = await _steps(_at(port, models=("gpt-4o-mni",)))
    assert (done[-1].name, done[-1].result) == ("models", "doubtful")
    assert "gpt-4o-mni (did you mean gpt-4o-mini?)" in done[-1].said


def test_for_people_each_step_is_a_line_and_for_programs_one_document() -> None:
    """A failed step is marked, its remedy stands below it, and the verdict is told."""
    provider = _at(closed_port())
    out = io.StringIO()
    assert not show(provider, out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "name     127.0.0.1 is 127.0.0.1"
    assert lines[1].startswith("connect  FAILED: 127.0.0.1 port ")
    assert lines[2].startswith("         -> ")
    told = json.loads(json.dumps(document(provider)))
    assert told["ok"] is False
    assert [step["result"] for step in told["steps"]] == ["good", "failed"]


@pytest.mark.parametrize(("key", "status"), [(KEY, 0), ("not-the-key", 1)])
async def test_the_command_checks_what_is_configured(tmp_path: Path, key: str, status: int) -> None:
    """`relayd check --upstream` takes all from the configuration; its status is the verdict."""
    async with DemoUpstream(KEY) as demo:
        env = environment(tmp_path, {"OPENAI_API_KEY": key, "RELAYD_UPSTREAM__BASE_URL": demo.base_url})
        process = await asyncio.create_subprocess_exec(
            *command("check", "--upstream"),
            env=env,
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == status
    assert (b"gpt-4o-mini among them" in out) == (status == 0)
    assert key.encode() not in out
