"""The Clients screen: who may use the relay, with which keys, how much of what, and every change of that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll

from relayd.admin.client import AdminClientError
from relayd.admin.schema import LIVE_STATES, ClientInfo, KeyInfo, KeyState, epoch_s
from tui.context import Context
from tui.model.app_state import AppState, Connection
from tui.model.clients import bar, by_day, last_days, month_meter, nearest
from tui.model.evidence import RECENT_S
from tui.model.filter_kinds import CLIENTS
from tui.model.sorting import Value
from tui.model.units import age, count, countdown, money
from tui.ring_actions import RingActions
from tui.screens.client_keys import ClientSummary, KeyList, role_of
from tui.screens.filtered import FILTER, FILTER_FIELDS, NAMED_FILTERS, FilteredItems
from tui.screens.key_view import KeyView, UsersAsked
from tui.screens.notes import write_note
from tui.screens.pane import BACK_HINT, HELP_HINTS, SORT_HINT
from tui.theme import Role
from tui.type_ahead import ASKS, Work
from tui.widgets.bars import Hint
from tui.widgets.filter_line import Filtered
from tui.widgets.line_list import FILTERED_OUT, Field, ItemList, Key, LineList
from tui.widgets.plot import Line, Plot

SIDE_BY_SIDE = 130
_DAYS = 30
_BAR_CELLS = 7
_MONEY_CELLS = 11
_MAX_KEYS = 6
_BELOW_KEYS = 11
"""Lines of a narrow screen for the titles, the plots, and three of the text that begins with the client."""
_SOON_S = 7 * 86_400
_SETTLED_S = 0.1
"""How long the cursor stands still before the use of the client under it is asked for."""
_USAGE_EVERY_S = 10.0
_DEFAULT_CLIENT = "default"


class ClientList(ItemList[ClientInfo]):
    """Clients by name; removed ones only while their keys are still sent, or on demand."""

    def __init__(self, state: AppState, now_s: Callable[[], float]) -> None:
        super().__init__(lambda client: client.name, id="clients-list")
        self._state = state
        self._now_s = now_s
        self.show_ended = False

    def refresh_data(self) -> None:
        """Take over the clients."""
        clients = sorted(self._state.clients.values(), key=lambda client: client.name)
        self.show(
            client
            for client in clients
            if client.removed_at is None or self.show_ended or self._is_dead_key_used(client.name)
        )

    def _is_dead_key_used(self, client: str) -> bool:
        since_s = self._now_s() - RECENT_S
        ended = (key for key in self._state.keys_by_client.get(client, []) if key.state not in LIVE_STATES)
        return any(self._state.evidence.refused(key.id, since_s) for key in ended)

    def fields(self, width: int) -> list[Field]:
        """Return the columns; name and note share what the others leave."""
        fixed = [
            Field("keys", 11),
            Field("req/d", 5, right=True),
            Field("tok/d", 5, right=True),
            Field("US$ this month", _BAR_CELLS + 1 + _MONEY_CELLS),
            Field("used", 4, right=True),
        ]
        left = max(12, width - 3 - sum(field.width + 1 for field in fixed))
        name = min(24, max(12, left * 2 // 5))
        return [Field("client", name), *fixed, Field(" note", max(0, left - name))]

    def sort_values(self) -> Mapping[str, Value[ClientInfo]]:
        """Return what a client is sorted by."""
        known = self._state.clients_known
        return {
            "req/d": lambda client: client.today.requests if known else None,
            "tok/d": lambda client: client.today.tokens if known else None,
            "US$ this month": lambda client: client.month.cost_usd if known else None,
            "used": self._last_use,
            "client": lambda client: client.name,
            "keys": lambda client: self._state_of_keys(client)[0],
        }

    def cells(self, item: ClientInfo) -> dict[str, tuple[str, Role]]:
        """Return one client."""
        client, known = item, self._state.clients_known
        gone = client.removed_at is not None
        text = Role.DIM if gone else Role.TEXT
        near = nearest(client)
        last_s = self._last_use(client)
        return {
            "client": (client.name, Role.DIM if gone else Role.STRONG),
            "keys": self._state_of_keys(client),
            "req/d": (count(client.today.requests) if known else "—", text),
            "tok/d": (count(client.today.tokens) if known else "—", text),
            "US$ this month": self._money(client),
            "used": ("—" if last_s is None else age(self._now_s() - last_s), text),
            " note": (f" {client.note}", text)
            if near is None
            else (f" {near.share:.0%} of {near.short}", role_of(near)),
        }

    def _last_use(self, client: ClientInfo) -> float | None:
        """Return when any key of a client was last accepted."""
        keys = self._state.keys_by_client.get(client.name, [])
        uses = [self._state.evidence.last_use(key) for key in keys]
        found = [use[0] for use in uses if use is not None]
        if client.last_used_at is not None:
            found.append(epoch_s(client.last_used_at))
        return max(found, default=None)

    def _money(self, client: ClientInfo) -> tuple[str, Role]:
        if not self._state.clients_known:
            return f"{'':<{_BAR_CELLS}} —", Role.DIM
        meter = month_meter(client)
        if meter is None:
            return f"{'':<{_BAR_CELLS}} {money(client.month.cost_usd)}", Role.TEXT
        return f"{bar(meter.share, _BAR_CELLS)} {meter.amounts}", role_of(meter)

    def _state_of_keys(self, client: ClientInfo) -> tuple[str, Role]:
        """Return in a word how things stand with the keys, the most urgent first."""
        now_s = self._now_s()
        keys = self._state.live_keys(client.name)
        retiring = [key.expires_at for key in keys if key.state is KeyState.RETIRING and key.expires_at]
        left_s = epoch_s(client.expires_at) - now_s if client.expires_at else _SOON_S
        dead_used = self._is_dead_key_used(client.name)
        if client.removed_at is not None:
            found = "removed", Role.BAD if dead_used else Role.DIM
        elif left_s <= 0:
            found = "expired", Role.BAD
        elif retiring:
            found = f"old {countdown(epoch_s(min(retiring)) - now_s)}", Role.WARN
        elif dead_used:
            found = "dead in use", Role.BAD
        elif not keys:
            found = "no key", Role.BAD
        elif left_s < _SOON_S:
            found = f"ends {countdown(left_s)}", Role.WARN
        else:
            found = "active", Role.GOOD
        return found

    def empty_text(self) -> tuple[str, ...]:
        """Say that nothing is known or passes, or that there is no client."""
        if self.all_items:
            return FILTERED_OUT
        if self._state.problem:
            return (f"{self._state.state_word}: the clients are not known.",)
        return ("There is no client.", "a adds one.")


class ClientsPane(FilteredItems):
    """The clients; beside or below them the chosen one. On a narrow screen Enter opens it alone."""

    DEFAULT_CSS = """
    ClientsPane > Horizontal { height: 1fr; }
    ClientsPane KeyView { display: none; }
    ClientsPane.-key KeyView { display: block; }
    ClientsPane.-key > Horizontal, ClientsPane.-key FilterLine { display: none; }
    ClientsPane #left { width: 3fr; }
    ClientsPane KeyList { height: 3; }
    ClientsPane #right { width: 2fr; background: $surface; }
    ClientsPane #plots { height: 30%; min-height: 10; }
    ClientsPane.-narrow > Horizontal { layout: vertical; }
    ClientsPane.-narrow #left, ClientsPane.-narrow #right { width: 1fr; height: 1fr; }
    ClientsPane.-narrow KeyList { display: none; }
    ClientsPane.-narrow #plots { display: none; height: 7; min-height: 7; }
    ClientsPane.-narrow.-opened ClientList, ClientsPane.-narrow.-opened FilterLine { display: none; }
    ClientsPane.-narrow.-opened #left { height: auto; }
    ClientsPane.-narrow.-opened KeyList, ClientsPane.-narrow.-opened #plots { display: block; }
    """

    KIND = CLIENTS
    CHANGES: ClassVar[frozenset[str]] = frozenset(
        {"rotate", "add", "edit", "extend", "undo", "revoke", "remove", "note"}
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        FILTER,
        NAMED_FILTERS,
        FILTER_FIELDS,
        Binding("enter", "open", "Open the client", key_display="Enter"),
        Binding("r", "rotate", "Rotate the key"),
        Binding("a", "add", "Add a client"),
        Binding("e", "edit", "Edit the bounds of this client"),
        Binding("f", "requests", "Show the requests of this client or key"),
        Binding("plus", "extend", "Extend the grace", key_display="+"),
        Binding("u", "undo", "Undo the rotation"),
        Binding("exclamation_mark", "revoke", "Revoke a key now", key_display="!"),
        Binding("d", "remove", "Remove this client"),
        Binding("n", "note", "Add a note about this client to the audit"),
        Binding("h", "ended", "Show or hide ended keys and removed clients"),
        Binding("y", "copy_id", "Copy the key's id"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context, id="clients")
        self._actions = RingActions(self.app, context)
        self._usage_asked: tuple[str, float] = ("", 0.0)
        self._usage_problem = ""
        self._opened: KeyInfo | None = None
        """The key that is open, as it was when it was opened."""
        self._users_asked = UsersAsked()

    def compose(self) -> ComposeResult:
        """Show clients and keys, and what is known of the chosen client."""
        state, now_s = self.state, self.context.now_s
        yield self.filter_line()
        with Horizontal():
            with Vertical(id="left"):
                yield ClientList(state, now_s)
                yield KeyList(state, now_s)
                with Horizontal(id="plots"):
                    yield Plot(id="tokens")
                    yield Plot(id="costs")
            with VerticalScroll(id="right", can_focus=True):
                yield ClientSummary(state, now_s)
        yield KeyView(state, now_s)

    def filtered(self) -> Filtered:
        """Return how the list is filtered, behind what the titles mean."""
        now = super().filtered()
        return replace(now, count=f"/d today   {now.count}")

    @property
    def rows(self) -> ClientList:
        """The clients."""
        return self.query_one(ClientList)

    @property
    def keys(self) -> KeyList:
        """The keys of the chosen client."""
        return self.query_one(KeyList)

    @property
    def chosen_client(self) -> ClientInfo | None:
        """The client that is meant: that of the open key, else the one under the cursor."""
        if self._opened is not None:
            return self.state.clients.get(self._opened.client)
        return self.rows.chosen

    @property
    def chosen_key(self) -> KeyInfo | None:
        """The key that is meant: the open one, the one under the cursor, else the client's active one."""
        if self._opened is not None:
            opened = self._opened
            return next((key for key in self.state.ring.keys if key.id == opened.id), opened)
        if self.keys.has_focus:
            return self.keys.chosen
        client = self.rows.chosen
        return next(iter(self.state.live_keys(client.name)), None) if client is not None else None

    def on_mount(self) -> None:
        """Lay out, and put the cursor on a rotation that is under way."""
        self.set_class(self.app.size.width < SIDE_BY_SIDE, "-narrow")
        self.rows.refresh_data()
        for key in self.state.retiring()[:1]:
            self.rows.go_to(self.rows.index_of(key.client) or 0)

    def on_resize(self) -> None:
        """Lay out for another width."""
        self.set_class(self.size.width < SIDE_BY_SIDE, "-narrow")

    def refresh_data(self) -> None:
        """Show new numbers."""
        self.context.feed.clients_in_sight = True
        self.rows.refresh_data()
        self.line.redraw()
        self._show_chosen()

    def refresh_moving(self) -> None:
        """Show other ages and countdowns of what is shown."""
        self.context.feed.clients_in_sight = True
        if self._opened is not None:
            if (key := self.chosen_key) is not None:
                self._show_key(key)
            return
        self.rows.redraw()
        self.keys.redraw()
        self.query_one(ClientSummary).show(self.rows.chosen)

    def focus_default(self) -> None:
        """Focus the clients, or the keys of the one that is open, or the users of the key that is open."""
        if self._opened is not None:
            self.focus_now(self.query_one(KeyView).users)
        else:
            self.focus_now(self.keys if self._is_opened else self.rows)

    @property
    def _is_opened(self) -> bool:
        return self.has_class("-opened")

    def _show_chosen(self) -> None:
        client = self.rows.chosen
        self.keys.show_client("" if client is None else client.name)
        room = self.size.height - _BELOW_KEYS if self.has_class("-narrow") else _MAX_KEYS
        self.keys.styles.height = max(2, min(_MAX_KEYS, room, len(self.keys.items))) + 1
        self.query_one(ClientSummary).show(client)
        if client is not None:
            self._show_usage(client.name)
        key = self.chosen_key
        if self._opened is not None and key is not None:
            self._show_key(key)

    def _show_key(self, key: KeyInfo) -> None:
        """Show the key that is open, and ask for its users if there may be news."""
        use, asked = self.state.key_use, self._users_asked
        known = use if use is not None and use.key_id == key.id else None
        problem = asked.problem or ("" if known is not None else "Asking who used it …")
        self.query_one(KeyView).show(key, known, problem, self._first_day())
        if asked.is_due(key, self.state.log_seq):
            self.start_once("key-users", partial(self._ask_users, key))

    async def _ask_users(self, key: KeyInfo) -> None:
        asked = self._users_asked
        asked.begin(key, self.state.log_seq)
        try:
            await self.context.feed.refresh_key_use(key.id, self._first_day())
            asked.problem = ""
        except AdminClientError as error:
            asked.problem = f"Who used it is not known: {error}"
        asked.end()
        self.refresh_data()

    def _show_usage(self, client: str) -> None:
        known, now_s = self.state.usage_by_day, self.context.now_s()
        times = (self._first_day(), "today")
        tokens, costs = self.query_one("#tokens", Plot), self.query_one("#costs", Plot)
        if known is not None and known[0] == client:
            counts, usd = by_day(known[1], _DAYS)
            tokens.show("Tokens", [Line("yesterday", counts, Role.STREAM)], times, count)
            costs.show("US$", [Line("yesterday", usd, Role.WAIT)], times, money)
        else:
            reason = self._usage_problem or "asking ..."
            tokens.show(f"Tokens: {reason}", [], times, count)
            costs.show("US$", [], times, money)
        asked, at_s = self._usage_asked
        live = self.state.connection is Connection.LIVE
        if live and self._shows_plots and (asked != client or now_s - at_s >= _USAGE_EVERY_S):
            self._usage_asked = (client, now_s)
            asking: Work = partial(self._ask_usage, client)
            self.run_worker(asking, group="usage", exclusive=True)

    @property
    def _shows_plots(self) -> bool:
        return self._opened is None and (self._is_opened or not self.has_class("-narrow"))

    def _first_day(self) -> str:
        return last_days(_DAYS, date.fromtimestamp(self.context.now_s()))[0]  # noqa: DTZ012 - days are local

    async def _ask_usage(self, client: str) -> None:
        await asyncio.sleep(_SETTLED_S)
        try:
            await self.context.feed.refresh_usage(client, self._first_day())
            self._usage_problem = ""
        except AdminClientError as error:
            self._usage_problem = str(error)
        self.refresh_data()

    @on(LineList.Moved)
    def _moved(self) -> None:
        self._show_chosen()
        self.post_message(self.HintsChanged())

    @on(LineList.Chosen, "#clients-list")
    def action_open(self) -> None:
        """Open the client: its keys, and all that is known of it."""
        if self.rows.chosen is not None:
            self.add_class("-opened")
            self._show_chosen()
            self.focus_default()
            self.post_message(self.HintsChanged())

    @property
    def depth(self) -> int:
        """How often Escape would close something."""
        return super().depth + self._is_opened + (self._opened is not None)

    def way_back(self) -> Callable[[], None]:
        """Return a function that shows this client and this key again."""
        restore_list = super().way_back()
        client, key, opened, opened_key = (
            *(self.rows.cursor_key, self.keys.cursor_key),
            *(self._is_opened, self._opened),
        )

        def restore() -> None:
            restore_list()
            self._choose(client, key)
            self.set_class(opened, "-opened")
            self._open_key(opened_key)

        return restore

    def show_owner(self, client: str | None, key_id: str | None, key: KeyInfo | None = None) -> None:
        """Open a client, and in it one of its keys if that is known."""
        self._choose(client, key_id)
        known = next((known for known in self.state.ring.keys if known.id == key_id), key)
        if self.rows.cursor_key == client:
            self.add_class("-opened")
        elif known is None:
            self.app.notify(f"There is no client {client} any more.")
        self._open_key(known)

    @on(LineList.Chosen, "#ring")
    def action_open_key(self) -> None:
        """Open the key: who used it, and what became of it."""
        self._open_key(self.keys.chosen)

    def _open_key(self, key: KeyInfo | None) -> None:
        """Show one key alone; None: show the clients."""
        self._opened = key
        self.set_class(key is not None, "-key")
        self._show_chosen()
        self.focus_default()
        self.post_message(self.HintsChanged())

    def _choose(self, client: Key | None, key_id: Key | None) -> None:
        """Put the cursors on a client and on one of its keys."""
        if client in self.state.clients and not any(item.name == client for item in self.rows.items):
            self.rows.show_ended = self.keys.show_ended = True
            self.apply_filter("")
        self.refresh_data()
        at = None if client is None else self.rows.index_of(client)
        if at is not None:
            self.rows.go_to(at)
            self._show_chosen()
            self.keys.go_to((key_id is not None and self.keys.index_of(key_id)) or 0)

    def step_back(self) -> bool:
        """Close the key that is open, then the client; then let go of the filter."""
        if self._opened is not None:
            self._open_key(None)
            return True
        if not self._is_opened or self.line.editing:
            return super().step_back()
        self.remove_class("-opened")
        self.focus_default()
        self.post_message(self.HintsChanged())
        return True

    def on_descendant_focus(self) -> None:
        """Name the keys of what has the focus."""
        self.post_message(self.HintsChanged())

    # What can be done.

    def hints(self) -> list[Hint]:
        """Return the keys of this screen, with the reason for each that can't be used."""
        client, key = self.chosen_client, self.chosen_key
        refusal = self.context.commands.refusal()
        nobody = (
            "no client is chosen" if self._opened is None else f"there is no client {self._opened.client}"
        )
        none = refusal or ("" if client is not None else nobody)
        if client is not None and client.removed_at is not None:
            none = refusal or "this client was removed"
        ended = key is not None and key.state is not KeyState.ACTIVE
        new_key = not self._has_active_key(client)
        active = none or ("only an active key is rotated" if ended and not new_key else "")
        grace = none or ("" if self._retiring() else "no rotation of this client is in its grace")
        is_default = client is not None and client.name == _DEFAULT_CLIENT
        gone = none or (f"the client {_DEFAULT_CLIENT} always exists" if is_default else "")
        add, edit = Hint("a", "add", "add", refusal), Hint("e", "edit", "edit", none)
        in_grace = [Hint("+", "extend", "extend", grace), Hint("u", "undo", "undo", grace)]
        unknown = "" if client is not None else nobody
        requests = Hint("f", "requests", "requests", "" if key is not None else unknown)
        rotate = Hint("r", "new key" if new_key else "rotate", "rotate", active)
        revoke = Hint("!", "revoke", "revoke", refusal)
        early = [] if grace else in_grace
        note = Hint("n", "note", "note", none)
        late = [Hint("d", "remove", "remove", gone), note, Hint("h", "ended", "ended"), SORT_HINT]
        late += in_grace if grace else []
        if self._opened is not None:
            enter = Hint("Enter", "its requests", "user_requests")
            requests = replace(requests, label="all requests")
            return [enter, requests, revoke, *early, rotate, *HELP_HINTS, BACK_HINT, edit, add, *late]
        if self._is_opened:
            enter = Hint("Enter", "open key", "open_key")
            return [enter, rotate, revoke, *early, requests, edit, *HELP_HINTS, BACK_HINT, add, *late]
        enter = Hint("Enter", "open", "open", unknown)
        return [enter, rotate, revoke, *early, add, edit, *HELP_HINTS, requests, BACK_HINT, *late]

    def _has_active_key(self, client: ClientInfo | None) -> bool:
        return client is not None and self.state.active_key(client.name) is not None

    def _retiring(self) -> KeyInfo | None:
        """Return the retiring key that is meant: the chosen one, or the client's last one."""
        chosen, client = self.chosen_key, self.chosen_client
        if chosen is not None and chosen.state is KeyState.RETIRING:
            return chosen
        keys = [key for key in self.state.retiring() if client is not None and key.client == client.name]
        return max(keys, key=lambda key: key.created_at, default=None)

    def _start(self, action: str, change: Work | None) -> None:
        """Start a change, or say why it can't be made now."""
        reason = next(hint.reason for hint in self.hints() if hint.action == action)
        if reason:
            self.app.notify(f"Not now: {reason}.")
        elif change is not None:
            self.app.run_worker(change, group=f"{ASKS}-key")

    def action_rotate(self) -> None:
        """Rotate the key; make one for a client that has no active one."""
        key, client = self.chosen_key, self.chosen_client
        change: Work | None = None
        if client is not None and not self._has_active_key(client):
            change = partial(self._actions.make_key, client.name)
        elif key is not None:
            change = partial(self._actions.rotate, key)
        self._start("rotate", change)

    def action_add(self) -> None:
        """Add a client."""
        self._start("add", self._actions.add_client)

    def action_edit(self) -> None:
        """Edit the bounds of the chosen client."""
        client = self.chosen_client
        self._start("edit", None if client is None else partial(self._actions.edit_client, client))

    def action_remove(self) -> None:
        """Remove the chosen client."""
        client = self.chosen_client
        self._start("remove", None if client is None else partial(self._actions.remove_client, client))

    def action_extend(self) -> None:
        """Give the old key more time."""
        key = self._retiring()
        self._start("extend", None if key is None else partial(self._actions.extend, key))

    def action_undo(self) -> None:
        """Undo the rotation."""
        key = self._retiring()
        self._start("undo", None if key is None else partial(self._actions.undo, key))

    def action_revoke(self) -> None:
        """End a key now."""
        self._start("revoke", partial(self._actions.revoke, self.chosen_key))

    def action_requests(self) -> None:
        """Show the requests of the chosen client, or of the key that is chosen in it."""
        client, key = self.chosen_client, self.chosen_key
        if key is not None and (self._opened is not None or self.keys.has_focus):
            self.post_message(self.FilterRequests(f'key_id="{key.id}"'))
        elif client is not None:
            self.post_message(self.FilterRequests(f'client="{client.name}"'))
        else:
            self.app.notify(self.rows.empty_text()[0])

    @on(LineList.Chosen, "#key-users")
    def action_user_requests(self) -> None:
        """Show the requests with this key from the address under the cursor."""
        key, user = self.chosen_key, self.query_one(KeyView).users.chosen
        if key is not None and user is not None:
            self.post_message(self.FilterRequests(f'key_id="{key.id}" ip="{user.ip}"'))

    def action_ended(self) -> None:
        """Show or hide what has ended."""
        shown = self.rows.show_ended = self.keys.show_ended = not self.rows.show_ended
        self.app.notify(f"Ended keys and removed clients are {'shown' if shown else 'hidden'}.")
        self.refresh_data()

    def action_note(self) -> None:
        """Write a note about the chosen client, and about its key if that is open or under the cursor."""
        client, key = self.chosen_client, self.chosen_key
        if self._opened is None and not self.keys.has_focus:
            key = None
        key_ids = () if key is None else (key.id,)
        self._start("note", None if client is None else partial(self._note, client.name, key_ids))

    async def _note(self, client: str, key_ids: Sequence[str]) -> None:
        if await write_note(self.app, self.context.commands, client, key_ids) is not None:
            self.app.notify("Noted; Audit has it.")

    def action_copy_id(self) -> None:
        """Copy the key's id."""
        key = self.chosen_key
        if key is not None:
            self.context.exporter.copy(key.id, "The key's id")
        else:
            self.app.notify((self.keys if self.rows.chosen is not None else self.rows).empty_text()[0])
