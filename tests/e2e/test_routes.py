"""Several provider keys and an alias, as the operator of a real daemon meets them."""

from __future__ import annotations

import json
from pathlib import Path

from relayd.admin.schema import RouteState
from tests.commands.harness import relayd
from tests.e2e.daemon import KEY, PROVIDER_KEY, Daemon
from tests.support.upstream import FaultUpstream
from tests.wire import Wire, ask, body, fetch, post

_QUICK = "demo:text=words,deltas=1,interval_ms=0,first_ms=0"


async def test_a_dead_key_is_seen_everywhere_but_by_the_clients(tmp_path: Path) -> None:
    """In status, metrics, records and the log; a new key in its file and a reload mend it."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    main_key = tmp_path / "main-key"
    for file in (main_key, credentials / "openai_api_key.spare"):
        file.write_text(f"sk-{file.name}-of-this-test")
        file.chmod(0o600)
    async with (
        FaultUpstream("sk-main-key-after-the-change") as main,
        FaultUpstream("sk-openai_api_key.spare-of-this-test") as spare,
    ):
        common = {"models": ["demo*"]}
        routes = [
            {
                "name": "main",
                "base_url": main.base_url,
                "openai_api_key_file": str(main_key),
                "weight": 1000,
                **common,
            },
            {"name": "spare", "base_url": spare.base_url, **common},
        ]
        # Each process finds out by itself which routes work.
        settings = {"upstream.route": routes, "aliases": {"old-name": _QUICK}, "server.workers": 1}
        env = {"OPENAI_API_KEY": "", "CREDENTIALS_DIRECTORY": str(credentials)}
        with Daemon(tmp_path, settings=settings, env=env) as daemon:
            while main.total_requests == 0:
                reply = await ask(daemon.port, KEY, body("old-name"))
                assert reply.error is None
            assert "WARNING route main: cools down for 5" in daemon.stderr
            dead, working = (await daemon.admin.status()).routes
            assert (dead.state, dead.requests, dead.failures, dead.models) == (RouteState.COOLING, 1, 1, [])
            assert dead.error is not None
            assert dead.error.startswith("The provider refused this relay's own key (401)")
            assert (working.name, working.state, working.until) == ("spare", RouteState.OK, None)
            metrics = await daemon.admin.metrics()
            assert 'relayd_route_failures_total{route="main"} 1.0' in metrics
            assert 'relayd_route_cooling{route="spare"} 0.0' in metrics
            shown = (await relayd(daemon.state_dir / "admin.sock", "status")).out
            assert ", 1 request, 1 failure: cools down, tried " in shown
            record = await daemon.record(reply)
            assert (record.route, record.model) == ("spare", _QUICK)
            refused = await ask(daemon.port, KEY, body("gpt-4o"))
            assert refused.error == "model_not_allowed: No route of this relay serves the model 'gpt-4o'."

            main_key.write_text(main.key)
            report = await daemon.admin.reload()
            assert report.changed == ["upstream.route has changed: main"]
            assert report.notes[-1].startswith("openai_api_key.spare: a credential is read by systemd only")
            assert (await daemon.admin.status()).routes[0].state is RouteState.OK
            while (await daemon.admin.status()).routes[0].requests == 1:
                assert (await ask(daemon.port, KEY, body(_QUICK))).error is None
            told = daemon.stderr + shown + metrics
    assert "sk-" not in told


async def test_on_v1_a_stored_response_stays_with_its_route_and_models_are_one_list(tmp_path: Path) -> None:
    """Though another route is asked a thousand times as often."""
    async with FaultUpstream(PROVIDER_KEY) as main, FaultUpstream(PROVIDER_KEY) as other:
        key = tmp_path / "key"
        key.write_text(PROVIDER_KEY)
        key.chmod(0o600)
        routes = [
            {
                "name": name,
                "base_url": upstream.base_url,
                "openai_api_key_file": str(key),
                "weight": weight,
                "models": models,
            }
            for name, upstream, weight, models in (
                ("main", main, 1, ["demo*"]),
                ("other", other, 1000, ["gpt-4o-mini"]),
            )
        ]
        with Daemon(tmp_path, settings={"upstream.route": routes}) as daemon:
            question = json.dumps({"model": _QUICK, "input": "hi"}).encode()
            async with await Wire.open(daemon.port) as wire:
                wire.send(post(f"Bearer {KEY}", question, path="/v1/responses"))
                made = await wire.reply()
            response_id = json.loads(made.body)["id"]
            headers = {"Authorization": f"Bearer {KEY}"}
            found = await fetch(daemon.port, f"/v1/responses/{response_id}", headers)
            assert (found.status, json.loads(found.body)["id"]) == (200, response_id)
            assert (await daemon.record(found)).route == "main"
            assert other.total_requests == 0
            listed = json.loads((await fetch(daemon.port, "/v1/models", headers)).body)["data"]
            assert sorted(model["id"] for model in listed) == ["demo", "gpt-4o-mini"]
            one = await fetch(daemon.port, "/v1/models/demo", headers)
            assert (one.status, (await daemon.record(one)).route) == (200, "main")
