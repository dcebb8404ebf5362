"""The body of /chat: what is accepted, what is refused and how it is said, what the provider gets."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.public.chatrequest import ChatRules, parse_chat_request
from relayd.relay.failure import Code, Failure

_RULES = ChatRules(default_model="default-model")
_MESSAGES = [{"role": "user", "content": "hi"}]


def _sent(body: dict[str, Any], rules: ChatRules = _RULES) -> dict[str, Any]:
    sent: dict[str, Any] = json.loads(parse_chat_request(json.dumps(body).encode(), rules).upstream_body)
    return sent


def _refused(body: bytes, rules: ChatRules = _RULES) -> Failure:
    with pytest.raises(Failure) as caught:
        parse_chat_request(body, rules)
    return caught.value


def test_every_sampling_field_is_forwarded_unchanged() -> None:
    """What the client set reaches the provider as it was written, beside stream and usage."""
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
    assert _sent({"model": "m", "messages": _MESSAGES, "stream": False, **fields}) == {
        "model": "m",
        "messages": _MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }


def test_messages_are_forwarded_byte_for_byte() -> None:
    """Images, tool messages, unknown fields and odd numbers in messages are the provider's business."""
    messages = (
        '[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:x"}}],"n":1.10},'
        '{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]},{"role":"tool","content":"é🎈"}]'
    )
    request = parse_chat_request(f'{{"messages": {messages}}}'.encode(), _RULES)
    assert messages.encode() in request.upstream_body


def test_the_default_model_fills_in() -> None:
    """A request without a model, or with null, is for the default one."""
    assert _sent({"messages": _MESSAGES})["model"] == "default-model"
    assert _sent({"messages": _MESSAGES, "model": None})["model"] == "default-model"


def test_usage_is_asked_for_where_the_operator_or_the_client_wants_it() -> None:
    """The operator's switch turns it off; a client that asks gets it all the same."""
    rules = ChatRules(default_model="m", ask_usage=False)
    assert "stream_options" not in _sent({"messages": _MESSAGES}, rules)
    body = {"messages": _MESSAGES, "stream_options": {"include_usage": True}}
    assert _sent(body, rules)["stream_options"] == {"include_usage": True}
    assert parse_chat_request(json.dumps(body).encode(), rules).tell_usage


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field `messages`"),
        (b'{"messages":[]}', "`$.messages`"),
        (b'{"messages":"hi"}', "`$.messages`"),
        (b'{"messages":[7]}', "`$.messages[0]`"),
        (b'{"messages":[{"content":"hi"}]}', "missing required field `role`"),
        (b'{"messages":[{"role":7}]}', "`$.messages[0].role`"),
        (b'{"messages":[{"role":"user","content":7}]}', "`$.messages[0].content`"),
        (b'{"messages":[{"role":"user"}],"temperature":"hot"}', "`$.temperature`"),
        (b'{"messages":[{"role":"user"}],"n":2}', "unknown field `n`"),
        (b'{"messages":[{"role":"user"}],"tools":[]}', "unknown field `tools`"),
        (b'{"messages":[{"role":"user"}],"stream_options":{"x":1}}', "unknown field `x`"),
        (b'{"messages":[{"role":"user"}],"model":""}', "`$.model`"),
        (b'{"messages":[{"role":"user","x":' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_wrong_body_is_refused_naming_the_place(body: bytes, said: str) -> None:
    """Each mistake is a bad_request whose sentence says where it is."""
    failure = _refused(body)
    assert failure.code is Code.BAD_REQUEST
    assert said in failure.sentence


def test_a_model_outside_the_list_is_refused_with_the_list() -> None:
    """The sentence names what may be asked for."""
    rules = ChatRules(default_model="a", allowed_models=frozenset({"a", "b"}))
    failure = _refused(json.dumps({"messages": _MESSAGES, "model": "c"}).encode(), rules)
    assert failure.code is Code.MODEL_NOT_ALLOWED
    assert "a, b" in failure.sentence


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_than_the_ceiling_are_refused(field: str) -> None:
    """The operator's ceiling holds for both names of the field."""
    rules = ChatRules(default_model="a", max_tokens_limit=10)
    assert _sent({"messages": _MESSAGES, field: 10}, rules)[field] == 10
    assert field in _refused(json.dumps({"messages": _MESSAGES, field: 11}).encode(), rules).sentence


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    """Nothing but a Failure ever comes out of a body."""
    with contextlib.suppress(Failure):
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
    with contextlib.suppress(Failure):
        parse_chat_request(json.dumps(body).encode(), _RULES)
