"""A head too large to hold anyone's key: answered and recorded from what was read of it."""

from __future__ import annotations

import time

from relayd.public.address import ClientAddress, network_of
from relayd.public.admission import unauthorized
from relayd.public.cors import Cors
from relayd.public.record import cut
from relayd.public.refusal import raw_reply
from relayd.public.requestid import new_request_id
from relayd.relay.ledger import Ledger
from relayd.state.records import Phase, RecordedError, RequestRecord, utc_text


class LargeHeads:
    """Refuses them like any wrong key, so that nobody learns more from a large one.

    What stands after the large field was not read: CORS and the record know only what came before it.
    """

    def __init__(self, cors: Cors, address: ClientAddress, ledger: Ledger, boot_id: str) -> None:
        self._cors = cors
        self._address = address
        self._ledger = ledger
        self._boot_id = boot_id

    def refuse(self, head: bytes, peer: str) -> bytes:
        """Record the refusal; returns the whole reply.

        Args:
            head: its first bytes, as many as were read.
            peer: the other end of the connection.
        """
        failure = unauthorized()
        start, fields = _read(head)
        record = RequestRecord(
            id=new_request_id(),
            boot_id=self._boot_id,
            started_at=utc_text(time.time()),
            ip=self._address.of(peer, fields.get("x-forwarded-for", [])),
            origin=cut(_first(fields, "origin")),
            user_agent=cut(_first(fields, "user-agent")),
            path=cut(start.split(" ")[1].partition("?")[0] if start.count(" ") > 1 else "") or "",
            phase=Phase.DONE,
            status=failure.status,
            outcome=failure.outcome,
            error=RecordedError(failure.code, failure.sentence),
            duration_ms=0,
        )
        self._ledger.denied(record, network_of(record.ip))
        return raw_reply(failure, {"X-Request-Id": record.id, **self._cors.headers(_first(fields, "origin"))})


def _read(head: bytes) -> tuple[str, dict[str, list[str]]]:
    """The first line, and the fields that came whole; names in lower case.

    Nothing has checked these bytes: a line with a control character in it is left out, since what is
    echoed must not be able to end a header.
    """
    start, *lines = head.decode("latin-1").split("\r\n")[:-1] or [""]
    fields: dict[str, list[str]] = {}
    for line in filter(str.isprintable, lines):
        name, _, value = line.partition(":")
        fields.setdefault(name.lower(), []).append(value.strip(" \t"))
    return start if start.isprintable() else "", fields


def _first(fields: dict[str, list[str]], name: str) -> str | None:
    values = fields.get(name)
    return values[0] if values else None
