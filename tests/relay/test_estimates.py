"""Guesses, and how real usage corrects them."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.usage import DEFAULT_OUTPUT_TOKENS, Estimates, TokenCounts, guess_prompt_tokens

IMAGE = base64.b64encode(bytes(range(256)) * 1200).decode()


def a_chat(*parts: dict[str, object]) -> bytes:
    """Return a request with one message of these parts."""
    return json.dumps({"messages": [{"role": "user", "content": list(parts)}]}).encode()


def an_image(url: str) -> dict[str, object]:
    """Return an image part."""
    return {"type": "image_url", "image_url": {"url": url}}


def test_text_is_a_quarter_of_its_bytes() -> None:
    """A long text is about that, whatever is around it."""
    body = a_chat({"type": "text", "text": "word " * 8000})
    assert 10_000 <= guess_prompt_tokens(body) <= 10_050


@pytest.mark.parametrize(
    ("body", "files"),
    [
        (a_chat(an_image(f"data:image/png;base64,{IMAGE}")), 1),
        (a_chat(*[an_image(f"data:image/png;base64,{IMAGE}")] * 3), 3),
        (a_chat(an_image("https://example.org/cat.png")), 1),
        (
            json.dumps(
                {"input": [{"type": "input_image", "image_url": f"data:a/b;base64,{IMAGE}"}]}
            ).encode(),
            1,
        ),
        (a_chat({"type": "input_audio", "input_audio": {"data": IMAGE, "format": "wav"}}), 1),
        (json.dumps({"file": {"file_data": IMAGE}}, separators=(",", ":")).encode(), 1),
        (a_chat({"type": "text", "text": "hi"}), 0),
    ],
    ids=["image", "three images", "image by URL", "Responses", "audio", "file", "text"],
)
def test_files_in_a_prompt_are_no_text(body: bytes, files: int) -> None:
    """The 400,000 characters of a picture count as a picture, not as 100,000 tokens."""
    assert 1000 * files <= guess_prompt_tokens(body) <= 1000 * files + 200


def test_text_that_claims_to_be_a_file_is_text() -> None:
    """Nobody makes a long text cheap by writing a mark before it."""
    body = a_chat({"type": "text", "text": ";base64," + "word " * 8000})
    assert guess_prompt_tokens(body) >= 10_000


@given(st.binary(max_size=300) | st.text('";base64,data:{} ', max_size=200).map(str.encode))
def test_any_body_gives_a_guess(body: bytes) -> None:
    """No bytes make the guess fail, run forever, or be negative."""
    assert guess_prompt_tokens(body) >= 0


def test_real_usage_corrects_the_guesses() -> None:
    """A client that writes Chinese to a model that reasons is soon estimated by its own figures."""
    estimates = Estimates()
    assert (estimates.prompt_tokens("web", "m", 100), estimates.completion_tokens("web", "m", 50)) == (
        100,
        50,
    )
    for _ in range(5):
        estimates.learn("web", "m", guess=100, deltas=50, counts=TokenCounts(160, 400))
    assert (estimates.prompt_tokens("web", "m", 100), estimates.completion_tokens("web", "m", 50)) == (
        160,
        400,
    )
    # Newer requests weigh more.
    for _ in range(40):
        estimates.learn("web", "m", guess=100, deltas=50, counts=TokenCounts(80, 50))
    assert 80 <= estimates.prompt_tokens("web", "m", 100) <= 82
    # Another client is not touched; another model of the same client is thought to be alike.
    assert estimates.prompt_tokens("phone", "m", 100) == 100
    assert 80 <= estimates.prompt_tokens("web", "n", 100) <= 82


def test_one_odd_report_does_not_ruin_the_estimate() -> None:
    """A provider that claims absurd counts moves the estimate only so far."""
    estimates = Estimates()
    estimates.learn("web", "m", guess=1, deltas=1, counts=TokenCounts(1 << 53, 1 << 53))
    assert estimates.prompt_tokens("web", "m", 10) <= 500
    estimates.learn("new", "n", guess=0, deltas=0, counts=TokenCounts(5, 5))
    assert (estimates.prompt_tokens("new", "n", 10), estimates.completion_tokens("new", "n", 0)) == (10, 0)


def test_the_usual_length_is_a_high_percentile_of_the_latest_answers() -> None:
    """Before the first answer it is a default; then nearly no answer is longer."""
    estimates = Estimates()
    assert estimates.usual_output("web", "m") == DEFAULT_OUTPUT_TOKENS
    for tokens in range(1, 101):
        estimates.learn("web", "m", guess=1, deltas=1, counts=TokenCounts(1, tokens))
    assert 95 <= estimates.usual_output("web", "m") <= 100
    for _ in range(40):
        estimates.learn("web", "m", guess=1, deltas=1, counts=TokenCounts(1, 7))
    assert estimates.usual_output("web", "m") == 7


def test_memory_is_bounded() -> None:
    """Of many clients and models, those used last are remembered."""
    estimates = Estimates()
    for number in range(5000):
        estimates.learn("old", "m", guess=1, deltas=1, counts=TokenCounts(2, 5))
        estimates.learn(f"client {number}", "m", guess=1, deltas=1, counts=TokenCounts(2, 5))
    assert estimates.usual_output("client 0", "m") == DEFAULT_OUTPUT_TOKENS
    assert estimates.usual_output("client 4999", "m") == estimates.usual_output("old", "m") == 5
