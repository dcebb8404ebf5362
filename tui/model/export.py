"""Taking data out: NDJSON, CSV, and a curl command that shows the shape of a request."""

from __future__ import annotations

import csv
import io
import shlex

import msgspec

from relayd.admin.schema import RequestRecord

CSV_FIELDS = tuple(field for field in RequestRecord.__struct_fields__ if field != "error")
_FORMULA_STARTS = ("=", "+", "-", "@")


def ndjson_line(record: RequestRecord) -> bytes:
    """One record as one line of JSON."""
    return msgspec.json.encode(record) + b"\n"


def csv_header() -> str:
    """The names of the columns."""
    return _csv_row([*CSV_FIELDS, "error_code", "error_message"])


def csv_line(record: RequestRecord) -> str:
    """One record as one CSV row.

    Text that a spreadsheet would run as a formula gets an apostrophe before it (OWASP, CSV injection).
    """
    values = [_cell(getattr(record, field)) for field in CSV_FIELDS]
    error = record.error
    values += ["", ""] if error is None else [_cell(error.code), _cell(error.message)]
    return _csv_row(values)


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(_FORMULA_STARTS) else text


def _csv_row(values: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def curl_command(record: RequestRecord, address: str) -> str:
    """A command that sends a request like this one. The key is a placeholder; the prompt is not known."""
    body: dict[str, object] = {"messages": [{"role": "user", "content": "Hello"}]}
    if record.model is not None:
        body["model"] = record.model
    return " ".join(
        (
            "curl -N",
            shlex.quote(f"{address.rstrip('/')}/chat"),
            "-H 'Content-Type: application/json'",
            '-H "Authorization: $RELAYD_KEY"',
            "-d",
            shlex.quote(msgspec.json.encode(body).decode()),
        )
    )
