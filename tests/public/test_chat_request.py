"""The body of /chat: what is accepted, what is refused and how it is said, what the provider gets."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.public.chat_request import ChatRules, parse_chat_request, without_surrogates
from relayd.relay.errors import ErrorCode, RelayError

_RULES = ChatRules(default_model="default-model")
_MESSAGES = [{"role": "user", "content": "hi"}]
_ONE_MESSAGE = b'{"messages":[{"role":"user"}],'


def _sent(fields: dict[str, Any], rules: ChatRules = _RULES) -> dict[str, Any]:
    body = json.dumps({"messages": _MESSAGES, **fields}).encode()
    sent: dict[str, Any] = json.loads(parse_chat_request(body, rules).upstream_body)
    return sent


def _refusal(body: bytes, rules: ChatRules = _RULES) -> RelayError:
    with pytest.raises(RelayError) as caught:
        parse_chat_request(body, rules)
    return caught.value


def test_every_sampling_field_is_forwarded_unchanged() -> None:
    """What the client set reaches the provider as it was written, beside `stream` and usage."""
    fields = {
        "temperature": 0.25,
        "top_p": 1,
        "max_tokens": 5,
        "max_completion_tokens": 6,
        "stop": ["a", "b"],
        "seed": 7,
        "presence_penalty": -1.5,
        "frequency_penalty": 0,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x"}},
        "reasoning_effort": "low",
        "verbosity": "high",
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "p",
    }
    assert _sent({"model": "m", "stream": False, **fields}) == {
        "model": "m",
        "messages": _MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }


@pytest.mark.parametrize(
    "messages",
    [
        '[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:x"}}],"n":1.10}]',
        '[{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]},{"role":"tool","content":"é🎈"}]',
        r'[{"role":"user","content":"a pair: \uD83C\uDF88, no escape: \\ud83c"}]',
        pytest.param(
            r'[ {"role":"user","content":"half: \ud83c \"}","n":1.10,"m":1e999,"m":%s,"\udc00" :[] } ]'
            % ("9" * 5000),
            id="numbers beside half a pair",
        ),
    ],
)
def test_messages_are_forwarded_byte_for_byte(messages: str) -> None:
    """Images, tool messages, odd numbers and escapes are the provider's business."""
    request = parse_chat_request(f'{{"messages": {messages}}}'.encode(), _RULES)
    assert messages.encode() in request.upstream_body


@pytest.mark.parametrize(
    "text", [r"\ud83c", r"\uDF88", r"\udf88\ud83c", r"\ud83c\ud83c\udf88", r"\\\ud83c", r"\\ud83c \udc00é"]
)
def test_half_a_surrogate_pair_is_forwarded(text: str) -> None:
    """JavaScript cuts strings inside a character; what it sends is what the provider gets."""
    body = f'{{"temperature":0.5,"messages":[{{"role":"user","content":"{text}"}}]}}'
    sent = json.loads(parse_chat_request(body.encode(), _RULES).upstream_body)
    assert sent["messages"] == json.loads(body)["messages"]
    assert sent["temperature"] == 0.5


@given(st.text(st.sampled_from('\\ud8ac"/\ud83c\udf88\ue000'), max_size=12))
def test_a_copy_without_surrogates_has_the_same_length(text: str) -> None:
    """So that what is read in it is found in the body; backslashes that make no escape stay."""
    body = json.dumps(text).encode()
    read = without_surrogates(body)
    assert len(read) == len(body)
    # Python, too, makes one character of two halves that are escapes.
    whole = json.loads(body)
    assert json.loads(read) == "".join("\ufffd" if "\ud800" <= char < "\ue000" else char for char in whole)


@pytest.mark.parametrize("content", ["hi", r"half \ud83c", r"\udf88\ud83c\udf88"])
def test_a_character_written_as_a_surrogate_pair_is_read(content: str) -> None:
    """Python writes each emoji so: the model is named in the record, and compared, as itself."""
    body = rf'{{"model":"\ud83c\udf88","messages":[{{"role":"user","content":"{content}"}}]}}'
    assert parse_chat_request(body.encode(), _RULES).model == "🎈"


