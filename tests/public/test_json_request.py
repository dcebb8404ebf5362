"""The JSON body of a `/v1` request: what is checked is what the provider reads, the rest goes on as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.public.json_request import RequestFields
from relayd.relay.errors import ErrorCode, RelayError

_NAMES = st.sampled_from(["model", "n", "a", "é", 'quo"te', "\\", ""]) | st.text(max_size=4)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def _refusal(body: bytes) -> str:
    with pytest.raises(RelayError) as raised:
        RequestFields(body)
    assert raised.value.code is ErrorCode.BAD_REQUEST
    return raised.value.message


@given(
    st.dictionaries(_NAMES, _VALUES, max_size=5),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.sampled_from([b"", b" \r\n", b"\xef\xbb\xbf"]),
)
def test_a_body_goes_on_as_it_is_but_for_what_is_changed(
    document: dict[str, Any],
    indent: int | None,
    is_ascii: bool,  # noqa: FBT001 - hypothesis gives it
    before: bytes,
) -> None:
    """Each value is found where it stands; one replaced and one put in leave all other bytes alone."""
    if len({name.casefold() for name in document}) != len(document):
        return
    if any(name != name.casefold() and name.casefold() in {"model", "n"} for name in document):
        return
    text = json.dumps({**document, "replaced": "here"}, indent=indent, ensure_ascii=is_ascii)
    body = before + text.encode("utf-8", "replace")
    fields = RequestFields(body)
    assert fields.edited() == body
    for name, value in document.items():
        assert fields.get(name, object, "anything") == value
    fields.put("replaced", ["é"])
    fields.put("put_in", value=True)
    edited = fields.edited()
    assert edited == body.replace(b'"here"', '["é"]'.encode()).replace(b"{", b'{"put_in":true,', 1)
    assert json.loads(edited.decode("utf-8-sig"))["replaced"] == ["é"]


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"a","model":"a"}',
        '{"model":"a","model":"b"}',
        '{"model":"a,b","model":"a"}',
        '{"model":12,"model":1}',
        '{"a":{"x":"}"},"b":1,"a":{"x":"}"}}',
        '{"mod\\u0065l":"a","model":"b"}',
        '{"model":"a","Model":"b"}',
        '{"model":"\\"x\\",","model":"\\"x\\""}',
    ],
)
def test_a_name_may_be_there_once(body: str) -> None:
    """Whatever its values are, however it is written: parsers differ in which one they take."""
    assert "more than once" in _refusal(body.encode())


@pytest.mark.parametrize("name", ["Model", "STREAM", "\u017ftream", "max_to\u212aens", "N"])
def test_a_name_that_only_some_parsers_take_for_a_checked_one_is_refused(name: str) -> None:
    """Go's own takes names regardless of case."""
    assert "must be spelt" in _refusal(json.dumps({name: 1}, ensure_ascii=False).encode())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is not JSON"),
        (b"hello", "is not JSON"),
        (b'{"a":1', "is not JSON"),
        (b'{"a":1} x', "is not JSON"),
        (b'{"a":NaN}', "is not JSON"),
        (b'{"a":"\x01"}', "is not JSON"),
        (b"[]", "not a JSON object"),
        (b'"a"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a":"\xff"}', "not UTF-8"),
        ('{"a":1}'.encode("utf-16"), "is not"),
        (b'{"a":' * 1_000_000, "nested too deeply"),
        (b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", "nested too deeply"),
        (json.dumps(dict.fromkeys(map(str, range(1001)))).encode(), "more than 1000 fields"),
    ],
)
def test_what_cannot_be_read_is_refused(body: bytes, message: str) -> None:
    """Nothing goes on that was not understood."""
    assert message in _refusal(body)


def test_half_a_surrogate_pair_and_long_numbers_go_on_as_they_are() -> None:
    """The provider judges them."""
    body = b'{"text":"\\ud83d \\\\ud83d","seed":' + b"9" * 5000 + b',"model":"m"}'
    fields = RequestFields(body)
    assert fields.get("model", str, "text") == "m"
    fields.put("model", "other")
    assert fields.edited() == body.replace(b'"m"', b'"other"')


def test_a_field_of_another_type_is_named() -> None:
    """Null counts as absent; nothing is taken for something else."""
    fields = RequestFields(b'{"n":"2","m":true,"o":null,"p":2.0}')
    for name in ("n", "m"):
        with pytest.raises(RelayError, match=f"{name} must be a whole number"):
            fields.get(name, int, "a whole number")
    assert fields.get("o", int, "a whole number") is None
    assert "o" not in fields
    assert [fields.raw(name) for name in "nmop"] == [b'"2"', b"true", b"null", b"2.0"]


def test_a_field_of_an_object_inside_is_changed_in_its_place() -> None:
    """Also where the object is empty, or holds half a surrogate pair."""
    for inner, expected in (("{ }", '{"x":true }'), ('{"y":"\\ud800"}', '{"x":true,"y":"\\ud800"}')):
        fields = RequestFields(f'{{"a": {inner} }}'.encode())
        nested = fields.nested("a")
        nested.put("x", value=True)
        fields.edit("a", nested)
        assert fields.edited() == f'{{"a": {expected} }}'.encode()
