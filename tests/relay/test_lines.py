"""The lines of a reply, byte for byte."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.failure import Code, Failure
from relayd.relay.lines import DONE, HEARTBEAT, Usage, delta_line, done_line, error_line

_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


def test_the_fixed_lines_are_the_contracts() -> None:
    """Keys in order, nothing else, one line feed."""
    assert DONE == b'{"done":true,"error":false,"content":"[DONE]"}\n'
    assert HEARTBEAT == b'{"done":false,"error":false,"content":""}\n'
    assert delta_line("hi ") == b'{"done":false,"error":false,"content":"hi "}\n'
    assert error_line(Failure(Code.BUSY, "Later.")) == (
        b'{"done":false,"error":true,"content":"busy: Later."}\n'
    )


def test_the_last_line_of_who_asked_has_two_fields_more() -> None:
    """Known or not, both are there."""
    assert done_line(None, None) == (
        b'{"done":true,"error":false,"content":"[DONE]","finish_reason":null,"usage":null}\n'
    )
    assert done_line("stop", Usage(1, 2, 3)) == (
        b'{"done":true,"error":false,"content":"[DONE]","finish_reason":"stop",'
        b'"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n'
    )


@given(_text)
def test_any_text_is_one_line(text: str) -> None:
    """Line ends, quotes and controls in it are escaped; what is read is what was said."""
    line = delta_line(text)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert b"\r" not in line
    assert json.loads(line) == {"done": False, "error": False, "content": text}


@given(_text, st.text(max_size=20, alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_failure_is_one_line(sentence: str, reason: str) -> None:
    """Whatever a provider says cannot end the line early."""
    line = error_line(Failure(Code.UPSTREAM_FAILED, sentence)) + done_line(reason, None)
    assert line.count(b"\n") == 2
    assert json.loads(line.splitlines()[0])["content"] == f"upstream_failed: {sentence}"