def test_a_byte_order_mark_is_ignored() -> None:
    """Windows programs write one; the provider gets the body without it."""
    plain = parse_chat_request(b'{"messages":[{"role":"user"}]}', _RULES)
    assert parse_chat_request(b'\xef\xbb\xbf{"messages":[{"role":"user"}]}', _RULES) == plain


@pytest.mark.parametrize("fields", [{}, {"model": None}])
def test_the_default_model_fills_in(fields: dict[str, Any]) -> None:
    """A request without a model, or with null, is for the default one."""
    assert _sent(fields)["model"] == "default-model"
    body = json.dumps({"messages": _MESSAGES, **fields}).encode()
    assert parse_chat_request(body, _RULES).model == "default-model"


@pytest.mark.parametrize("operator_asks", [True, False])
@pytest.mark.parametrize("client_asks", [True, False, None])
def test_the_provider_is_asked_for_usage_if_the_operator_or_the_client_wants_it(
    operator_asks: bool,  # noqa: FBT001 - the example
    client_asks: bool | None,  # noqa: FBT001 - the example
) -> None:
    """The client reads it only if it asked for it itself."""
    rules = ChatRules(default_model="m", ask_usage=operator_asks)
    body = {"messages": _MESSAGES, "stream_options": {"include_usage": client_asks}}
    request = parse_chat_request(json.dumps(body).encode(), rules)
    assert request.include_usage is bool(client_asks)
    sent = json.loads(request.upstream_body)
    wanted = {"include_usage": True} if operator_asks or client_asks else None
    assert sent.get("stream_options") == wanted


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "not JSON"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field `messages`"),
        (b'{"messages":[]}', "`$.messages`"),
        (b'{"messages":"hi"}', "`$.messages`"),
        (b'{"messages":[7]}', "`$.messages[0]`"),
        (b'{"messages":[{"content":"hi"}]}', "missing required field `role`"),
        (b'{"messages":[{"role":7}]}', "`$.messages[0].role`"),
        (b'{"messages":[{"role":"user","content":7}]}', "`$.messages[0].content`"),
        (_ONE_MESSAGE + b'"temperature":"hot"}', "`$.temperature`"),
        (_ONE_MESSAGE + b'"n":2}', "unknown field `n`"),
        (_ONE_MESSAGE + b'"tools":[]}', "unknown field `tools`"),
        (_ONE_MESSAGE + b'"stream_options":{"x":1}}', "unknown field `x`"),
        (_ONE_MESSAGE + b'"model":""}', "`$.model`"),
        (_ONE_MESSAGE + b'"model":"' + b"m" * 201 + b'"}', "`$.model`"),
    ],
)
def test_a_wrong_body_is_refused_naming_the_place(body: bytes, said: str) -> None:
    """Each mistake is a `bad_request` whose sentence says where it is."""
    error = _refusal(body)
    assert error.code is ErrorCode.BAD_REQUEST
    assert said in error.message


@pytest.mark.parametrize(
    ("before", "nesting", "after", "said"),
    [
        (b"", b"[", b"", "Expected `object`"),
        (b"", b'{"a":', b"", "unknown field `a`"),
        (b'{"messages":[{"role":"user","x":', b"[", b"", "nested too deeply"),
        (b'{"messages":[{"role":"user","x":', b"[", b"}]}", "nested too deeply"),
        (b'{"messages":[{"role":"user","content":[{"x":', b"[", b"}]}]}", "nested too deeply"),
        (b'{"messages":[{"role":"user","content":[', b'{"x":[', b"", "nested too deeply"),
        (_ONE_MESSAGE + b'"response_format":{"x":', b"[", b"}}", "nested too deeply"),
    ],
)
def test_a_body_that_nests_without_end_is_refused_in_words(
    before: bytes, nesting: bytes, after: bytes, said: str
) -> None:
    """Wherever it nests, closed or not."""
    error = _refusal(before + nesting * 300_000 + (b"]" * 300_000 + after if after else b""))
    assert error.code is ErrorCode.BAD_REQUEST
    assert said in error.message


