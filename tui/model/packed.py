"""Records packed small: a million of them must fit beside a daemon on a small machine.

A `RequestRecord` costs over a kilobyte as a Python object. Packed, it is one `bytes` of 100 to 250:
its values in the order of its fields as MessagePack, with a number in place of each text that many
records share.
"""

from __future__ import annotations

from typing import Any

import msgspec

from relayd.admin.schema import Outcome, Phase, RecordedError, RequestRecord, UsageSource
from tui.model.units import unix_s, utc_from_ms

_MAX_SHARED = 50_000
# The place in the log is the row's key; the error is packed as its two texts.
_FIELDS = tuple(name for name in RequestRecord.__struct_fields__ if name not in {"seq", "error"})
# Texts of one record alone, and the start, which is packed as a number.
_OWN = {"id", "started_at", "upstream_request_id"}
_STARTED_AT = _FIELDS.index("started_at")
_TEXT_FIELDS = {
    field.name
    for field in msgspec.structs.fields(RequestRecord)
    if field.type in {str, str | None, Phase, Outcome | None, UsageSource | None}
}
_SHARED = [index for index, name in enumerate(_FIELDS) if name in _TEXT_FIELDS - _OWN]
_SHARED += [len(_FIELDS), len(_FIELDS) + 1]


class Packer:
    """Packs and unpacks records against one table of shared texts.

    The table stops growing at 50,000 texts, so that made-up user agents cannot fill the memory; later
    new texts are kept in their record.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._numbers: dict[str, int] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(list[Any]).decode

    def pack(self, record: RequestRecord) -> bytes:
        """Return the record as bytes, without its `seq`."""
        error = record.error
        values: list[object] = [getattr(record, name) for name in _FIELDS]
        values += (None, None) if error is None else (error.code, error.message)
        values[_STARTED_AT] = round(unix_s(record.started_at) * 1000)
        for index in _SHARED:
            text = values[index]
            if isinstance(text, str):
                values[index] = self._number(text)
        return self._encode(values)

    def _number(self, text: str) -> int | str:
        number = self._numbers.get(text)
        if number is None:
            if len(self._texts) >= _MAX_SHARED:
                return text
            number = self._numbers[text] = len(self._texts)
            self._texts.append(text)
        return number

    def unpack(self, packed: bytes, seq: int) -> RequestRecord:
        """Return the record that was packed, with this `seq`."""
        values = self._decode(packed)
        for index in _SHARED:
            if isinstance(values[index], int):
                values[index] = self._texts[values[index]]
        values[_STARTED_AT] = utc_from_ms(values[_STARTED_AT])
        message, code = values.pop(), values.pop()
        record = RequestRecord(seq=seq, **dict(zip(_FIELDS, values, strict=True)))
        record.phase = Phase(record.phase)
        record.outcome = None if record.outcome is None else Outcome(record.outcome)
        record.usage_source = None if record.usage_source is None else UsageSource(record.usage_source)
        record.error = None if code is None else RecordedError(code, message)
        return record
