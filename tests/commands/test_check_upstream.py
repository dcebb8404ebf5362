"""`relayd check --upstream`: each step to the provider, good and failed, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from relayd.commands.check_upstream import Provider, check
from relayd.findings import Finding
from tests.e2e.daemon import closed_port, command, environment
from tests.support.certificates import certificate
from tests.support.proxy import running_proxy, serving
from tests.support.upstream import FaultUpstream
from tests.wire import HOST, PATIENCE_S

KEY = "provider-key-of-the-check"


class _Answer(RequestHandler):
    """Answers everything with what the test says."""

    def initialize(self, status: int, body: str | bytes, headers: Mapping[str, str]) -> None:
        self._answer = status, body, headers

    def get(self) -> None:
        status, body, headers = self._answer
        self.set_status(status)
        for name, value in headers.items():
            self.set_header(name, value)
        self.write(body)

    def data_received(self, chunk: bytes) -> None:
        raise NotImplementedError


@asynccontextmanager
async def _provider(
    status: int = 200,
    body: str | bytes = '{"data":[{"id":"gpt-4o-mini"}]}',
    tls: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[int]:
    app = Application(
        [(r".*", _Answer, {"status": status, "body": body, "headers": headers or {}})], log_function=_silent
    )
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


async def _check(provider: Provider) -> list[Finding]:
    return [finding async for finding in check(provider)]


def _severities(done: list[Finding]) -> dict[str, str]:
    return {finding.where: finding.severity for finding in done}


async def test_a_provider_that_works_is_good_at_every_step() -> None:
    """Connection, key and models are good; that there is no TLS is said."""
    async with FaultUpstream(KEY) as demo:
        done = await _check(Provider(demo.base_url, KEY, ("demo", "gpt-4o-mini")))
    assert _severities(done) == {"connect": "ok", "TLS": "warning", "key": "ok", "models": "ok"}
    assert done[-1].message == "The provider offers 2, including all that are configured."


@pytest.mark.parametrize(
    ("host", "where", "says"),
    [
        ("nothing.invalid", "name", "nothing.invalid has no address: "),
        (HOST, "connect", f"{HOST} port {{port}}: Connection refused."),
    ],
)
async def test_a_provider_that_cannot_be_reached_ends_the_check(host: str, where: str, says: str) -> None:
    """The first step names the address and the port, and is the last."""
    port = closed_port()
    (step,) = await _check(_at(port, host=host))
    assert (step.where, step.severity) == (where, "error")
    assert step.message.startswith(says.format(port=port))
    assert step.remedy


async def test_a_trusted_certificate_is_good_for_days(tmp_path: Path) -> None:
    """The step says for how long."""
    server, client = certificate(tmp_path, f"IP:{HOST}", days=90)
    async with _provider(tls=server) as port:
        done = await _check(_at(port, scheme="https", ssl_context=client))
    assert (done[1].where, done[1].severity) == ("TLS", "ok")
    assert done[1].message.startswith("The certificate is trusted, and valid for 89d 23h")
    assert _severities(done)["models"] == "ok"


async def test_a_certificate_of_an_unknown_authority_fails_in_words(tmp_path: Path) -> None:
    """The key is not sent; the message says what is not trusted."""
    server, _ = certificate(tmp_path, f"IP:{HOST}", days=90)
    async with _provider(tls=server) as port:
        (step,) = await _check(_at(port, scheme="https"))
    assert (step.where, step.severity) == ("TLS", "error")
    assert step.message == f"The certificate of {HOST} is not trusted: self-signed certificate."


async def test_a_port_without_tls_does_not_answer() -> None:
    """HTTPS asked of a plain port that waits for a request."""
    async with _provider() as port:
        (step,) = await _check(_at(port, scheme="https", connect_timeout_s=1))
    assert step.message == f"{HOST} port {port} does not answer within 1 s."


async def test_a_refused_key_is_told_without_the_key() -> None:
    """The provider's words come through, the key does not."""
    async with FaultUpstream("another-key") as demo:
        done = await _check(Provider(demo.base_url, KEY, ("demo",)))
    assert (done[-1].where, done[-1].severity) == ("key", "error")
    assert done[-1].message.startswith("The provider answers 401: Incorrect API key provided")
    assert KEY not in done[-1].message


