"""A change whose outcome is not known: asked for again, and never said not to have happened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from relayd.admin.client import AnswerUnknown, Refused
from relayd.commands.keys import once
from relayd.state.errors import OutcomeUnknown
from tests.admin.harness import admin_api


def _change(*answers: Exception | str) -> Callable[..., Awaitable[str]]:
    given = iter(answers)
    keys: set[str] = set()

    async def change(*, generation: int, idempotency_key: str) -> str:  # noqa: ARG001 - given by name
        keys.add(idempotency_key)
        assert len(keys) == 1, "asked again with another idempotency key"
        answer = next(given)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return change


async def test_a_lost_answer_is_asked_for_once_more() -> None:
    """With the same idempotency key, so that nothing happens twice."""
    assert await once(_change(AnswerUnknown("lost"), "done"), 1) == "done"


async def test_what_a_second_question_can_not_tell_stays_unknown() -> None:
    """A database that is down now says nothing of the change that was sent before; another refusal does."""
    with pytest.raises(AnswerUnknown, match="lost"):
        await once(_change(AnswerUnknown("lost"), Refused(503, "ring_unavailable", "nothing is changed")), 1)
    with pytest.raises(Refused, match="moved on"):
        await once(_change(AnswerUnknown("lost"), Refused(412, "generation_mismatch", "moved on")), 1)


async def test_a_commit_without_an_answer_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon says that it does not know; clients take it as a lost answer."""

    async def broken(_client: str, *, caller: object) -> None:  # noqa: ARG001 - given by name
        raise OutcomeUnknown("The connection broke.")

    async with admin_api(tmp_path) as api:
        monkeypatch.setattr(api.state.ring, "add", broken)
        with pytest.raises(AnswerUnknown, match="The connection broke"):
            await api.client.add_key("web", generation=1, idempotency_key="one")
