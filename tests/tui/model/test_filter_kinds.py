"""Fields, meanings and built-in filters of each kind of row."""

from __future__ import annotations

import pytest

from relayd.admin.schema import REQUEST_FIELDS, AuditEntry, ClientInfo, PeriodUse, parse_filter
from tests.tui.samples import a_record, an_open
from tui.model.filter_kinds import AUDIT, CLIENTS, REQUESTS, STREAMS, FilterKind, looks_like_key, may_hold_key
from tui.model.open_streams import OpenStreams

KINDS = [REQUESTS, STREAMS, CLIENTS, AUDIT]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_field_has_a_meaning_and_each_built_in_filter_is_valid(kind: FilterKind) -> None:
    """F1 lists every field; what F offers is never refused."""
    assert set(kind.meanings) == set(kind.fields)
    for named in kind.built_in:
        assert parse_filter(named.text, kind.fields).alternatives
    assert parse_filter(kind.example.split("   ")[0], kind.fields).alternatives


def test_each_field_of_a_record_can_be_named() -> None:
    """A new field of the log comes with its meaning."""
    assert set(REQUESTS.meanings) == set(REQUEST_FIELDS)


def test_the_chosen_row_gives_filters_for_more_like_it() -> None:
    """A name with a space is quoted; what the row does not have is left out."""
    record = a_record(1, client="night batch", key_id="Ab12Cd34", model=None, ip="10.0.0.4")
    offered = {
        named.name: named.text
        for named in REQUESTS.filters({"mine": "status=502", "errors": "status=500"}, record)
    }
    assert offered["this client"] == 'client="night batch"'
    assert (offered["this key"], offered["this address"]) == ("key_id=Ab12Cd34", "ip=10.0.0.4")
    assert "this model" not in offered
    assert (offered["mine"], offered["errors"]) == ("status=502", "status=500")
    # A list has each name once: a saved one is meant by it.
    assert [f.text for f in REQUESTS.filters({"this key": "key_id=x"}, record) if f.name == "this key"] == [
        "key_id=x"
    ]
    assert REQUESTS.filters({}, None) == list(REQUESTS.built_in)


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("tokens_today>=1500 usd_month<1", True),
        ("used_percent>=80", True),
        ("used_percent>90", False),
        ("keys=Ab12Cd34 note~ada client=web", True),
        ("requests_today=3", True),
    ],
)
def test_a_client_is_found_by_what_it_used_and_has(text: str, *, passes: bool) -> None:
    """Of its bounds the one counts of which most is used."""
    client = ClientInfo(
        name="web",
        note="Ada's page",
        created_at="2026-01-01",
        keys=("Ef56Gh78", "Ab12Cd34"),
        tokens_per_day=2000,
        usd_per_month=5,
        today=PeriodUse(3, 1700, 0.1),
        month=PeriodUse(9, 9000, 0.5),
    )
    assert parse_filter(text, CLIENTS.fields).matches(client) is passes


def test_a_stream_is_found_by_where_it_is() -> None:
    """In flight filters by the last report of each stream."""
    streams = OpenStreams()
    record = an_open(1, client="web", ip="10.0.0.4")
    streams.started(record)
    [stream] = streams.streams.values()
    assert parse_filter("client=web ip=10.0.0.0/8 waiting_for=upstream", STREAMS.fields).matches(stream)
    assert not parse_filter(f"phase!={record.phase.value}", STREAMS.fields).matches(stream)


def test_an_entry_is_found_by_any_of_its_keys() -> None:
    """A rotation is about two."""
    entry = AuditEntry(at="2026", action="rotate", result="done", key_ids=("new1", "old1"))
    assert parse_filter("key_ids=old1 action=rotate", AUDIT.fields).matches(entry)


def test_a_key_in_a_note_is_known_behind_a_sign_too() -> None:
    """A note compares nothing."""
    assert looks_like_key("it was key=my0wnkey1234567890")
    assert not looks_like_key("told web: key Ab12Cd34 ends on Tuesday=tomorrow")


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("rly_Ab12Cd34_SENSITIVE", True),
        ("client=web sk-proj-abcdef123456", True),
        ("error~sk-abcd1234", True),
        ("my0wnkey1234567890", True),
        ('"a phrase my0wnkey1234567890"', True),
        ("key_id=my0wnkey1234567890", True),
        ("model=gpt-4o-mini-2024-07-18", False),
        ("gpt-4o-mini-2024-07-18", False),
        ("key_id=Ab12Cd34 id=01J9ZK3V8QXN5T2M", False),
        ("upstream_unreachable", False),
        ("risk-averse task-list", False),
    ],
)
def test_what_may_be_a_key_is_known(text: str, *, held: bool) -> None:
    """Such a filter is never written to the settings."""
    assert may_hold_key(text) is held
