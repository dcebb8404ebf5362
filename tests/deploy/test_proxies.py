"""relayd behind nginx, Caddy and HAProxy, each as Debian ships it and with the file of docs/deploy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.deploy.proxies import NAME, Front, front
from tests.e2e.daemon import KEY, PROVIDER_KEY, Daemon, closed_port, command, environment
from tests.support.browser import open_page
from tests.support.programs import needs, require
from tests.support.upstream import FaultUpstream
from tests.wire import HOST, PATIENCE_S, Reply, Wire, body, post

pytestmark = pytest.mark.usefixtures("only_large")

_HEARTBEAT_S = 0.8
_ELSEWHERE = "127.0.0.2"
"""A client's address that is not the proxy's."""
_FIVE_WORDS = "The relay passes each delta "
_HALTING = "demo:interval_ms=20,text=words,deltas=8,fault=stall_mid,after=5"
_ENDLESS = "demo:deltas=10000,interval_ms=40,text=words"


@dataclass(frozen=True, slots=True)
class Site:
    """A daemon behind one proxy."""

    daemon: Daemon
    front: Front
    upstream_port: int

    @asynccontextmanager
    async def demo(self) -> AsyncIterator[FaultUpstream]:
        """The provider, in the test's own loop."""
        async with FaultUpstream(PROVIDER_KEY, port=self.upstream_port) as demo:
            yield demo

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        """A connection over TLS, from an address of its own."""
        streams = await asyncio.open_connection(
            HOST,
            self.front.port,
            ssl=self.front.tls("http/1.1"),
            server_hostname=NAME,
            local_addr=(_ELSEWHERE, 0),
        )
        async with Wire(*streams) as wire:
            yield wire


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, int]]:
    """One daemon for all proxies, and the port of its provider."""
    upstream_port = closed_port()
    settings = {
        "upstream.base_url": f"http://{HOST}:{upstream_port}/v1",
        "chat.heartbeat_s": _HEARTBEAT_S,
    }
    with Daemon(tmp_path_factory.mktemp("daemon"), settings=settings) as daemon:
        yield daemon, upstream_port


