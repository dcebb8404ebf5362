"""The Audit screen: who changed what, and when, and what operators wrote down."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll

from relayd.admin.client import AdminClientError
from relayd.admin.schema import AuditEntry, epoch_s
from tui.context import Context
from tui.model.app_state import AppState, Connection
from tui.model.filter_kinds import AUDIT
from tui.model.sorting import Value
from tui.model.units import day_clock
from tui.screens.filtered import FILTER, FILTER_FIELDS, NAMED_FILTERS, TOGGLE_FILTER, FilteredItems
from tui.screens.notes import write_note
from tui.screens.pane import BACK_HINT, HELP_HINTS, SORT_HINT
from tui.theme import Role
from tui.type_ahead import ASKS, Work
from tui.widgets.bars import Hint
from tui.widgets.line_list import FILTERED_OUT, Field, ItemList, LineList
from tui.widgets.words import Words

SIDE_BY_SIDE = 130
_COLUMNS = {"time": 14, "action": 10, "result": 6, "by": 8, "client": 11}
_WIDE_COLUMNS = {"time": 14, "action": 13, "result": 12, "by": 12, "client": 18}
_WIDE = 100
_NOTE = "note"
_MEANINGS = {"fill": "fill (the very first key)", "set_client": "set_client (note and bounds)"}
"""Actions whose names need a word."""
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


class AuditList(ItemList[AuditEntry]):
    """What operators did, newest first."""

    def __init__(self, state: AppState) -> None:
        super().__init__(lambda entry: entry.seq, id="entries")
        self._state = state

    def fields(self, width: int) -> list[Field]:
        """Return the columns."""
        widths = _WIDE_COLUMNS if width >= _WIDE else _COLUMNS
        fixed = [Field(title, cells) for title, cells in widths.items()]
        left = width - 3 - sum(field.width + 1 for field in fixed)
        return [*fixed, Field("keys and detail", max(0, left))]

    def sort_values(self) -> Mapping[str, Value[AuditEntry]]:
        """Return what an entry is sorted by."""
        return {
            "time": lambda entry: entry.seq,
            "action": lambda entry: entry.action,
            "result": lambda entry: entry.result,
            "by": lambda entry: entry.login,
            "client": lambda entry: entry.client,
        }

    def cells(self, item: AuditEntry) -> dict[str, tuple[str, Role]]:
        """Return one entry."""
        return {
            "time": (day_clock(epoch_s(item.at))[5:], Role.DIM),
            "action": (item.action, Role.ACCENT if item.action == _NOTE else Role.STRONG),
            "result": (item.result, Role.GOOD if item.result == "done" else Role.BAD),
            "by": (item.login, Role.TEXT),
            "client": (item.client or "—", Role.TEXT),
            "keys and detail": (_details(item), Role.TEXT if item.action == _NOTE else Role.DIM),
        }

    def empty_text(self) -> tuple[str, ...]:
        """Say that nothing was done yet, or that it is not known, or that nothing passes."""
        if self.all_items:
            return FILTERED_OUT
        if self._state.connection is not Connection.LIVE and not self._state.reads_disk:
            return (f"{self._state.state_word}: the audit is not known.",)
        return (
            "Nothing has been changed yet.",
            "Every change of a key, every pause and cancel will be listed here.",
        )


class AuditPane(FilteredItems):
    """The list, and beside or under it the chosen entry in words."""

    NEWEST_FIRST = True

    DEFAULT_CSS = """
    AuditPane #both { height: 1fr; }
    AuditPane AuditList { width: 2fr; }
    AuditPane #words { width: 1fr; padding: 0 1; background: $surface; }
    AuditPane #entry { height: auto; }
    AuditPane.-narrow #both { layout: vertical; }
    AuditPane.-narrow AuditList { width: 1fr; }
    AuditPane.-narrow #words { width: 1fr; height: auto; min-height: 4; max-height: 12; }
    """

    KIND = AUDIT
    MOVES_EVERY_S = 10
    CHANGES: ClassVar[frozenset[str]] = frozenset({"note"})
    BINDINGS: ClassVar[list[BindingType]] = [
        FILTER,
        TOGGLE_FILTER,
        NAMED_FILTERS,
        FILTER_FIELDS,
        Binding("n", "note", "Add a note"),
        Binding("o", "owner", "Show its key and client"),
        Binding("w", "export", "Export what is shown"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context, id="audit")
        self._shown: tuple[int, int] | None = None
        """The places in the log of the first and the last entry that the list has."""
        self._noted: int | None = None
        """The place in the log of a new note that is not in the list yet."""

    def compose(self) -> ComposeResult:
        """Show filter line, list and words."""
        yield self.filter_line()
        with Horizontal(id="both"):
            yield AuditList(self.state)
            with VerticalScroll(id="words", can_focus=True):
                yield Words(id="entry")

    @property
    def rows(self) -> AuditList:
        """The list."""
        return self.query_one(AuditList)

    def on_mount(self) -> None:
        """Lay out."""
        self.set_class(self.app.size.width < SIDE_BY_SIDE, "-narrow")

    def on_resize(self) -> None:
        """Lay out for another width."""
        self.set_class(self.size.width < SIDE_BY_SIDE, "-narrow")

    def refresh_data(self) -> None:
        """Show new entries."""
        audit = self.state.audit
        ends = (audit[0].seq, audit[-1].seq) if audit else None
        # There are thousands of entries, and the time changes nothing in them.
        if ends != self._shown:
            self._shown = ends
            self.rows.show(audit)
        else:
            self.rows.redraw()
        if self._noted is not None and audit and audit[0].seq >= self._noted:
            # It may be hidden by a filter.
            place = self.rows.index_of(self._noted)
            self._noted = None
            if place is not None:
                self.rows.go_to(place)
        self.line.redraw()
        self._show_chosen()
        self._look_for_older()

    def focus_default(self) -> None:
        """Focus the list."""
        self.focus_now(self.rows)

    @on(LineList.Moved)
    def _moved(self) -> None:
        self._show_chosen()
        self._look_for_older()
        self.post_message(self.HintsChanged())

    def _show_chosen(self) -> None:
        entry = self.rows.chosen
        self.query_one(Words).say("" if entry is None else _in_words(entry))

    def hints(self) -> list[Hint]:
        """Return the keys of this screen, with the reason for each that can't be used."""
        refusal = self.context.commands.refusal()
        return [
            Hint("n", "note", "note", refusal),
            Hint("o", "key", "owner", self._no_owner()),
            Hint("w", "export", "export", "" if self.rows.row_count() else "there is nothing to export"),
            Hint("F", "filters", "named_filters"),
            *HELP_HINTS,
            BACK_HINT,
            SORT_HINT,
        ]

    def _no_owner(self) -> str:
        """Return why the chosen entry leads to no client; an empty text if it does."""
        entry = self.rows.chosen
        if entry is None or entry.client is None:
            return "this entry is about no client"
        if entry.client in self.state.clients:
            return ""
        if not self.state.clients_known:
            return "the clients are not known"
        return f"there is no client {entry.client} any more"

    @on(LineList.Chosen)
    def action_owner(self) -> None:
        """Show the client and the key that the entry is about."""
        entry, reason = self.rows.chosen, self._no_owner()
        if entry is None or reason:
            self.app.notify(f"Not now: {reason}.")
        else:
            self.post_message(self.OpenOwner(entry.client, next(iter(entry.key_ids), None)))

    # Older entries.

    def _look_for_older(self) -> None:
        """Load more while the end of the list is in sight."""
        rows, state = self.rows, self.state
        at_end = rows.body_height and rows.top + rows.body_height >= rows.row_count()
        can_ask = state.connection is Connection.LIVE or state.reads_disk
        if at_end and can_ask and state.audit and not state.audit_complete:
            self.start_once("older", self._load_older)

    async def _load_older(self) -> None:
        try:
            await self.context.feed.history.load_older_audit()
        except AdminClientError as error:
            self.app.notify(f"Older entries were not loaded: {error}", severity="error")

    # Export and notes.

    def action_export(self) -> None:
        """Write what is shown to a file."""
        items = list(self.rows.items)
        named = (self.KIND.one, self.KIND.many)
        self.context.exporter.export(AuditEntry, items.__getitem__, len(items), *named)

    def action_note(self) -> None:
        """Write a note, about what the chosen entry is about."""
        about = self.rows.chosen
        client, key_ids = ("", ()) if about is None else (about.client or "", about.key_ids)
        noting: Work = partial(self._note, client, key_ids)
        self.run_worker(noting, group=f"{ASKS}-note", exclusive=True)

    async def _note(self, client: str, key_ids: Sequence[str]) -> None:
        entry = await write_note(self.app, self.context.commands, client, key_ids)
        if entry is not None:
            self._noted = entry.seq
            self.refresh_data()


def _details(entry: AuditEntry) -> str:
    """Return keys and detail; of a note the text matters most."""
    parts = [_keys(entry), entry.detail]
    return "  ".join(filter(None, reversed(parts) if entry.action == _NOTE else parts))


def _keys(entry: AuditEntry) -> str:
    """Return the keys of a change; of two, the one that gave way comes first."""
    if entry.action in {"rotate", "undo"}:
        return " → ".join(reversed(entry.key_ids))
    return ", ".join(entry.key_ids)


def _in_words(entry: AuditEntry) -> str:
    by = f"by {entry.login} (uid {entry.uid}, process {entry.pid})"
    keys = f", {'keys' if len(entry.key_ids) > 1 else 'key'} {_keys(entry)}" if entry.key_ids else ""
    client = f" for client {entry.client}" if entry.client else ""
    action = _MEANINGS.get(entry.action, entry.action)
    # Times in details are the daemon's, in UTC.
    detail = _MOMENT.sub(lambda found: day_clock(epoch_s(found[0])), entry.detail or "")
    return (
        f"{day_clock(epoch_s(entry.at))}  {action}: {entry.result}{client}{keys}\n"
        f"{by}, generation {entry.generation} of the keys\n"
        f"{detail}"
    )
