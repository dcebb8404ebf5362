"""SIGHUP, as the operator of a real daemon meets it."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from pathlib import Path
from typing import Any

import pytest

from relayd.admin.client import Refused
from relayd.admin.schema import Applies
from relayd.config import Settings
from relayd.reload import ConfigReloader
from relayd.systemd import ServiceManager
from tests.e2e.daemon import KEY, Daemon, closed_port
from tests.harness import running_relay
from tests.support.certificates import Authority
from tests.support.upstream import FaultUpstream
from tests.test_systemd import Manager
from tests.wire import HOST, Wire, ask, body, post, until

_QUICK = "demo:text=words,deltas=1,interval_ms=0,first_ms=0"


async def _reload(daemon: Daemon, marks: str, **settings: Any) -> str:
    """Change the file, send SIGHUP, wait for `marks` on stderr, and return what was written since."""
    known = len(daemon.stderr)
    daemon.configure({name.replace("__", "."): value for name, value in settings.items()})
    daemon.signal(signal.SIGHUP)
    await until(lambda: marks in daemon.stderr[known:])
    return daemon.stderr[known:]


async def test_what_may_change_live_changes_and_the_rest_is_named(tmp_path: Path) -> None:
    """Models, CORS, limits, times and the log's level change under an open stream, which goes on."""
    with Daemon(tmp_path) as daemon:
        async with await Wire.open(daemon.port) as wire:
            head = await wire.begin(post(KEY, body("demo:text=words,deltas=10000,interval_ms=10")))
            said = await _reload(
                daemon,
                "restart",
                chat__allowed_models=["other"],
                cors__allow_origins=["https://page.example"],
                server__max_streams_per_address=1,
                server__max_body_bytes=300,
                server__port=1,
                log__level="error",
                alerts__command=["curl", "https://hooks.example/canary-token"],
            )
            assert "alerts.command has changed" in said
            assert "canary" not in said
            assert "chat.allowed_models is now other, was empty" in said
            assert "server.max_streams_per_address is now 1, was 50" in said
            assert "after a restart: server.port" in said
            assert (await ask(daemon.port, KEY, body(_QUICK))).status == 429
            await _tells_what_waits(daemon)
            assert (await daemon.admin.status()).streams.streaming == 1
            await wire.first_piece(head)
            assert head.error is None
        foreign = await ask(daemon.port, KEY, body(_QUICK), {"Origin": "https://other.example"})
        assert foreign.status == 403
        assert foreign.header("Access-Control-Allow-Origin") is None
        assert (await ask(daemon.port, KEY, body("other", stop="x" * 300))).status == 413
        assert " WARNING request" not in daemon.stderr.split("after a restart")[1], "level error shows none"


async def _tells_what_waits(daemon: Daemon) -> None:
    """`GET /config` has what is in force, what waits for the restart, and the last reload."""
    known = await daemon.admin.configuration()
    found = {setting.name: setting for setting in known.settings}
    assert (found["chat.allowed_models"].value, found["chat.allowed_models"].new_value) == ('["other"]', None)
    assert (found["server.port"].new_value, found["server.port"].applies) == ("1", Applies.RESTART)
    assert known.last_reload is not None
    assert known.last_reload.report.waiting == ["server.port"]
    assert min(known.process.memory_bytes, known.process.open_files) > 0
    assert known.problems == []
    assert known.log is not None


async def test_a_faulty_file_changes_nothing_and_is_reported(tmp_path: Path) -> None:
    """One wrong value keeps all the others out; corrected, they apply."""
    with Daemon(tmp_path) as daemon:
        said = await _reload(
            daemon, "nothing was changed", chat__allowed_models=["other"], server__max_streams=0
        )
        assert "server.max_streams" in said
        known = await daemon.admin.configuration()
        assert "server.max_streams" in "".join(known.problems), "as long as the file is so"
        assert known.last_reload is not None
        assert known.last_reload.report.error is not None
        assert (await ask(daemon.port, KEY, body(_QUICK))).status == 200
        await _reload(daemon, "allowed_models is now other", server__max_streams=10)
        assert (await ask(daemon.port, KEY, body(_QUICK))).status == 403
        assert "has not changed" in await _reload(daemon, "has not changed")


async def test_tls_files_are_read_again(tmp_path: Path) -> None:
    """Another certificate is shown at once; one that cannot be used is reported and changes nothing."""
    authority = Authority(tmp_path / "ca")
    one, two = authority.pair("one"), authority.pair("two")
    with Daemon(tmp_path, settings={"tls.cert": str(one.cert), "tls.key": str(one.key)}) as daemon:
        await _reload(daemon, "tls.key is", tls__cert=str(two.cert), tls__key=str(two.key))
        assert await _name(daemon.port, authority.trusted()) == "two"
        said = await _reload(
            daemon, "nothing was changed", tls__cert=str(one.cert), chat__allowed_models=["x"]
        )
        assert "does not belong to the certificate" in said
        assert await _name(daemon.port, authority.trusted()) == "two"


