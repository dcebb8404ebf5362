"""Taking data out of the app: to the clipboard, or into a file as NDJSON or CSV."""

from __future__ import annotations

import asyncio
import csv
import io
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from textual.app import App

from relayd.admin.schema import RecordedError, RequestRecord
from relayd.printable import csv_text, plural
from tui import clipboard
from tui.model.app_state import AppState
from tui.screens.dialogs import AskExport
from tui.type_ahead import ASKS, Work

_ERROR_FIELDS = ("error_code", "error_message")
_ROWS_AT_ONCE = 500


class Exporter:
    """Each method starts its work and returns at once; a notification says how it went.

    Args:
        app: shows dialogs and notifications.
        state: what the app knows.
        env: tells which clipboard there is.
        write: writes an escape sequence to the terminal, past Textual's drawing.
    """

    def __init__(
        self, app: App[int], state: AppState, env: Mapping[str, str], write: Callable[[str], None]
    ) -> None:
        self._app = app
        self._state = state
        self._env = env
        self._write = write

    def copy(self, text: str, what: str) -> None:
        """Send a text towards the operator's clipboard."""
        copying: Work = partial(self._copy, text, what)
        self._app.run_worker(copying, group="copy")

    async def _copy(self, text: str, what: str) -> None:
        self._app.notify(await self.send(text, what))

    async def send(self, text: str, what: str, *, secret: bool = False) -> str:
        """Copy, and return a sentence on how; a secret never goes into a file on its own.

        Raises:
            NoClipboard: a secret can't be copied on this terminal.
        """
        return await clipboard.copy(text, what, self._env, self._write, may_use_file=not secret)

    def copy_curl(self, record: RequestRecord) -> None:
        """Copy a command that sends a request like this one."""
        status = self._state.status
        address = status.address if status is not None else "http://127.0.0.1:3666"
        self.copy(curl_command(record, address), "The curl command (put the key into $RELAYD_KEY)")

    def export(
        self,
        kind: type[msgspec.Struct],
        row_at: Callable[[int], object],
        count: int,
        one: str,
        many: str | None = None,
    ) -> None:
        """Write what is shown into a new file, after asking for its form.

        Args:
            kind: of the rows; others, such as marks, are left out.
            row_at: returns a row by its number, or None if it is gone.
            count: how many rows there are.
            one: what a row is called.
            many: what several are called, if not with an `s` behind it.
        """
        rows = _Rows(kind, row_at, count, partial(plural, one=one, many=many))
        exporting: Work = partial(self._export, rows)
        self._app.run_worker(exporting, exclusive=True, group=f"{ASKS}-export")

    async def _export(self, rows: _Rows) -> None:
        form = await self._app.push_screen_wait(AskExport(rows.count))
        if form is None:
            return
        prefix = time.strftime("relayd-%Y%m%d-%H%M%S-")
        try:
            text, count = await rows.text(csv_line if form == "csv" else ndjson_line)
            text = csv_header(rows.kind) + text if form == "csv" else text
            path = await asyncio.to_thread(clipboard.private_file, text, prefix, Path.cwd(), f".{form}")
        except OSError as error:
            self._app.notify(f"Nothing was exported: {error}", severity="error")
        else:
            self._app.notify(f"{rows.named(count)} written to {path} (only you can read it).")


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a list."""

    kind: type[msgspec.Struct]
    row_at: Callable[[int], object]
    count: int
    named: Callable[[int], str]

    async def text(self, line: Callable[[msgspec.Struct], str]) -> tuple[str, int]:
        """Return them as lines, and their number."""
        lines = []
        for index in range(self.count):
            row = self.row_at(index)
            if isinstance(row, self.kind):
                lines.append(line(row))
            if index % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return "".join(lines), len(lines)


def ndjson_line(row: msgspec.Struct) -> str:
    """Return one row as one line of JSON."""
    return msgspec.json.encode(row).decode() + "\n"


def _csv_fields(kind: type[msgspec.Struct]) -> list[str]:
    return [field for field in kind.__struct_fields__ if field != "error"]


def csv_header(kind: type[msgspec.Struct] = RequestRecord) -> str:
    """Return the names of the columns; those of an error come last."""
    has_error = "error" in kind.__struct_fields__
    return _csv_row([*_csv_fields(kind), *(_ERROR_FIELDS if has_error else ())])


def csv_line(row: msgspec.Struct) -> str:
    """Return one row as one CSV row."""
    values: list[object] = [getattr(row, field) for field in _csv_fields(type(row))]
    if "error" in row.__struct_fields__:
        error: RecordedError | None = row.error  # type: ignore[attr-defined]  # just looked for
        values += (None, None) if error is None else (error.code, error.message)
    return _csv_row(map(_cell, values))


def _cell(value: object) -> object:
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    return csv_text(value) if isinstance(value, str) else value


def _csv_row(values: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def curl_command(record: RequestRecord, address: str) -> str:
    """Return a command that sends a request like this one, with a placeholder for the key and the prompt."""
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
