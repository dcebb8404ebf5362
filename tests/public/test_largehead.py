"""Heads too large to be read: what of them is believed, and what is left of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relayd.public.address import ClientAddress
from relayd.public.cors import Cors
from relayd.public.largehead import LargeHeads
from relayd.relay.ledger import Ledger
from relayd.state.records import Outcome, RequestRecord

_FILLER = b"Authorization: " + b"x" * 20_000


class _Log:
    def __init__(self) -> None:
        self.ends: list[RequestRecord] = []

    def started(self, record: RequestRecord) -> None:
        """A refusal is opened and ended at once."""

    def ended(self, record: RequestRecord) -> None:
        self.ends.append(record)


def _refused(head: bytes, origins: tuple[str, ...] = ("*",)) -> tuple[RequestRecord, dict[str, str], bytes]:
    """The record, the reply's fields by lower-case name, and its body."""
    log = _Log()
    heads = LargeHeads(Cors(origins), ClientAddress(("127.0.0.1",)), Ledger(log), "boot")
    raw, _, body = heads.refuse(head, "127.0.0.1").partition(b"\r\n\r\n")
    start, *lines = raw.decode("latin-1").split("\r\n")
    assert start == "HTTP/1.1 401 Unauthorized"
    fields = [line.split(": ", 1) for line in lines]
    assert len({name for name, _ in fields}) == len(fields)
    return log.ends[0], {name.lower(): value for name, value in fields}, body


def test_what_came_before_the_large_field_is_known() -> None:
    """Address, origin and program are recorded; the page may read the refusal."""
    record, fields, _ = _refused(
        b"POST /chat?secret=1 HTTP/1.1\r\nHost: a\r\nOrigin: https://page.example\r\n"
        b"X-Forwarded-For: 192.0.2.1, 192.0.2.2\r\nUser-Agent: curl\r\n" + _FILLER
    )
    assert (record.outcome, record.status) == (Outcome.DENIED, 401)
    assert (record.ip, record.origin, record.user_agent) == ("192.0.2.2", "https://page.example", "curl")
    assert record.path == "/chat"
    assert fields["access-control-allow-origin"] == "https://page.example"
    assert fields["x-request-id"] == record.id


def test_what_was_cut_is_not_taken_for_whole() -> None:
    """A field that the end of what was read cut in two is nothing."""
    record, fields, _ = _refused(b"POST /chat HTTP/1.1\r\nHost: a\r\nOrigin: https://page.exa")
    assert record.origin is None
    assert "access-control-allow-origin" not in fields


def test_an_origin_that_is_not_listed_may_not_read() -> None:
    """As for any other reply."""
    head = b"POST /chat HTTP/1.1\r\nOrigin: https://evil.example\r\n" + _FILLER
    assert "access-control-allow-origin" not in _refused(head, ("https://page.example",))[1]


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_nothing_in_a_head_can_shape_the_reply(before: bytes, origin: bytes) -> None:
    """Whatever it holds, the reply is one 401 with its own fields, each once, and its own body."""
    usual = _refused(b"POST /chat HTTP/1.1\r\n" + _FILLER)[2]
    record, fields, body = _refused(before + b"\r\nOrigin: " + origin + b"\r\n" + _FILLER)
    assert body == usual
    assert set(fields) - {"access-control-allow-origin"} <= {
        "content-type",
        "date",
        "cache-control",
        "x-content-type-options",
        "x-accel-buffering",
        "x-relayd-error",
        "connection",
        "content-length",
        "www-authenticate",
        "x-request-id",
        "vary",
        "access-control-allow-credentials",
        "access-control-expose-headers",
    }
    assert fields.get("access-control-allow-origin", "").isprintable()
    assert record.outcome is Outcome.DENIED
