"""Records packed small: a million of them must fit beside a daemon on a small machine.

A `RequestRecord` costs over a kilobyte as a Python object. Packed, it is one `bytes` of 150 to 250:
MessagePack without field names, and a number in place of each text that many records share.
"""

from __future__ import annotations

import msgspec

from relayd.admin.schema import Outcome, Phase, RecordedError, RequestRecord
from tui.model.units import unix_s, utc_from_ms

_PHASES = tuple(Phase)
_OUTCOMES = tuple(Outcome)
_PHASE_NUMBER = {phase: number for number, phase in enumerate(_PHASES)}
_OUTCOME_NUMBER = {outcome: number for number, outcome in enumerate(_OUTCOMES)}
_MAX_NAMES = 50_000


class _Packed(msgspec.Struct, array_like=True, gc=False):
    id: str
    boot_id: int | str
    started_ms: int
    client: int | str | None
    key_id: int | str | None
    ip: int | str
    origin: int | str | None
    user_agent: int | str | None
    path: int | str
    model: int | str | None
    phase: int
    status: int | None
    outcome: int | None
    error_code: int | str | None
    error_message: int | str | None
    connect_ms: int | None
    first_token_ms: int | None
    duration_ms: int | None
    stalled_ms: int
    deltas: int
    bytes_out: int
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: int | str | None
    upstream_request_id: str | None


class Packer:
    """Packs and unpacks records against one table of shared texts.

    The table stops growing at 50,000 texts, so that made-up user agents cannot fill the memory; later
    new texts are kept in their record.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(_Packed).decode

    def _number(self, text: str) -> int | str:
        number = self._numbers.get(text)
        if number is not None:
            return number
        if len(self._names) >= _MAX_NAMES:
            return text
        self._numbers[text] = number = len(self._names)
        self._names.append(text)
        return number

    def _maybe(self, text: str | None) -> int | str | None:
        return None if text is None else self._number(text)

    def _text(self, name: int | str) -> str:
        return self._names[name] if isinstance(name, int) else name

    def _maybe_text(self, name: int | str | None) -> str | None:
        return self._names[name] if isinstance(name, int) else name

    def pack(self, record: RequestRecord) -> bytes:
        """The record as bytes; `record.seq` is not in them."""
        error = record.error
        return self._encode(
            _Packed(
                record.id,
                self._number(record.boot_id),
                round(unix_s(record.started_at) * 1000),
                self._maybe(record.client),
                self._maybe(record.key_id),
                self._number(record.ip),
                self._maybe(record.origin),
                self._maybe(record.user_agent),
                self._number(record.path),
                self._maybe(record.model),
                _PHASE_NUMBER[record.phase],
                record.status,
                None if record.outcome is None else _OUTCOME_NUMBER[record.outcome],
                None if error is None else self._number(error.code),
                None if error is None else self._number(error.message),
                record.connect_ms,
                record.first_token_ms,
                record.duration_ms,
                record.stalled_ms,
                record.deltas,
                record.bytes_out,
                record.prompt_tokens,
                record.completion_tokens,
                self._maybe(record.finish_reason),
                record.upstream_request_id,
            )
        )

    def unpack(self, packed: bytes, seq: int) -> RequestRecord:
        """The record again."""
        row = self._decode(packed)
        error = None
        if row.error_code is not None and row.error_message is not None:
            error = RecordedError(self._text(row.error_code), self._text(row.error_message))
        return RequestRecord(
            id=row.id,
            boot_id=self._text(row.boot_id),
            started_at=utc_from_ms(row.started_ms),
            seq=seq,
            client=self._maybe_text(row.client),
            key_id=self._maybe_text(row.key_id),
            ip=self._text(row.ip),
            origin=self._maybe_text(row.origin),
            user_agent=self._maybe_text(row.user_agent),
            path=self._text(row.path),
            model=self._maybe_text(row.model),
            phase=_PHASES[row.phase],
            status=row.status,
            outcome=None if row.outcome is None else _OUTCOMES[row.outcome],
            error=error,
            connect_ms=row.connect_ms,
            first_token_ms=row.first_token_ms,
            duration_ms=row.duration_ms,
            stalled_ms=row.stalled_ms,
            deltas=row.deltas,
            bytes_out=row.bytes_out,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            finish_reason=self._maybe_text(row.finish_reason),
            upstream_request_id=row.upstream_request_id,
        )