async def test_without_a_key_the_step_says_where_one_belongs() -> None:
    """Nothing is asked of the provider then."""
    async with FaultUpstream(KEY) as demo:
        done = await _check(Provider(demo.base_url, "", ("demo",)))
        assert demo.total_requests == 0
    assert (done[-1].where, done[-1].message) == ("key", "There is none.")


async def test_a_compressed_answer_is_not_decompressed() -> None:
    """A small answer that would become a large one is refused as it came; none was asked for."""
    bomb = gzip.compress(b" " * (64 << 20))
    async with _provider(body=bomb, headers={"Content-Encoding": "gzip"}) as port:
        done = await _check(_at(port))
    assert (done[-1].where, done[-1].severity) == ("models", "error")
    assert "not with a list of models" in done[-1].message


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, "{}", "The provider answers 404."),
        (307, "", "The provider answers 307."),
        (503, '{"error":{"message":"tired"}}', "The provider answers 503: tired."),
        (200, "<html>", "answers, but not with a list of models"),
        (200, '{"data":[{}]}', "answers, but not with a list of models"),
        (503, f'{{"error":{{"message":"{KEY}"}}}}', "The provider answers 503: [key]."),
    ],
)
async def test_a_provider_without_models_fails_there(status: int, body: str, said: str) -> None:
    """Whatever it answers instead is named, and never with the key in it."""
    async with _provider(status, body) as port:
        done = await _check(_at(port))
    assert (done[-1].where, done[-1].severity) == ("models", "error")
    assert said in done[-1].message
    assert done[-1].remedy
    assert KEY not in repr(done)


async def test_a_model_that_is_not_offered_is_doubtful_with_a_hint() -> None:
    """A slip in chat.default_model is found here, with the name that was meant."""
    async with _provider() as port:
        done = await _check(_at(port, models=("gpt-4o-mni",)))
    assert (done[-1].where, done[-1].severity) == ("models", "warning")
    assert "gpt-4o-mni (did you mean gpt-4o-mini?)" in done[-1].message


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_the_check_goes_through_the_proxy(scheme: str) -> None:
    """The proxy makes the connection, and is a step of its own."""
    async with FaultUpstream(KEY) as demo, running_proxy() as proxy:
        url = proxy.url(scheme)
        done = await _check(Provider(demo.base_url, KEY, ("demo",), proxy_url=url))
    assert _severities(done) == {"proxy": "ok", "TLS": "warning", "key": "ok", "models": "ok"}
    assert proxy.targets == [f"{HOST}:{demo.port}"]


async def test_a_proxy_that_refuses_is_told_without_its_password() -> None:
    """A wrong password ends the check at the proxy, with a remedy."""
    async with FaultUpstream(KEY) as demo, running_proxy() as proxy:
        url = proxy.url("http", "wrong-word")
        *_, finding = await _check(Provider(demo.base_url, KEY, ("demo",), proxy_url=url))
    assert (finding.where, finding.severity) == ("proxy", "error")
    assert f"the proxy http://{HOST}:{proxy.port} refused: 407" in finding.message
    assert "upstream.proxy" in finding.remedy
    assert "wrong-word" not in str(finding)


async def test_a_proxy_that_cannot_be_reached_is_told() -> None:
    """The address in upstream.proxy is what to look at."""
    proxy_url = f"http://{HOST}:{closed_port()}"
    *_, finding = await _check(_at(closed_port(), proxy_url=proxy_url))
    assert (finding.where, finding.severity) == ("proxy", "error")
    assert f"the proxy {proxy_url} cannot be reached: Connection refused" in finding.message
    assert "address, user and password in upstream.proxy" in finding.remedy


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_certificate_behind_the_proxy_that_is_not_trusted_is_not_the_proxys_password(
    scheme: str, tmp_path: Path
) -> None:
    """As with a proxy that decrypts TLS: what is missing is its authority."""
    server, client = certificate(tmp_path, f"IP:{HOST}", days=90)
    async with _provider(tls=server) as port, running_proxy() as proxy:
        url = proxy.url(scheme)
        (untrusted,) = await _check(_at(port, scheme="https", proxy_url=url))
        trusted = await _check(_at(port, scheme="https", proxy_url=url, ssl_context=client))
    assert (untrusted.where, untrusted.severity) == ("TLS", "error")
    assert "its certificate is not trusted: self-signed certificate through the proxy" in untrusted.message
    assert (
        "if the proxy decrypts TLS, add the proxy's authority to the system's, or set SSL_CERT_FILE"
        in untrusted.remedy
    )
    assert "password" not in untrusted.remedy
    assert _severities(trusted) == {"proxy": "ok", "key": "ok", "models": "ok"}