def test_a_refusal_quotes_little_of_the_body() -> None:
    """A field's name of any length becomes a sentence, not a page."""
    error = _refusal(_ONE_MESSAGE + b'"' + b"x" * 100_000 + b'":1}')
    assert "unknown field `xxx" in error.message
    assert len(error.message) < 150


@pytest.mark.parametrize(
    ("model", "allowed"),
    [("a", True), ("b", True), ("c", False), ("A", False), (None, True), ("relayd-probe:lines=1", True)],
)
def test_the_list_of_models_is_exact_and_admits_probes(
    model: str | None,
    allowed: bool,  # noqa: FBT001 - the example
) -> None:
    """A refusal names what may be asked for; a probe asks no model at all."""
    rules = ChatRules(default_model="a", allowed_models=frozenset({"b", "a"}))
    if allowed:
        assert _sent({"model": model}, rules)["model"] == (model or "a")
        return
    error = _refusal(json.dumps({"messages": _MESSAGES, "model": model}).encode(), rules)
    assert error.code is ErrorCode.MODEL_NOT_ALLOWED
    assert error.message == f"The model {model!r} is not allowed here; allowed are: a, b."


def test_an_alias_is_what_clients_ask_for_and_the_provider_is_not() -> None:
    """What it stands for goes to the provider and into the record, and must be allowed. It is used once."""
    rules = ChatRules(
        default_model="old", allowed_models=frozenset({"new"}), aliases={"old": "new", "new": "newest"}
    )
    for asked in ({"model": "old"}, {}):
        request = parse_chat_request(json.dumps({"messages": _MESSAGES, **asked}).encode(), rules)
        assert request.model == "new"
        assert json.loads(request.upstream_body)["model"] == "new"
    body = json.dumps({"messages": _MESSAGES, "model": "new"}).encode()
    with pytest.raises(RelayError, match="The model 'newest' is not allowed here; allowed are: new"):
        parse_chat_request(body, rules)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_than_the_limit_are_refused(field: str) -> None:
    """The operator's limit holds for both names of the field; without one any sane number passes."""
    rules = ChatRules(default_model="a", max_tokens_limit=10)
    assert _sent({field: 10}, rules)[field] == 10
    assert _sent({field: 11})[field] == 11
    error = _refusal(json.dumps({"messages": _MESSAGES, field: 11}).encode(), rules)
    assert error.code is ErrorCode.BAD_REQUEST
    assert error.message == f"{field} may be at most 10 on this relay, not 11."


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("number", [-1, 0, 10**9 + 1, 10**30, 10**400])
def test_a_limit_that_bounds_nothing_is_refused(field: str, number: int) -> None:
    """Nothing could be reserved for it, or more than can be counted."""
    error = _refusal(json.dumps({"messages": _MESSAGES, field: number}).encode())
    assert error.message == f"{field} must be from 1 to 1,000,000,000."
    assert _sent({field: 10**9})[field] == 10**9


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    """Nothing but a RelayError ever comes out of a body."""
    with contextlib.suppress(RelayError):
        parse_chat_request(body, _RULES)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["messages", "model", "temperature", "stop", "stream_options", "x"]), _json
    )
)
def test_any_json_is_parsed_or_refused(body: dict[str, Any]) -> None:
    """Whatever types the fields have, the answer is a request or a refusal."""
    with contextlib.suppress(RelayError):
        parse_chat_request(json.dumps(body).encode(), _RULES)


@given(st.text())
def test_any_text_reaches_the_provider_as_it_is(text: str) -> None:
    """Escaped or not, a message is the same text on the other side."""
    for ascii_only in (True, False):
        body = json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=ascii_only)
        sent = json.loads(parse_chat_request(body.encode(), _RULES).upstream_body)
        assert sent["messages"][0]["content"] == text
