"""The Instances screen: the processes that serve this relay, and which of them have the newest keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from relayd.admin.schema import AcceptState, EngineStatus, InstanceInfo, epoch_s
from tui.context import Context
from tui.model.app_state import AppState, Connection
from tui.model.instances import in_words
from tui.model.sorting import Value
from tui.model.units import age, duration
from tui.screens.inflight import StreamList
from tui.screens.pane import BACK_HINT, CLIENTS_HINT, HELP_HINTS, Pane
from tui.theme import Role
from tui.widgets.bars import Hint
from tui.widgets.line_list import Field, ItemList, LineList, dimmed
from tui.widgets.words import Words

_WIDE, _WIDEST = 110, 150
_MAX_NAME_CELLS = 48
_HIGH = 24
_LATE_S = 5.0


class InstanceList(ItemList[InstanceInfo]):
    """Instances by name."""

    def __init__(self, state: AppState, now_s: Callable[[], float]) -> None:
        super().__init__(lambda instance: instance.boot_id, id="instances-list")
        self._state = state
        self._now_s = now_s

    def refresh_data(self) -> None:
        """Take over the instances."""
        known = self._state.instances
        self.show(() if known is None else known.instances)

    def fields(self, width: int) -> list[Field]:
        """Return the columns; the name has what the others leave."""
        fixed = [
            Field("serves", 24),
            Field("keys", 6),
            Field("intake", 8),
            Field("streams", 7, right=True),
            Field("heard", 5, right=True),
            Field("up", 4, right=True),
        ]
        if width >= _WIDE:
            fixed += [Field("version", 14), Field("process", 8, right=True)]
        if width >= _WIDEST:
            fixed += [Field("worker", 6, right=True), Field("boot", 14), Field("generation", 10, right=True)]
        left = width - 2 - sum(field.width + 1 for field in fixed)
        return [Field("instance", max(8, min(_MAX_NAME_CELLS, left))), *fixed]

    def sort_values(self) -> Mapping[str, Value[InstanceInfo]]:
        """Return what an instance is sorted by."""
        return {
            "streams": lambda instance: instance.streams,
            "heard": lambda instance: instance.heartbeat_age_s,
            "up": lambda instance: -epoch_s(instance.started_at),
            "instance": lambda instance: instance.name,
            "keys": lambda instance: instance.has_ring,
            "intake": lambda instance: instance.intake,
        }

    def cells(self, item: InstanceInfo) -> dict[str, tuple[str, Role]]:
        """Return one instance."""
        late = item.heartbeat_age_s > _LATE_S
        is_open = item.intake == AcceptState.OPEN
        cells = {
            "instance": (item.name, Role.STRONG),
            "serves": (item.address or "—", Role.TEXT),
            "keys": ("newest", Role.GOOD) if item.has_ring else ("older", Role.BAD),
            "intake": (item.intake, Role.GOOD if is_open else Role.WARN),
            "streams": (str(item.streams), Role.TEXT),
            "heard": (age(item.heartbeat_age_s), Role.WARN if late else Role.TEXT),
            "up": (age(self._now_s() - epoch_s(item.started_at)), Role.TEXT),
            "version": (item.version, Role.TEXT),
            "process": (str(item.pid), Role.DIM),
            "worker": ("—" if item.worker is None else str(item.worker), Role.DIM),
            "boot": (item.boot_id, Role.DIM),
            "generation": (f"{item.generation:,}", Role.TEXT),
        }
        return cells if self._state.connection is Connection.LIVE else dimmed(cells)

    def empty_text(self) -> tuple[str, ...]:
        """Say that nothing is known."""
        if self._state.connection is Connection.LIVE:
            return ("Asking ...",)
        return (f"{self._state.state_word}: the instances are not known.",)


class StreamsThere(StreamList):
    """The open streams of one instance."""

    instance = ""

    def refresh_data(self) -> None:
        """Take over the streams."""
        streams = self._state.open_streams.streams.values()
        self.show(stream for stream in streams if stream.progress.instance == self.instance)

    def empty_text(self) -> tuple[str, ...]:
        """Say that it is idle, or that there is no news."""
        live = self._state.connection is Connection.LIVE
        return (f"{self.instance or 'It'} has no open stream.",) if live else super().empty_text()


class InstancesPane(Pane):
    """The list; under it the database that they share, the chosen instance in words, and its open streams."""

    DEFAULT_CSS = """
    InstancesPane InstanceList { height: 1fr; }
    InstancesPane Static { height: auto; max-height: 6; padding: 0 1; background: $surface; }
    InstancesPane StreamsThere { height: 2fr; margin: 1 0 0 0; }
    InstancesPane.-low StreamsThere { display: none; }
    """
    CHANGES: ClassVar[frozenset[str]] = frozenset({"drain"})
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "requests", "Show the requests of this instance"),
        Binding("D", "drain", "Drain this instance, then stop it"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context, id="instances")

    def compose(self) -> ComposeResult:
        """Show list and words."""
        yield InstanceList(self.state, self.context.now_s)
        yield Words(id="words")
        yield StreamsThere(self.state, self.context.now_s, id="streams-there")

    def on_mount(self) -> None:
        """Lay out."""
        self.set_class(self.app.size.height < _HIGH, "-low")

    def on_resize(self) -> None:
        """Lay out for another height."""
        self.set_class(self.size.height < _HIGH, "-low")

    @property
    def rows(self) -> InstanceList:
        """The list."""
        return self.query_one(InstanceList)

    def refresh_data(self) -> None:
        """Show what is known by now."""
        self.context.feed.instances_in_sight = True
        self.rows.refresh_data()
        self._show_chosen()

    def focus_default(self) -> None:
        """Focus the list."""
        self.focus_now(self.rows)

    @on(LineList.Moved, "#instances-list")
    def _show_chosen(self) -> None:
        instance, status = self.rows.chosen, self.state.status
        words = [] if status is None else [_engine_in_words(status.engine)]
        if instance is not None:
            words.append(in_words(instance, self.context.now_s(), epoch_s(instance.started_at)))
        self.query_one(Words).say("\n".join(words))
        streams = self.query_one(StreamsThere)
        streams.instance = "" if instance is None else instance.name
        streams.refresh_data()

    def hints(self) -> list[Hint]:
        """Return the keys of this screen, with the reason for each that can't be used."""
        none = "" if self.rows.row_count() else "no instance is known"
        return [
            Hint("Enter", "requests", "requests", none),
            Hint("D", "drain it", "drain", self.context.commands.refusal() or none),
            CLIENTS_HINT,
            *HELP_HINTS,
            BACK_HINT,
        ]

    @on(LineList.Chosen, "#streams-there")
    def _open_stream(self) -> None:
        stream = self.query_one(StreamsThere).chosen
        if stream is not None:
            self.post_message(self.OpenRequest(stream.progress.id, stream.seq))

    @on(LineList.Chosen, "#instances-list")
    def action_requests(self) -> None:
        """Show the requests of the chosen instance."""
        instance = self.rows.chosen
        if instance is not None:
            self.post_message(self.FilterRequests(f'boot_id="{instance.boot_id}"'))

    def action_drain(self) -> None:
        """Drain the chosen instance, and leave the others."""
        instance = self.rows.chosen
        if instance is not None:
            self.context.stream_actions.drain(instance)


def _engine_in_words(engine: EngineStatus) -> str:
    latency = "" if engine.latency_ms is None else f", answers in {duration(engine.latency_ms)}"
    trouble = "" if engine.ok else f": {engine.error or 'it does not answer'}"
    return f"database: {engine.kind.value} at {engine.where or '—'}{trouble or latency}"
