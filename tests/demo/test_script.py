"""What the demo upstream's scripts may say, and how their faults are named."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.demo.script import (
    ANSWER_FAULTS,
    BREAKS,
    FAULTS,
    MAX_LENGTH,
    SHAPES,
    Script,
    ScriptError,
    parse_script,
)


@pytest.mark.parametrize("text", ["demo", "gpt-4o-mini", "demolition:deltas=1", "", "demo-x", "x" * 100_000])
def test_other_names_ask_for_the_default(text: str) -> None:
    """A name that does not begin with `demo:` gets the pleasant default: text at ten deltas a second."""
    script = parse_script(text)
    assert script == Script()
    assert (script.interval_ms, script.faults, script.finish_reason) == (100.0, frozenset(), "stop")


def test_every_key_is_read() -> None:
    """Each key sets its field, with its type."""
    script = parse_script(
        "demo:deltas=5,interval_ms=2.5,first_ms=10,headers_ms=20,text=cjk,refusal=1,role=0,finish=length,"
        "prompt_tokens=7,completion_tokens=9,fault=crlf+cut_mid,after=2,code=429,retry_after=7,"
        "message=no,error_code=quota,fail_times=2,id=a,size=10,batch=3"
    )
    assert script == Script(
        deltas=5,
        interval_ms=2.5,
        first_ms=10,
        headers_ms=20,
        text="cjk",
        refusal=True,
        role=False,
        finish="length",
        prompt_tokens=7,
        completion_tokens=9,
        faults=frozenset({"crlf", "cut_mid"}),
        after=2,
        code=429,
        retry_after="7",
        message="no",
        error_code="quota",
        fail_times=2,
        id="a",
        size=10,
        batch=3,
    )


def test_values_are_percent_decoded() -> None:
    """A value may hold commas, spaces and any character, percent-encoded."""
    assert parse_script("demo:message=a%2Cb%20%C3%A9%25").message == "a,b é%"


def test_filler_has_its_size() -> None:
    """`text=x<N>` asks for N bytes a delta."""
    assert parse_script("demo:text=x1000").filler_bytes == 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("demo:", "is not key=value"),
        ("demo:deltas", "'deltas' in 'demo:deltas' is not key=value"),
        ("demo:detlas=1", "unknown key 'detlas'"),
        ("demo:deltas=1,deltas=2", "'deltas' comes twice"),
        ("demo:deltas=-1", "key 'deltas'"),
        ("demo:deltas=²", "key 'deltas'"),
        ("demo:interval_ms=1e9", "key 'interval_ms'"),
        ("demo:interval_ms=nan", "key 'interval_ms'"),
        ("demo:refusal=yes", "neither 0 nor 1"),
        ("demo:text=klingon", "none of"),
        ("demo:text=x0", "none of"),
        ("demo:text=x999999999", "none of"),
        ("demo:finish=never", "none of"),
        ("demo:fault=gremlins", "'gremlins' is none of"),
        ("demo:fault=", "is none of"),
        ("demo:fault=cut_mid+cut_fin", "exclude each other: cut_fin + cut_mid"),
        ("demo:fault=crlf+cr_only", "exclude each other"),
        ("demo:fault=status+crlf", "'status' stands alone"),
        ("demo:fault=status+html", "exclude each other"),
        ("demo:fault=status,fail_times=2", "fail_times and id go together"),
        ("demo:id=x", "fail_times and id go together"),
        ("demo:code=99", "from 200 to 599"),
        ("demo:retry_after=a%0D%0Ab", "can't stand in a header"),
        ("demo:message=", "it is empty"),
        ("demo:" + "x" * MAX_LENGTH, "is longer than"),
    ],
)
def test_a_wrong_script_is_refused_by_name(text: str, said: str) -> None:
    """Parsing is strict, and the message names the key or the value that is wrong."""
    with pytest.raises(ScriptError, match=re.escape(said)):
        parse_script(text)


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_every_fault_has_one_kind(name: str) -> None:
    """A fault replaces the stream, breaks it, or shapes it: one of the three."""
    script = parse_script(f"demo:fault={name}")
    assert sum(name in kind for kind in (ANSWER_FAULTS, BREAKS, SHAPES)) == 1
    assert script.answer_fault == (name if name in ANSWER_FAULTS else None)
    assert script.break_ == (name if name in BREAKS else None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("demo:finish=none", None),
        ("demo:finish=content_filter", "content_filter"),
        ("demo:fault=tool_calls", "tool_calls"),
        ("demo:fault=tool_calls,finish=length", "length"),
    ],
)
def test_finish_reason(text: str, reason: str | None) -> None:
    """The reason is as asked; a stream of tool calls ends with `tool_calls` unless it says otherwise."""
    assert parse_script(text).finish_reason == reason


@settings(max_examples=300, derandomize=True)
@given(st.text() | st.text(alphabet="deltasfuc=,+%0123456789:", max_size=40))
def test_any_text_is_a_script_or_refused(text: str) -> None:
    """No text makes the parser fail in another way than by refusing it."""
    try:
        script = parse_script("demo:" + text)
    except ScriptError:
        return
    assert isinstance(script, Script)
