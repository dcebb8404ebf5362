"""Taking data out of the app: to the clipboard, or into a file."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from relayd.admin.schema import RequestRecord
from tui import clipboard
from tui.model import export
from tui.model.units import plural
from tui.type_ahead import ASKS

if TYPE_CHECKING:
    from tui.app import RelaydApp

_ROWS_A_TURN = 500


class TakeOut:
    """Each method starts its work and returns at once; how it went is told in the corner."""

    def __init__(self, app: RelaydApp) -> None:
        self._app = app

    def copy(self, text: str, what: str) -> None:
        """Towards the operator's clipboard."""
        self._app.run_worker(self._copy(text, what), group="copy")

    async def _copy(self, text: str, what: str) -> None:
        self._app.notify(await self.send(text, what))

    async def send(self, text: str, what: str, *, secret: bool = False) -> str:
        """Copy, and return a sentence on how; a secret never goes into a file on its own."""
        return await clipboard.copy(
            text, what, self._app.options.env, self._app.write_to_terminal, may_use_file=not secret
        )

    def copy_curl(self, record: RequestRecord) -> None:
        """A command that sends a request like this one."""
        status = self._app.state.status
        address = status.address if status is not None else "http://127.0.0.1:3666"
        self.copy(export.curl_command(record, address), "The curl command (put the key into $RELAYD_KEY)")

    def export(self) -> None:
        """What is shown, into a new file, after asking for its form."""
        self._app.run_worker(self._export(), exclusive=True, group=f"{ASKS}-export")

    async def _export(self) -> None:
        from tui.screens.ask import AskExport  # noqa: PLC0415 - loaded when first used

        form = await self._app.push_screen_wait(AskExport(len(self._app.state.view)))
        if form is None:
            return
        try:
            path, written = await self._write(form)
        except OSError as error:
            self._app.notify(f"Nothing was exported: {error}", severity="error")
        else:
            self._app.notify(f"{plural(written, 'record')} written to {path} (only you can read it).")

    async def _write(self, form: str) -> tuple[Path, int]:
        view = self._app.state.view
        lines = [export.csv_header()] if form == "csv" else []
        written = 0
        for index in range(len(view)):
            row = view.row_at(index) if index < len(view) else None
            if isinstance(row, RequestRecord):
                lines.append(export.csv_line(row) if form == "csv" else export.ndjson_line(row).decode())
                written += 1
            if index % _ROWS_A_TURN == 0:
                await asyncio.sleep(0)
        prefix = time.strftime("relayd-%Y%m%d-%H%M%S-", time.localtime(self._app.now_s()))
        path = await asyncio.to_thread(clipboard.private_file, "".join(lines), prefix, Path.cwd(), f".{form}")
        return path, written
