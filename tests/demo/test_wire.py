"""The demo upstream's bytes: valid in every shape."""

from __future__ import annotations

import json
from itertools import chain, combinations

import pytest

from relayd.demo.script import Script, parse_script
from relayd.demo.wire import BOM, Chunks, Events, error_body, pieces
from tests.support.upstream import event_data

PAYLOADS = (b'{"a":"x: y","b":[1,{}]}', b"[DONE]", '{"text":"日本 👩‍👩‍👧‍👦 {,"}'.encode(), b"{}")
LINE_ENDS = (frozenset[str](), frozenset({"crlf"}), frozenset({"cr_only"}))
EXTRAS = ("comments", "unused_fields", "multiline_data")
SHAPES = [
    ends | frozenset(extra)
    for ends in LINE_ENDS
    for extra in chain.from_iterable(combinations(EXTRAS, k) for k in range(len(EXTRAS) + 1))
]


@pytest.mark.parametrize("shapes", SHAPES, ids=lambda shapes: "+".join(sorted(shapes)) or "plain")
def test_every_shape_says_the_same(shapes: frozenset[str]) -> None:
    """Whatever the line ends, comments, unused fields and data lines, the same values arrive."""
    events = Events(shapes)
    body = BOM + b"".join(events.event(payload) for payload in PAYLOADS) + events.comment()
    data = event_data(body)
    assert data[1] == b"[DONE]"
    assert [json.loads(data[k]) for k in (0, 2, 3)] == [json.loads(PAYLOADS[k]) for k in (0, 2, 3)]


@pytest.mark.parametrize(
    ("shape", "mark"),
    [
        ("comments", b"\n\ndata"),
        ("unused_fields", b"\nid: "),
        ("multiline_data", b"data:"),
        ("crlf", b"\r\n\r\n"),
        ("cr_only", b"\r\r"),
    ],
)
def test_each_shape_shows(shape: str, mark: bytes) -> None:
    """A shape is there in the bytes, and not in a plain event."""
    plain = Events(frozenset()).event(PAYLOADS[0]).removeprefix(b"data:")
    shaped = Events(frozenset({shape})).event(PAYLOADS[0]).removeprefix(b"data:")
    assert mark in shaped
    assert mark not in plain


def test_chunks_have_the_provider_s_form() -> None:
    """Every chunk has the fields that the reference names, and one identity."""
    chunks = Chunks("chatcmpl-1", 'model "x"', refusal=False, tool_calls=False)
    found = [
        json.loads(chunk)
        for chunk in (
            chunks.role(),
            chunks.text(b'"hi"'),
            chunks.empty(),
            chunks.finish("stop"),
            chunks.usage(2, 3),
        )
    ]
    assert {chunk["id"] for chunk in found} == {"chatcmpl-1"}
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    assert {chunk["model"] for chunk in found} == {'model "x"'}
    role, text, empty, finish, usage = found
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert text["choices"] == [
        {"index": 0, "delta": {"content": "hi"}, "logprobs": None, "finish_reason": None}
    ]
    assert empty["choices"] == usage["choices"] == []
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["total_tokens"] == 5


def test_refusals_and_tool_calls_are_deltas_of_their_own_kind() -> None:
    """A refusal comes in `refusal`, a tool's arguments in `tool_calls`."""
    refusal = json.loads(Chunks("c", "m", refusal=True, tool_calls=False).text(b'"no"'))
    assert refusal["choices"][0]["delta"] == {"refusal": "no"}
    tools = Chunks("c", "m", refusal=False, tool_calls=True)
    named, argued = (
        json.loads(chunk)["choices"][0]["delta"] for chunk in (tools.tool(), tools.text(b'"{}"'))
    )
    assert named["tool_calls"][0]["function"]["name"] == "look_up"
    assert argued["tool_calls"] == [{"index": 0, "function": {"arguments": "{}"}}]


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422, 429, 500, 503])
def test_error_bodies_have_the_provider_s_form(code: int) -> None:
    """An error names message, type, param and code."""
    error = json.loads(error_body(code))["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["message"]
    assert error["type"]


@pytest.mark.parametrize(
    "text", ["", "hi", "  two  spaces\n\nand lines ", "流れる 言葉", "\u2028\x00\x7f👩‍👩‍👧‍👦"]
)
def test_echo_gives_back_the_question(text: str) -> None:
    """`text=echo` cuts the question into pieces that add up to exactly it."""
    found = pieces(parse_script("demo:text=echo"), text)
    assert "".join(json.loads(piece) for piece in found) == text


def test_the_default_answer_shows_the_question_shortened() -> None:
    """The default answer quotes the question, up to 200 characters."""
    answer = "".join(json.loads(piece) for piece in pieces(Script(), "q" * 300))
    assert "q" * 200 + "…" in answer
    assert "q" * 201 not in answer


def test_cjk_and_emoji_are_not_ascii_alone() -> None:
    """The other texts hold characters of three and four bytes, and clusters of several characters."""
    cjk = "".join(json.loads(piece) for piece in pieces(parse_script("demo:text=cjk"), ""))
    emoji = "".join(json.loads(piece) for piece in pieces(parse_script("demo:text=emoji"), ""))
    assert any(0x3000 < ord(char) < 0x10000 for char in cjk)
    assert "\u200d" in emoji
    assert any(ord(char) > 0xFFFF for char in emoji)
