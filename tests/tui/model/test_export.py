"""Data taken out, durations in words, and secrets."""

from __future__ import annotations

import csv
import io
import json
import shlex

from relayd.admin.schema import AuditEntry, RequestRecord
from tests.tui.samples import a_failure, a_record
from tui.export import csv_header, csv_line, curl_command, ndjson_line
from tui.model.secret import Secret
from tui.model.units import in_words


def test_a_line_of_ndjson_is_the_record() -> None:
    """Every field by its name on the wire."""
    parsed = json.loads(ndjson_line(a_failure(3)))
    assert parsed["error"]["code"] == "upstream_failed"
    assert parsed["seq"] == 3


def test_a_csv_row_has_a_value_for_every_column() -> None:
    """Header and rows have the same width, errors in two columns."""
    rows = list(csv.reader(io.StringIO(csv_header() + csv_line(a_failure(3)) + csv_line(a_record(4)))))
    assert {len(row) for row in rows} == {len(RequestRecord.__struct_fields__) + 1}
    assert rows[0][-2:] == ["error_code", "error_message"]
    assert rows[1][-2] == "upstream_failed"


def test_an_audit_entry_is_exported_as_well() -> None:
    """Its keys share a cell; there is no column for errors."""
    entry = AuditEntry(at="2026", action="note", result="done", key_ids=("a1", "b2"), detail="=told web")
    header, row = csv.reader(io.StringIO(csv_header(AuditEntry) + csv_line(entry)))
    cells = dict(zip(header, row, strict=True))
    assert (cells["action"], cells["key_ids"], cells["detail"]) == ("note", "a1 b2", "'=told web")


def test_a_spreadsheet_formula_is_defused() -> None:
    """A user agent that begins like a formula gets an apostrophe."""
    assert "'=HYPERLINK(1)" in csv_line(a_record(1, user_agent="=HYPERLINK(1)"))


def test_curl_has_a_placeholder_for_the_key_and_quotes_the_model() -> None:
    """A model name can't break out of the command, and no key is in it."""
    command = curl_command(a_record(1, model="x'; rm -rf /"), "http://127.0.0.1:3666/")
    words = shlex.split(command)
    assert "Authorization: $RELAYD_KEY" in words
    assert json.loads(words[-1])["model"] == "x'; rm -rf /"


def test_durations_in_words_use_the_largest_unit() -> None:
    """Ninety minutes stay minutes."""
    assert [in_words(s) for s in (3600, 5400, 60, 45)] == ["1 hour", "90 minutes", "1 minute", "45 seconds"]


def test_a_secret_shows_nothing_by_accident() -> None:
    """Neither `repr` nor the mask has the key's text, and clearing lets go of it."""
    secret = Secret("rly_Ab12Cd34_SENSITIVE")
    assert "SENSITIVE" not in repr(secret) + str([secret]) + secret.masked
    assert secret.masked.startswith("rly_Ab12Cd34_")
    secret.clear()
    assert secret.text == ""


def test_a_key_of_another_form_is_masked_whole() -> None:
    """A key given by the operator has no id to show."""
    assert set(Secret("a-key-of-my-own-making").masked) == {"•"}