@pytest.fixture(scope="module", params=["nginx", "caddy", "haproxy"])
def site(
    request: pytest.FixtureRequest, behind: tuple[Daemon, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Each proxy before the daemon."""
    kind = request.param
    require(kind)
    daemon, upstream_port = behind
    with front(kind, tmp_path_factory.mktemp(kind), daemon.port, idle_s=2) as running:
        yield Site(daemon, running, upstream_port)


def _post(
    payload: bytes, *, key: str = KEY, headers: dict[str, str] | None = None, path: str = "/chat"
) -> bytes:
    """A request to the site's own name: a proxy answers others otherwise."""
    return post(key, payload, headers, path=path).replace(b"Host: relay\r\n", f"Host: {NAME}\r\n".encode())


async def _ask(site: Site, model: str, headers: dict[str, str] | None = None) -> Reply:
    async with site.wire() as wire:
        wire.send(_post(body(model), headers=headers))
        return await wire.reply()


async def test_each_line_comes_through_at_once(site: Site) -> None:
    """Five words are there although the model falls silent after them: none waits for the next."""
    async with site.demo() as demo, site.wire() as wire:
        wire.send(_post(body(_HALTING)))
        reply = await wire.head()
        while reply.text != _FIVE_WORDS:
            await wire.first_piece(reply)
        assert not (await demo.wait_request(0)).completed
    assert reply.status == 200
    assert reply.error is None
    assert reply.header("Content-Encoding") is None


async def test_the_clients_address_is_recorded_not_the_proxys_nor_a_claimed_one(site: Site) -> None:
    """The record holds where the client connected from, whatever X-Forwarded-For it sends itself."""
    async with site.demo():
        reply = await _ask(site, "demo:interval_ms=0", {"X-Forwarded-For": "192.0.2.66"})
    assert (await site.daemon.record(reply)).ip == _ELSEWHERE


@pytest.mark.parametrize("phase", ["waiting", "streaming"])
async def test_a_client_that_leaves_ends_the_models_work(site: Site, phase: str) -> None:
    """When the client leaves, the provider's connection is closed, in any phase."""
    model = _ENDLESS if phase == "streaming" else "demo:first_ms=300000"
    async with site.demo() as demo:
        async with site.wire() as wire:
            wire.send(_post(body(model)))
            await demo.wait_request(0)
            # Before the first word too the head comes, with the first heartbeat.
            await wire.first_piece(await wire.head())
        assert (await demo.wait_closed(0)).completed is False


async def test_a_client_that_leaves_before_any_answer_ends_the_models_work(site: Site) -> None:
    """Also before the first heartbeat, when the proxy has seen nothing of the reply yet."""
    async with site.demo() as demo:
        async with site.wire() as wire:
            wire.send(_post(body("demo:headers_ms=300000")))
            await demo.wait_request(0)
        assert (await demo.wait_closed(0)).completed is False


async def test_a_silence_longer_than_the_proxys_patience_is_survived(site: Site) -> None:
    """Heartbeats hold a proxy off that gives up after 2 s, through 4 s without a word."""
    async with site.demo():
        reply = await _ask(site, "demo:first_ms=4000,interval_ms=0")
    assert reply.status == 200
    assert reply.error is None
    assert sum(1 for line in reply.lines if line["content"] == "") >= 2


async def test_without_heartbeats_the_same_silence_is_not_survived(
    request: pytest.FixtureRequest, site: Site, tmp_path: Path
) -> None:
    """The test before this one can fail: in front of the provider, which sends none, the proxy cuts."""
    kind = request.node.callspec.params["site"]
    with front(kind, tmp_path, site.upstream_port, idle_s=2) as running:
        async with site.demo(), Site(site.daemon, running, site.upstream_port).wire() as wire:
            request_ = {"model": "demo:headers_ms=0,first_ms=4000", "stream": True, "messages": []}
            request_["messages"] = [{"role": "user", "content": "hi"}]
            payload = json.dumps(request_).encode()
            wire.send(_post(payload, key=f"Bearer {PROVIDER_KEY}", path="/v1/chat/completions"))
            reply = await wire.reply()
    # nginx and HAProxy break it off, Caddy even ends it in good order: only the protocol's end is missing.
    assert b"[DONE]" not in reply.body


async def test_a_large_body_passes_and_one_too_large_gets_relayds_own_answer(site: Site) -> None:
    """A body just under 2 MiB is relayed; one over it is refused by relayd, in the two lines."""
    async with site.demo():
        for size, status in ((2_000_000, 200), (2_200_000, 413)):
            async with site.wire() as wire:
                payload = body("demo:interval_ms=0", messages=[{"role": "user", "content": "x" * size}])
                wire.send(_post(payload))
                reply = await wire.reply()
            assert reply.status == status
            assert (reply.error or "").startswith("too_large: " if status == 413 else "")
            assert reply.lines[-1]["done"]


async def test_errors_and_cors_come_through_as_relayd_sends_them(site: Site) -> None:
    """A refusal keeps its status, its lines and one CORS header; a preflight needs no key."""
    async with site.wire() as wire:
        wire.send(_post(body("demo"), key="wrong", headers={"Origin": "https://page.example"}))
        reply = await wire.reply()
    assert reply.status == 401
    assert (reply.error or "").startswith("unauthorized: ")
    assert reply.header("Access-Control-Allow-Origin") == "https://page.example"
    assert reply.header("X-Relayd-Error") == "unauthorized"
    async with site.wire() as wire:
        wire.send(
            b"OPTIONS /chat HTTP/1.1\r\nHost: relay.example.com\r\nOrigin: https://page.example\r\n"
            b"Access-Control-Request-Method: POST\r\n\r\n"
        )
        preflight = await wire.reply()
    assert preflight.status == 204
    assert preflight.header("Access-Control-Allow-Origin") == "https://page.example"


async def test_plain_http_is_sent_to_https(site: Site) -> None:
    """Port 80 answers with a redirect that keeps the method."""
    async with await Wire.open(site.front.plain_port) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: relay.example.com\r\n\r\n")
        reply = await wire.head()
    assert reply.status == 308
    assert (reply.header("Location") or "").startswith("https://relay.example.com")


async def test_http_2_streams_as_well(site: Site) -> None:
    """Over HTTP/2 too each line comes at once, although the model falls silent after it (curl)."""
    require("curl")
    async with site.demo():
        curl = await asyncio.create_subprocess_exec(
            "curl",
            *("--no-progress-meter", "--no-buffer", "--http2", "--include"),
            *("--cacert", str(site.front.authority), "--resolve", f"{NAME}:{site.front.port}:{HOST}"),
            *("--header", f"Authorization: {KEY}", "--data", body(_HALTING).decode()),
            f"https://{NAME}:{site.front.port}/chat",
            stdout=asyncio.subprocess.PIPE,
        )
        assert curl.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert (await curl.stdout.readline()).strip() == b"HTTP/2 200"
            while (await curl.stdout.readline()).strip():
                pass
            text = ""
            while text != _FIVE_WORDS:
                text += json.loads(await curl.stdout.readline())["content"]
            curl.terminate()
            await curl.communicate()


@needs("nginx")
async def test_a_default_nginx_does_not_hold_lines_back(behind: tuple[Daemon, int], tmp_path: Path) -> None:
    """Its buffering is on by default: the reply's own X-Accel-Buffering turns it off."""
    daemon, upstream_port = behind
    with front("nginx", tmp_path, daemon.port, spoiled={"proxy_buffering off;": ""}) as running:
        site = Site(daemon, running, upstream_port)
        async with site.demo(), site.wire() as wire:
            wire.send(_post(body(_HALTING)))
            reply = await wire.head()
            while reply.text != _FIVE_WORDS:
                await wire.first_piece(reply)
            assert all(line["content"] for line in reply.lines)


@pytest.mark.parametrize(
    ("kind", "spoiled"),
    [
        ("nginx", {"keepalive 16;": "keepalive 64; keepalive_timeout 1s;"}),
        ("caddy", {r"(reverse_proxy \S+)": r"\1 {\n transport http {\n keepalive 1s\n }\n}"}),
        (
            "haproxy",
            {
                # Each time it closes half of the idle ones.
                r"(server relayd \S+)": r"\1 pool-purge-delay 150ms",
                # The test's own connections to the proxy stay, however slow the machine.
                r"http-keep-alive 10s": "http-keep-alive 600s",
            },
        ),
    ],
)
async def test_kept_connections_end_without_a_lost_request(
    kind: str, spoiled: dict[str, str], tmp_path: Path
) -> None:
    """The daemon keeps them for longer than the proxy, so that no request meets one that is being closed.

    Its 3 s stand for 130 s, the proxy's times for 60 s (nginx), 120 s (Caddy) and 5 s (HAProxy).
    """
    require(kind)
    upstream_port = closed_port()
    settings = {"upstream.base_url": f"http://{HOST}:{upstream_port}/v1", "server.keep_alive_s": 3}
    with (
        Daemon(tmp_path, settings=settings) as daemon,
        front(kind, tmp_path, daemon.port, spoiled=spoiled) as running,
    ):
        site = Site(daemon, running, upstream_port)
        async with site.demo(), AsyncExitStack() as stack:
            wires = [await stack.enter_async_context(site.wire()) for _ in range(40)]
            for idle_s in (0.0, 0.95, 1.0, 1.05, 3.0):
                await asyncio.sleep(idle_s)
                for wire in wires:
                    wire.send(_post(body("demo:deltas=1,interval_ms=0")))
                replies = [await wire.reply() for wire in wires]
                assert [reply.status for reply in replies] == [200] * len(wires)


async def _doctor(port: int, authority: Path, *severities: str) -> dict[str, str]:
    """What `relayd doctor` finds of these severities: check and message."""
    process = await asyncio.create_subprocess_exec(
        *command("doctor", "--json", "--ca", str(authority), "--address", HOST, f"https://{NAME}:{port}"),
        env=environment(authority.parent, {"AUTHORIZATION_KEY": KEY}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 3 * PATIENCE_S)
    found = json.loads(out)
    assert process.returncode == bool(found["errors"])
    return {
        finding["where"]: finding["message"]
        for finding in found["findings"]
        if finding["severity"] in severities
    }


async def test_the_doctor_finds_nothing_wrong(site: Site) -> None:
    """Behind each proxy as documented, every check of `relayd doctor` is good."""
    assert await _doctor(site.front.port, site.front.authority, "error") == {}


@pytest.mark.parametrize(
    ("kind", "spoiled", "check"),
    [
        ("nginx", {r"(?m)^.*client_max_body_size.*$": ""}, "large bodies"),
        ("nginx", {"proxy_buffering off;": "proxy_ignore_client_abort on;"}, "disconnects"),
        ("nginx", {"proxy_buffering off;": "proxy_ignore_headers X-Accel-Buffering;"}, "streaming"),
        ("caddy", {r"(reverse_proxy \S+)": r"\1 {\n flush_interval -1\n}"}, "disconnects"),
        ("haproxy", {r"(?m)^    option abortonclose\n": ""}, "disconnects"),
    ],
)
async def test_the_doctor_finds_what_a_careless_hand_changed(
    kind: str, spoiled: dict[str, str], check: str, behind: tuple[Daemon, int], tmp_path: Path
) -> None:
    """Each line of the documented files that looks as if it could go is missed when it is gone."""
    require(kind)
    with front(kind, tmp_path, behind[0].port, spoiled=spoiled) as running:
        # On a machine so slow that the check cannot be made, the doctor warns of that.
        assert check in await _doctor(running.port, running.authority, "error", "warning")


async def test_stop_in_a_browser_reaches_the_model_over_http_2(site: Site) -> None:
    """The page's Stop resets one HTTP/2 stream, and the provider's connection closes before its end."""
    # Chromium takes the site's name for this machine.
    name = f"--host-resolver-rules=MAP {NAME} 127.0.0.1"
    async with site.demo() as demo, open_page(name, ignore_https_errors=True) as page:
        await page.goto(f"https://{NAME}:{site.front.port}/")
        await page.fill("#key", KEY)
        await page.fill("#model", _ENDLESS)
        await page.fill("#text", "Say hi")
        await page.press("#text", "Enter")
        await expect(page.locator(".model p").first).to_contain_text("The relay")
        assert await page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
        await page.keyboard.press("Escape")
        await demo.wait_closed(0)
