"""Who may start a request, from the headers alone."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders

from relayd.public.admission import Admission
from relayd.relay.failure import Code, Failure
from relayd.relay.intake import Intake
from relayd.state.records import RequestRecord
from tests.public.room import DEAD_KEY, KEY, OneKey
from tests.relay.room import new_record, new_registry


def _admission(keys: OneKey | None = None, intake: Intake | None = None) -> Admission:
    return Admission(keys or OneKey(), intake or Intake(), new_registry(), max_body_bytes=100)


def _record() -> RequestRecord:
    record = new_record()
    record.key_id = record.client = None
    record.ip = "192.0.2.1"
    return record


@pytest.mark.parametrize("value", [KEY, f"Bearer {KEY}", f"bEaReR {KEY}", f" Bearer  {KEY} "])
async def test_a_key_is_known_in_both_forms(value: str) -> None:
    """With its scheme in any case and without it; its use is noted with the address."""
    keys = OneKey()
    record = _record()
    _admission(keys).identify(HTTPHeaders({"Authorization": value}), record)
    assert (record.key_id, record.client) == ("key00001", "default")
    assert keys.uses == [("key00001", record.ip)]


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["Bearer"],
        [f"Basic {KEY}"],
        [f"Bearer Bearer {KEY}"],
        [f"{KEY}, {KEY}"],
        [KEY, KEY],
        [KEY, "other"],
        [KEY.upper()],
        [f"{KEY}\xa0"],
        [f"\x85{KEY}"],
        ["ÿ" * 20],
    ],
)
async def test_all_else_is_unauthorized_in_the_same_words(values: list[str]) -> None:
    """Nothing tells one wrong key from another, and no use is noted."""
    keys, headers = OneKey(), HTTPHeaders()
    for value in values:
        headers.add("Authorization", value)
    with pytest.raises(Failure) as refused:
        _admission(keys).identify(headers, _record())
    assert str(refused.value) == "unauthorized: The Authorization header has no key that is valid here."
    assert keys.uses == []


async def test_a_dead_key_is_refused_like_any_other_and_its_holder_put_down() -> None:
    """The operator learns whom to tell; the client learns nothing, and no use is noted."""
    keys, record = OneKey(), _record()
    with pytest.raises(Failure) as refused:
        _admission(keys).identify(HTTPHeaders({"Authorization": DEAD_KEY}), record)
    assert str(refused.value) == "unauthorized: The Authorization header has no key that is valid here."
    assert (record.key_id, record.client) == ("key00000", "gone")
    assert keys.uses == []


@pytest.mark.parametrize(
    ("length", "refused"),
    [(None, False), ("0", False), ("100", False), ("101", True), ("9" * 30, True), ("-1", True), ("x", True)],
)
async def test_the_size_is_known_before_the_body(length: str | None, refused: bool) -> None:  # noqa: FBT001 - the example
    """A length over the limit, or none that can be read, is refused; a chunked body has none yet."""
    headers = HTTPHeaders({} if length is None else {"Content-Length": length})
    if not refused:
        _admission().check_intake(headers)
        return
    with pytest.raises(Failure) as failure:
        _admission().check_intake(headers)
    assert failure.value.code is Code.TOO_LARGE
    assert "100 bytes" in failure.value.sentence


async def test_who_pauses_is_told_before_the_size_is_looked_at() -> None:
    """A paused relay says so whatever comes."""
    intake = Intake()
    intake.pause()
    with pytest.raises(Failure) as refused:
        _admission(intake=intake).check_intake(HTTPHeaders({"Content-Length": "999999"}))
    assert refused.value.code is Code.DRAINING