async def test_the_providers_key_is_replaced_under_open_streams(tmp_path: Path) -> None:
    """`relayd reload` reads its file again: new requests bring the new key, the open stream goes on."""
    old, new = "provider-key-before-the-change", "provider-key-after-the-change"
    file = tmp_path / "provider-key"
    _write_key(file, old)
    async with FaultUpstream(old) as upstream:
        settings = {"upstream.base_url": upstream.base_url, "openai_api_key_file": str(file)}
        with Daemon(tmp_path, settings=settings, env={"OPENAI_API_KEY": ""}) as daemon:
            async with await Wire.open(daemon.port) as wire:
                head = await wire.begin(post(KEY, body("demo:text=words,deltas=10000,interval_ms=10")))
                _write_key(file, new)
                upstream.key = new
                assert (await ask(daemon.port, KEY, body(_QUICK))).error is not None
                report = await daemon.admin.reload()
                assert report.changed == ["openai_api_key is now the one from provider-key"]
                assert (await ask(daemon.port, KEY, body(_QUICK))).error is None
                await wire.first_piece(head)
                assert head.error is None
            _write_key(file, "")
            with pytest.raises(Refused, match=r"openai_api_key must be .*; it is empty"):
                await daemon.admin.reload()
            assert (await ask(daemon.port, KEY, body(_QUICK))).error is None
            told = daemon.stderr
    assert old not in told
    assert new not in told


async def test_a_route_without_an_address_keeps_that_of_the_start(tmp_path: Path) -> None:
    """As the report says: another upstream.base_url waits for a restart."""
    with Daemon(tmp_path, settings={"upstream.route": [{"name": "main"}]}) as daemon:
        daemon.configure(
            {
                "upstream.base_url": f"http://{HOST}:{closed_port()}/v1",
                "upstream.route": [{"name": "main"}, {"name": "new"}],
            }
        )
        report = await daemon.admin.reload()
        assert (report.changed, report.waiting) == (
            ["upstream.route has changed: new"],
            ["upstream.base_url"],
        )
        for _ in range(5):
            assert (await ask(daemon.port, KEY, body(_QUICK))).error is None


def _write_key(path: Path, key: str) -> None:
    path.write_text(key)
    path.chmod(0o600)


async def test_a_bug_in_a_reload_is_logged_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The settings in force stay, the caller is told, and the daemon can still end."""

    def read() -> Settings:
        raise RuntimeError("a bug")

    async with running_relay() as relay:
        reloader = ConfigReloader(relay.settings, read, ServiceManager(None))
        reported = await reloader.reload(lambda _: None)
        assert reported.error == "An unexpected RuntimeError; see the log."
        assert "a bug" in caplog.text
        assert reloader.current is relay.settings
        await reloader.close()


async def test_systemd_is_told_when_a_reload_begins_and_ends(tmp_path: Path) -> None:
    """RELOADING with its time, then READY, whether the file could be used or not."""
    address = f"@relayd-live-{os.getpid()}"
    with Manager(address) as manager, Daemon(tmp_path, env={"NOTIFY_SOCKET": address}) as daemon:
        await manager.until("READY=1")
        for max_streams in (10, 0):
            daemon.configure({"server.max_streams": max_streams})
            daemon.signal(signal.SIGHUP)
            began = await manager.until("RELOADING=1")
            assert began[1].startswith("MONOTONIC_USEC=")
            assert await manager.message() == ["READY=1"]


async def test_a_volley_of_signals_ends_with_the_last_file(tmp_path: Path) -> None:
    """However the signals fall, what the file says last is in force."""
    with Daemon(tmp_path) as daemon:
        for streams in range(11, 31):
            daemon.configure({"server.max_streams": streams})
            daemon.signal(signal.SIGHUP)
            await asyncio.sleep(0.005)
        await until(lambda: "max_streams is now 30" in daemon.stderr)
        assert (await daemon.admin.status()).max_streams == 30


async def _name(port: int, context: ssl.SSLContext) -> str:
    _, writer = await asyncio.open_connection(HOST, port, ssl=context)
    found: str = dict(entry[0] for entry in writer.get_extra_info("peercert")["subject"])["commonName"]
    writer.close()
    await writer.wait_closed()
    return found
