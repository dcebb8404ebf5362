"""What clients read of an answer or an error, and how the provider's words are made fit for it."""

from __future__ import annotations

import base64
import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relayd.relay.chunks import Usage
from relayd.relay.errors import ErrorCode, RelayError, internal_error
from relayd.relay.ndjson import DONE_LINE, HEARTBEAT_LINE, delta_line, done_line, error_line
from relayd.relay.provider_errors import ProviderError, parse_error_body
from relayd.relay.redact import Redactor
from relayd.state.records import Outcome

# Lines.


def test_each_kind_of_line_has_its_keys_in_order() -> None:
    """Byte for byte as the contract writes them."""
    assert delta_line("hi ") == b'{"done":false,"error":false,"content":"hi "}\n'
    assert HEARTBEAT_LINE == b'{"done":false,"error":false,"content":""}\n'
    assert DONE_LINE == b'{"done":true,"error":false,"content":"[DONE]"}\n'
    busy = RelayError(ErrorCode.BUSY, 'Try "later".')
    assert error_line(busy) == b'{"done":false,"error":true,"content":"busy: Try \\"later\\"."}\n'
    assert done_line("stop", Usage(1, 2, 3)) == (
        b'{"done":true,"error":false,"content":"[DONE]","finish_reason":"stop",'
        b'"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n'
    )
    assert done_line(None, None).endswith(b',"finish_reason":null,"usage":null}\n')


@example("a\x85b")
@example("a\u2028b")
@example("a\u2029b")
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x85\u2028\u2029\r\n")))
def test_every_line_splitter_finds_the_same_line(text: str) -> None:
    """No character of the text ends the line, for Python's splitlines either; the text comes back whole."""
    for line in (
        delta_line(text),
        done_line(text, None),
        error_line(RelayError(ErrorCode.UPSTREAM_FAILED, text)),
    ):
        assert line.decode().splitlines() == [line[:-1].decode()]
        assert line.endswith(b"}\n")
    assert json.loads(delta_line(text))["content"] == text
    assert json.loads(done_line(text, None))["finish_reason"] == text


# Codes.


@pytest.mark.parametrize(
    ("code", "status", "outcome"),
    [
        ("bad_request", 400, Outcome.REJECTED),
        ("unauthorized", 401, Outcome.DENIED),
        ("model_not_allowed", 403, Outcome.REJECTED),
        ("too_large", 413, Outcome.REJECTED),
        ("busy", 429, Outcome.REJECTED),
        ("draining", 503, Outcome.SHUTDOWN),
        ("upstream_rejected", 400, Outcome.UPSTREAM_ERROR),
        ("upstream_limited", 429, Outcome.UPSTREAM_ERROR),
        ("upstream_auth", 502, Outcome.UPSTREAM_ERROR),
        ("upstream_failed", 502, Outcome.UPSTREAM_ERROR),
        ("upstream_unreachable", 502, Outcome.UPSTREAM_ERROR),
        ("upstream_timeout", 504, Outcome.UPSTREAM_ERROR),
        ("upstream_truncated", 502, Outcome.UPSTREAM_ERROR),
        ("cancelled", 503, Outcome.CANCELLED),
        ("key_revoked", 401, Outcome.CANCELLED),
        ("over_budget", 429, Outcome.REJECTED),
        ("model_unpriced", 403, Outcome.REJECTED),
        ("state_unavailable", 503, Outcome.REJECTED),
        ("internal", 500, Outcome.CRASHED),
    ],
)
def test_each_code_has_its_status_and_outcome(code: str, status: int, outcome: Outcome) -> None:
    """429 and 503 say when to come back, but for a cancel, which asks not to."""
    error = RelayError(ErrorCode(code), "What happened.")
    assert (error.status, error.outcome) == (status, outcome)
    assert str(error) == f"{code}: What happened."
    assert error.recorded == "What happened."
    assert error.retry_after_s == (5 if status in {429, 503} and code != "cancelled" else None)
    assert RelayError(error.code, "", retry_after_s=17).retry_after_s == 17


def test_a_bug_is_told_with_the_id_of_its_request_only() -> None:
    """The details are in the log."""
    assert "abc123" in internal_error("abc123").message


# Redaction.

_LONG_KEY = "Ab/+0123456789-XYZ_secret/tail+0987"


@pytest.mark.parametrize(
    "form",
    [
        _LONG_KEY,
        _LONG_KEY.upper(),
        _LONG_KEY.lower(),
        f"Bearer {_LONG_KEY}",
        f"x{_LONG_KEY}y",
        base64.b64encode(_LONG_KEY.encode()).decode(),
        base64.b64encode(_LONG_KEY.encode()).decode().rstrip("="),
        base64.urlsafe_b64encode(_LONG_KEY.encode()).decode(),
        f"...{_LONG_KEY[-12:]}",
        f"{_LONG_KEY[:4]}****{_LONG_KEY[-12:]}",
    ],
)
def test_the_key_is_taken_out_in_every_form_a_provider_may_echo(form: str) -> None:
    """Whole, in another case, in base64, and its tail."""
    said = Redactor(_LONG_KEY)(f"You sent {form} to us")
    assert "[key]" in said
    assert said.startswith("You sent ")
    assert said.endswith(" to us")
    for part in (_LONG_KEY[-12:], base64.b64encode(_LONG_KEY.encode()).decode()[:20]):
        assert part.lower() not in said.lower()


@pytest.mark.parametrize(
    "masked", ["sk-proj-abcd****wxyz", "SK-live_0123456789", "sk-...1234", "sk-ant-a.b*"]
)
def test_anything_shaped_like_a_key_is_taken_out(masked: str) -> None:
    """Also somebody else's, and one that the provider masked; also where no key is known."""
    for redact in (Redactor(_LONG_KEY), Redactor("")):
        assert redact(f"Incorrect key: {masked} given.") == "Incorrect key: [key] given."


