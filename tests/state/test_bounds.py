"""What the bounds of a client may be, and what a refusal says."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.durations import MAX_EXPIRY_S
from relayd.state.bounds import MAX_COUNT, MAX_LIST, with_changes
from relayd.state.errors import BadChange
from relayd.state.records import Client, utc_text
from tests.state.harness import NOON_S

WEB = Client(name="web", created_at=utc_text(NOON_S))
FIELDS = sorted(set(Client.__struct_fields__) - {"name", "created_at", "removed_at"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("note", "My sister's phone ☎", "My sister's phone ☎"),
        ("models", ["gpt-4o*", "o?", "o[13]", "gpt-4o*"], ("gpt-4o*", "o?", "o[13]")),
        ("endpoints", ["/chat", "/v1/*", "/*", "/v1/chat/completions"], None),
        ("origins", ["https://a.example", "http://localhost:8080", "app://x", "http://[::1]:1"], None),
        ("origins", [], ()),
        ("max_streams", 1, 1),
        ("tokens_per_month", MAX_COUNT, MAX_COUNT),
        ("usd_per_day", 1, 1.0),
        ("usd_per_month", 0.000001, 0.000001),
        ("expires_at", "2027-02-01T00:59:59+02:00", "2027-01-31T22:59:59.000Z"),
        ("expires_at", utc_text(NOON_S + 0.001), utc_text(NOON_S + 0.001)),
    ],
)
def test_a_bound_is_set(name: str, value: object, kept: object) -> None:
    """Lists lose repetitions, whole dollars become an amount, times become UTC; nothing else changes."""
    changed = with_changes(WEB, {name: value}, NOON_S)
    assert getattr(changed, name) == (tuple(value) if kept is None and isinstance(value, list) else kept)
    assert msgspec.structs.replace(changed, **{name: getattr(WEB, name)}) == WEB


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("nmae", 1, "no field 'nmae'; it has: note, models, endpoints"),
        ("name", "other", "no field 'name'"),
        ("note", "two\nlines", "500 visible characters, not 'two"),
        ("note", "x" * 501, "500 visible characters"),
        ("models", "gpt-4o", "models is a list .* not 'gpt-4o'"),
        ("models", ["o3", "a b"], r"not \['o3', 'a b'\] \(see 'a b'\)"),
        ("models", ["o[3"], r"see 'o\[3'"),
        ("models", ["x" * 201], "at most 200 characters"),
        ("models", [f"m{n}" for n in range(MAX_LIST + 1)], "there are 51"),
        ("endpoints", ["chat"], "/chat, or patterns that begin with /v1/.*see 'chat'"),
        ("endpoints", ["/v2/*"], "see '/v2/"),
        ("origins", ["https://a.example/"], "without a path.*see 'https://a.example/'"),
        ("origins", ["https://A.example"], "as browsers send them"),
        ("origins", ["https://a.example:443"], "as browsers send them"),
        ("origins", ["*"], "as browsers send them"),
        ("max_streams", 0, "from 1 to 1,000,000,000,000,000, not 0"),
        ("max_streams", True, "a whole number"),
        ("tokens_per_day", 1.5, "a whole number"),
        ("requests_per_minute", "60", "a whole number .* not '60'"),
        ("usd_per_day", 0, "US dollars from 0.000001 to 1,000,000,000, not 0"),
        ("usd_per_day", math.nan, "US dollars"),
        ("usd_per_day", math.inf, "US dollars"),
        ("expires_at", utc_text(NOON_S), "a time in the future.*it is 2027-01-15T08:00:00.000Z now"),
        ("expires_at", utc_text(NOON_S + MAX_EXPIRY_S + 1), "at most ten years ahead"),
        ("expires_at", "2027-02-01T00:00:00", "it has no time zone; end it with Z"),
        ("expires_at", "tomorrow", "a time in the future"),
        ("expires_at", 1, "a time in the future"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(name: str, value: object, says: str) -> None:
    """The refusal names the field, what is allowed, and what was given."""
    with pytest.raises(BadChange, match=says):
        with_changes(WEB, {name: value}, NOON_S)


def test_none_removes_every_bound() -> None:
    """All at once, back to a client without any."""
    bounds = {
        "note": "n",
        "models": ["o3"],
        "max_streams": 5,
        "usd_per_day": 2.5,
        "expires_at": utc_text(NOON_S + 1),
    }
    bounded = with_changes(WEB, bounds, NOON_S)
    assert bounded.bounded
    assert with_changes(bounded, dict.fromkeys(FIELDS), NOON_S) == WEB


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_json_is_set_or_refused(changes: dict[str, object]) -> None:
    """Whatever comes, the client that results is one that is read back as it is, or the refusal is short."""
    try:
        changed = with_changes(WEB, changes, NOON_S)
    except BadChange as refusal:
        said = str(refusal)
    else:
        said = ""
        assert msgspec.json.decode(msgspec.json.encode(changed), type=Client) == changed
    assert len(said) < 1000


@given(st.sampled_from(["max_streams", "tokens_per_day"]), st.integers(1, MAX_COUNT))
def test_every_count_in_range_is_kept(name: str, value: int) -> None:
    """To the last token."""
    assert getattr(with_changes(WEB, {name: value}, NOON_S), name) == value
