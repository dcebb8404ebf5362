"""Behaviour of `relayd clients`: what the operator sees, and what a script can take."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.admin.bound_texts import parse_expiry
from relayd.state.budget import NANO, Demand, Use
from relayd.state.records import epoch_s
from tests.admin.harness import admin_api
from tests.commands.harness import relayd, run

_KEY = re.compile(r"rly_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}")
ALL_BOUNDS = (
    *("--models", "gpt-4o*, o3", "--endpoints", "/chat", "--origins", "https://a.example"),
    *("--max-streams", "5", "--requests-per-minute", "60", "--tokens-per-minute", "20k"),
    *("--tokens-per-day", "2M", "--tokens-per-month", "30000000", "--usd-per-day", "$1.50"),
    *("--usd-per-month", "20", "--max-output-tokens", "4096", "--expires", "30d", "--note", "Anna's phone"),
)


async def test_add_shows_the_key_once_and_how_to_use_it(tmp_path: Path) -> None:
    """The key is alone on stdout; base URLs and a request that works are beside it."""
    async with admin_api(tmp_path) as api:
        ran = await relayd(api.socket, "clients", "add", "anna", *ALL_BOUNDS)
        assert ran.status == 0, ran.err
        assert _KEY.fullmatch(ran.out.removesuffix("\n"))
        owner = api.state.ring.verify(ran.out.strip().encode())
        assert owner is not None
        assert owner.client == "anna"
        assert ran.err.startswith("Client anna is added (models gpt-4o*,o3; endpoints /chat; ")
        assert "shown only this once" in ran.err
        assert "URL for web pages:           http://a/chat" in ran.err
        assert "/v1" not in ran.err
        assert 'await fetch("http://a/chat", {' in ran.err
        assert _KEY.search(ran.err) is None
        client = api.state.ring.client("anna")
        assert client is not None
        assert (client.models, client.origins) == (("gpt-4o*", "o3"), ("https://a.example",))
        assert (client.tokens_per_minute, client.tokens_per_day) == (20_000, 2_000_000)
        assert (client.usd_per_day, client.usd_per_month) == (1.5, 20.0)
        assert abs(epoch_s(client.expires_at or "") - time.time() - 30 * 86_400) < 3600


async def test_a_client_without_bounds_is_told_both_addresses(tmp_path: Path) -> None:
    """Everything is open to it; one for `/v1` alone gets a request for that."""
    async with admin_api(tmp_path) as api:
        ran = await relayd(api.socket, "clients", "add", "anna")
        assert ran.err.startswith("Client anna is added (without bounds), with the key ")
        assert "Base URL for OpenAI clients: http://a/v1\n" in ran.err
        assert "http://a/chat" in ran.err
        ran = await relayd(api.socket, "clients", "add", "ide", "--endpoints", "/v1/*")
        assert "http://a/chat" not in ran.err
        assert 'fetch("http://a/v1/chat/completions"' in ran.err


async def test_set_changes_what_is_named_and_none_removes(tmp_path: Path) -> None:
    """The answer says which bounds hold now."""
    async with admin_api(tmp_path) as api:
        await relayd(api.socket, "clients", "add", "anna", *ALL_BOUNDS)
        ran = await relayd(
            *(api.socket, "clients", "set", "anna", "--models", "none", "--usd-per-day", "none"),
            *("--expires", "none", "--endpoints", "none", "--origins", "none", "--max-streams", "6"),
        )
        assert ran.status == 0, ran.err
        assert ran.out == (
            "Client anna has these bounds from its next request on: 6 at once; 60 requests/min; "
            "20,000 tokens/min; 2,000,000 tokens/day; 30,000,000 tokens/month; 4,096 tokens an answer; "
            "$20.00/month.\n"
        )
        client = api.state.ring.client("anna")
        assert client is not None
        assert (client.models, client.expires_at, client.note) == ((), None, "Anna's phone")


async def test_the_list_has_one_line_a_client(tmp_path: Path) -> None:
    """Keys, use, money against its bound, last use, bounds and note; removed clients only in JSON."""
    async with admin_api(tmp_path) as api:
        await relayd(
            *(api.socket, "clients", "add", "anna", "--usd-per-month", "20", "--expires", "30d"),
            *("--note", "the phone"),
        )
        await relayd(api.socket, "clients", "add", "gone")
        await relayd(api.socket, "clients", "remove", "gone")
        client = api.state.ring.client("anna")
        assert client is not None
        use = Use(requests=1, tokens=1234, nano_usd=NANO // 4)
        await api.state.budget.reserve(Demand("r1", client, "k", "o3", most=use, least=use))
        ran = await relayd(api.socket, "clients", "list")
        head, anna, default = ran.lines
        assert head.split("  ")[0] == "CLIENT"
        assert re.fullmatch(
            r"anna +1 +1 request, 1,234 tokens +\$0.25 of \$20.00 +never +"
            r"\$20.00/month; expires in 29d 23h; the phone",
            anna,
        )
        assert re.fullmatch(r"default +1 +0 requests, 0 tokens +\$0.00 +never", default)
        document = json.loads((await relayd(api.socket, "clients", "list", "--json")).out)
        assert [client["name"] for client in document["clients"]] == ["anna", "default", "gone"]


async def test_small_amounts_are_written_as_people_write_them(tmp_path: Path) -> None:
    """Not as 2.6e-05."""
    async with admin_api(tmp_path) as api:
        client = api.state.ring.client("default")
        assert client is not None
        use = Use(requests=1, tokens=40, nano_usd=26_000)
        await api.state.budget.reserve(Demand("r1", client, "k", "o3", most=use, least=use))
        assert "$0.000026 " in (await relayd(api.socket, "clients", "list")).out
        assert "($0.000026)" in (await relayd(api.socket, "status")).out


async def test_remove_says_what_became_of_keys_and_streams(tmp_path: Path) -> None:
    """And the key no longer works."""
    async with admin_api(tmp_path) as api:
        key = (await relayd(api.socket, "clients", "add", "anna")).out.strip()
        ran = await relayd(api.socket, "clients", "remove", "anna")
        assert ran.out == (
            "Client anna is removed. Its keys are revoked (1 key). Its open streams continue to their end.\n"
        )
        assert api.state.ring.verify(key.encode()) is None
        await relayd(api.socket, "clients", "add", "anna")
        ran = await relayd(api.socket, "clients", "remove", "anna", "--cut")
        assert "0 open streams ended." in ran.out


async def test_a_change_in_json_is_one_document(tmp_path: Path) -> None:
    """For scripts: the client, its key and the secret, once."""
    async with admin_api(tmp_path) as api:
        added = json.loads((await relayd(api.socket, "clients", "add", "anna", "--json")).out)
        assert _KEY.fullmatch(added["secret"])
        assert (added["client"]["name"], added["key"]["client"]) == ("anna", "anna")
        changed = json.loads(
            (await relayd(api.socket, "clients", "set", "anna", "--max-streams", "5", "--json")).out
        )
        assert (changed["client"]["max_streams"], changed["secret"]) == (5, None)
        removed = json.loads((await relayd(api.socket, "clients", "remove", "anna", "--json")).out)
        assert removed["revoked"] == [added["key"]["id"]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("add default", "relayd clients set default"),
        ("add a/b", "1 to 64 letters"),
        ("add new --max-streams 0", "max_streams is a whole number from 1"),
        ("add new --origins https://a.example/", "without a path"),
        ("add new --expires 2020-01-31", "a time in the future"),
        ("set default", "Nothing to change"),
        ("set nobody --max-streams 5", "relayd clients list"),
        ("remove nobody", "relayd clients list"),
        ("remove default", "always exists"),
    ],
)
async def test_what_is_refused_is_1_and_says_what_to_do(tmp_path: Path, words: str, says: str) -> None:
    """One line on stderr, nothing on stdout."""
    async with admin_api(tmp_path) as api:
        ran = await relayd(api.socket, "clients", *words.split())
        assert (ran.status, ran.out, len(ran.err.splitlines())) == (1, "", 1)
        assert says in ran.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("add", "NAME"),
        ("set a --models ,", "names nothing; write none for no bound"),
        ("add a --max-streams five", "500, 20k, 2M, or none"),
        ("add a --usd-per-day 1,50", "20 or 1.50, or none"),
        ("set a --expires soon", "12h or 30d, or the last day, such as 2027-01-31, or none"),
        ("set a --expires 2027-02-30", "the last day, such as"),
        ("set a --expires 3661d", "write a span of at most 3660d, or none"),
        ("set a --max-stream 5", "--max-stream"),
    ],
)
def test_wrong_usage_is_2_and_says_what_is_meant(words: str, says: str) -> None:
    """Before any daemon is asked."""
    ran = run("clients", *words.split())
    assert (ran.status, ran.out) == (2, "")
    assert says in ran.err


def test_an_expiry_is_a_span_a_day_or_a_time() -> None:
    """A day counts whole; without a zone it is a day of this machine."""
    now_s = 1_800_000_000.0
    assert epoch_s(parse_expiry("12h", now_s)) == now_s + 12 * 3600
    end_of_day = datetime(2027, 2, 1).astimezone().timestamp()
    assert epoch_s(parse_expiry("2027-01-31", now_s)) == end_of_day
    assert epoch_s(parse_expiry("20270131", now_s)) == end_of_day
    assert epoch_s(parse_expiry("3660d", now_s)) == now_s + 3660 * 86_400
    assert epoch_s(parse_expiry("2027-01-31T12:00:00Z", now_s)) == epoch_s("2027-01-31T12:00:00Z")


@given(st.text(max_size=20))
def test_any_text_is_an_expiry_or_none(text: str) -> None:
    """Whatever comes: a time with a zone, or a refusal."""
    try:
        parsed = parse_expiry(text, 1_800_000_000.0)
    except ValueError:
        return
    assert datetime.fromisoformat(parsed).tzinfo is not None
