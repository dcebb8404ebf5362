"""A few fields of JSON that passes through: found at their depth, at any split, at any size."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.json_fields import FieldScanner
from tests.relay.harness import cut

_WANTED = {b"id": 1, b"usage": 1, b"finish_reason": 3}
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "usage", "x"]), inner),
    max_leaves=8,
)


def _found(pieces: list[bytes]) -> dict[bytes, Any]:
    fields = FieldScanner(_WANTED)
    for piece in pieces:
        fields.feed(piece)
    return {name: json.loads(value) for name, value in fields.found.items()}


@given(
    st.dictionaries(st.sampled_from(["id", "usage", "other", 'a"b', "\\", "{"]), _VALUES),
    st.lists(st.integers(0, 500), max_size=10),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_a_wanted_field_is_found_at_its_depth_only(
    document: dict[str, Any],
    cuts: list[int],
    indent: int | None,
    is_ascii: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    """Not in an object inside, not in text that looks like it, however it is written and split."""
    body = json.dumps(document, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    found = _found(cut(body, cuts))
    assert found == {name.encode(): document[name] for name in ("id", "usage") if name in document}


def test_a_field_in_an_array_is_found() -> None:
    """As the finish reason of a choice is, and the first one counts."""
    choices = [{"finish_reason": "stop", "message": {"finish_reason": "no"}}, {"finish_reason": "length"}]
    assert _found([json.dumps({"choices": choices}).encode()]) == {b"finish_reason": "stop"}


@pytest.mark.parametrize("text", ["", "no JSON", '{"id"', '{"id":', '{"usage":{"a":1}', "]}]}", '"id":1'])
def test_what_is_no_json_has_no_fields(text: str) -> None:
    """Nor has a document that ends early."""
    assert _found([text.encode()]) == {}


def test_a_value_that_is_too_long_is_not_kept() -> None:
    """The scan goes on behind it."""
    body = json.dumps({"id": "x" * 100_000, "usage": 1}).encode()
    assert _found([body[at : at + 1000] for at in range(0, len(body), 1000)]) == {b"usage": 1}