@pytest.mark.parametrize("key", ["x", "EMPTY", "ollama"])
def test_a_placeholder_for_a_key_is_no_secret(key: str) -> None:
    """Servers without keys are given one that is also a word of their errors."""
    said = "messages must not be empty: ollama's context is exceeded"
    redact = Redactor(key)
    assert (redact(said), redact.scrub(said.encode())) == (said, said.encode())


def test_a_key_across_the_bound_leaves_no_half_of_itself() -> None:
    """It goes before the text is cut."""
    for before in range(30):
        said = Redactor(_LONG_KEY)("x" * before + _LONG_KEY, 30)
        assert len(said) <= 30
        assert _LONG_KEY[:6] not in said


@given(st.text(), st.integers(1, 50))
def test_any_text_becomes_one_bounded_line(text: str, max_chars: int) -> None:
    """No control character, no line end, no direction mark, no half of a pair; a cut is shown."""
    said = Redactor("provider-key")(text, max_chars)
    assert len(said) <= max_chars
    assert said == said.strip()
    assert said.encode().decode() == said
    assert not any(
        ord(char) < 32 or "\x7f" <= char <= "\x9f" or char in "\u2028\u2029\u202e\u2066\ufeff"
        for char in said
    )


@pytest.mark.parametrize("length", [499, 500, 501, 900_000])
def test_text_is_cut_at_500_characters_with_an_ellipsis(length: int) -> None:
    """What fits is untouched."""
    said = Redactor("")("x" * length)
    assert said == ("x" * length if length <= 500 else "x" * 499 + "…")


def test_escape_sequences_and_line_ends_become_spaces() -> None:
    """One for any number of them."""
    assert Redactor("")(" a\r\n\x1b[2J\u202eb\x00\ud800c ") == "a [2J b c"


def test_the_secret_is_not_shown_by_its_redactor() -> None:
    """Not in its repr either."""
    assert _LONG_KEY not in repr(Redactor(_LONG_KEY))


# Errors in many shapes.


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            b'{"error":{"message":"No.","type":"t","param":"p","code":"c"}}',
            ProviderError("No.", "t", "p", "c"),
        ),
        (b'{"error":{"message":"No.","code":429,"param":null}}', ProviderError("No.", code="429")),
        (b'{"error":"No."}', ProviderError("No.")),
        (b'{"detail":"No."}', ProviderError("No.")),
        (b'{"detail":[{"loc":["body"],"msg":"No.","type":"missing"}]}', ProviderError("No.")),
        (b'[{"error":{"code":400,"message":"No.","status":"X"}}]', ProviderError("No.", code="400")),
        (
            b'{"object":"error","message":"No.","type":"BadRequestError","param":null,"code":400}',
            ProviderError("No.", "BadRequestError", code="400"),
        ),
        (b'{"message":"No."}', ProviderError("No.")),
        (b'{"message":"Bad Request","error":{"message":"No."}}', ProviderError("No.")),
        (b'{"error":"invalid_grant","message":"No."}', ProviderError("No.")),
        (b'{"title":"No.","status":400}', ProviderError("No.")),
        (b'{"error":{"description":" No. "}}', ProviderError("No.")),
        (b'{"errors":[{"code":7003,"message":"No."}],"success":false}', ProviderError("No.")),
        (b'{"Message":"No.","__type":"X"}', ProviderError("No.")),
        (b'{"error_code":336,"error_msg":"No."}', ProviderError("No.")),
        (b'{"base_resp":{"status_code":1004,"status_msg":"No."}}', ProviderError("No.")),
        (b'{"fault":{"faultstring":"No."}}', ProviderError("No.")),
        (b'"No."', ProviderError("No.")),
        (b"  No. \n", ProviderError("No.")),
        (b"<html><head><title>x</title></head><body><h1>No.</h1></body></html>", ProviderError("No.")),
        (b"<script>var x = '<b>';</script>No<br>way &c.", ProviderError("No way &c.")),
        (b"<!-- > hidden -->No.<style>p { }", ProviderError("No.")),
        (b'{"error":{"message":"\\ud83d no"}}', ProviderError("\ufffd no")),
        (b"caf\xe9", ProviderError("caf\ufffd")),
        (b'{"error":{"message":{"deep":1},"type":["t"],"code":true}}', ProviderError()),
        (b"{}", ProviderError()),
        (b"[]", ProviderError()),
        (b"null", ProviderError()),
        (b"", ProviderError()),
        (b'{"error":' * 40 + b'"No."' + b"}" * 40, ProviderError()),
    ],
)
def test_the_sentence_is_found_in_every_shape(body: bytes, said: ProviderError) -> None:
    """With type, parameter and code where there are any; the innermost object is the most specific."""
    assert parse_error_body(body) == said


@pytest.mark.parametrize(
    "body", [b"<" * 65_536, b"<script" * 9_000, b"<!--" * 16_000, b"[" * 65_536, b"<a " * 20_000 + b">"]
)
def test_no_body_takes_long_to_read(body: bytes) -> None:
    """It is read on the event loop: hostile markup and nesting included."""
    began_at = time.process_time()
    parse_error_body(body)
    assert time.process_time() - began_at < 0.25


def test_the_kind_of_an_error_names_type_code_and_parameter_once() -> None:
    """They stand for a sentence that must not be recorded."""
    assert ProviderError("No.", "invalid", "messages", "400").kind == "invalid, 400, parameter messages"
    assert ProviderError("No.", "same", None, "same").kind == "same"
    assert ProviderError("No.").kind == ""