async def test_a_provider_behind_the_proxy_that_has_no_tls_is_told() -> None:
    """HTTPS asked of a port that answers in plain text: the address is wrong, no authority is missing."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await asyncio.sleep(PATIENCE_S)

    async with serving(answer) as port, running_proxy() as proxy:
        (finding,) = await _check(_at(port, scheme="https", proxy_url=proxy.url("http")))
    assert (finding.where, finding.severity) == ("TLS", "error")
    assert "TLS failed: wrong version number through the proxy" in finding.message
    assert finding.remedy == "are scheme and port in upstream.base_url right?"


async def test_an_https_proxy_that_is_not_trusted_is_told(tmp_path: Path) -> None:
    """The step is the proxy, the remedy is its authority."""
    server, _ = certificate(tmp_path, f"IP:{HOST}", days=90)
    async with FaultUpstream(KEY) as demo, running_proxy(tls=server) as proxy:
        provider = Provider(demo.base_url, KEY, ("demo",), proxy_url=proxy.url("https"))
        *_, finding = await _check(provider)
    assert (finding.where, finding.severity) == ("proxy", "error")
    assert "its certificate is not trusted" in finding.message
    assert "SSL_CERT_FILE" in finding.remedy


async def _run(home: Path, demo: FaultUpstream, key: str, *words: str) -> tuple[int | None, str]:
    env = environment(home, {"OPENAI_API_KEY": key, "RELAYD_UPSTREAM__BASE_URL": demo.base_url})
    process = await asyncio.create_subprocess_exec(
        *command("check", "--upstream", *words),
        env=env,
        cwd=home,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert key not in out.decode()
    return process.returncode, out.decode()


async def test_the_command_checks_what_is_configured(tmp_path: Path) -> None:
    """`relayd check --upstream` takes everything from the configuration, and shows a line for each step."""
    async with FaultUpstream(KEY) as demo:
        status, out = await _run(tmp_path, demo, KEY)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("ok       connect       127.0.0.1 port ")
    assert lines[-1].startswith(
        "ok       models        The provider offers 2, including all that are configured."
    )


async def test_every_route_is_checked(tmp_path: Path) -> None:
    """Each with its own key, for the models that it serves; a finding says which route it is of."""
    (tmp_path / "spare").write_text("another-key")
    (tmp_path / "spare").chmod(0o600)
    async with FaultUpstream(KEY) as demo, FaultUpstream("not-that-key") as other:
        (tmp_path / "relayd.toml").write_text(
            f"""
            [chat]
            default_model = "old-name"
            [aliases]
            old-name = "gpt-4o-mini"
            [[upstream.route]]
            name = "main"
            [[upstream.route]]
            name = "spare"
            base_url = "{other.base_url}"
            openai_api_key_file = "spare"
            """
        )
        status, out = await _run(tmp_path, demo, KEY)
    assert status == 1
    assert "ok       main key      The provider accepts it.\n" in out
    assert "ok       main models   The provider offers 2, including all that are configured.\n" in out
    assert "ERROR    spare key     The provider answers 401: " in out
    assert "another-key" not in out


async def test_an_error_is_shown_with_its_remedy_and_status_1(tmp_path: Path) -> None:
    """For people the remedy stands below the error; programs get one document."""
    async with FaultUpstream(KEY) as demo:
        status, out = await _run(tmp_path, demo, "not-the-key")
        as_json = await _run(tmp_path, demo, "not-the-key", "--json")
    lines = out.splitlines()
    assert (status, as_json[0]) == (1, 1)
    assert lines[-2].startswith("ERROR    key           The provider answers 401: ")
    assert lines[-1] == f"{'':<23}-> make a new key at the provider, and use that one"
    told = json.loads(as_json[1])
    assert told["ok"] is False
    assert told["findings"][-1] == {
        "severity": "error",
        "where": "key",
        "message": lines[-2].partition("key ")[2].strip(),
        "remedy": "make a new key at the provider, and use that one",
        "key": "",
    }
