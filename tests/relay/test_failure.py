"""The codes of the contract, with the status and the outcome of each."""

from __future__ import annotations

import pytest

from relayd.relay.failure import Code, Failure
from relayd.state.records import Outcome

# Contract, section 1.
_TABLE = {
    "bad_request": (400, Outcome.REJECTED),
    "unauthorized": (401, Outcome.DENIED),
    "model_not_allowed": (403, Outcome.REJECTED),
    "too_large": (413, Outcome.REJECTED),
    "busy": (429, Outcome.REJECTED),
    "draining": (503, Outcome.SHUTDOWN),
    "upstream_rejected": (400, Outcome.UPSTREAM_ERROR),
    "upstream_limited": (429, Outcome.UPSTREAM_ERROR),
    "upstream_auth": (502, Outcome.UPSTREAM_ERROR),
    "upstream_failed": (502, Outcome.UPSTREAM_ERROR),
    "upstream_unreachable": (502, Outcome.UPSTREAM_ERROR),
    "upstream_timeout": (504, Outcome.UPSTREAM_ERROR),
    "upstream_truncated": (502, Outcome.UPSTREAM_ERROR),
    "cancelled": (503, Outcome.CANCELLED),
    "key_revoked": (401, Outcome.CANCELLED),
    "internal": (500, Outcome.CRASHED),
}


def test_the_codes_are_the_contracts() -> None:
    """No code is missing, and none is made up."""
    assert [str(code) for code in Code] == list(_TABLE)


@pytest.mark.parametrize("code", list(Code))
def test_a_code_has_its_status_and_outcome(code: Code) -> None:
    """Each failure is told with one status and recorded with one outcome."""
    failure = Failure(code, "Something is wrong.")
    assert (failure.status, failure.outcome) == _TABLE[code]


@pytest.mark.parametrize("code", list(Code))
def test_who_should_come_back_is_told_when(code: Code) -> None:
    """429 and 503 say when to try again, whoever raises them; nothing else does by itself."""
    failure = Failure(code, "Something is wrong.")
    assert (failure.retry_after_s is not None) == (failure.status in {429, 503})


def test_a_failure_reads_as_its_line() -> None:
    """The text is the code and the sentence."""
    assert str(Failure(Code.BUSY, "Try later.")) == "busy: Try later."
