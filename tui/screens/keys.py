"""The Keys screen: all keys, their users, and every change of a key."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Static

from relayd.admin.schema import KeyInfo, KeyState, epoch_s
from tui.context import Context
from tui.key_actions import KeyActions
from tui.model.app_state import AppState
from tui.model.evidence import RECENT_S, Use
from tui.model.units import age, countdown, duration, moment, plural
from tui.screens.pane import BACK_HINT, HELP_HINTS, Pane
from tui.theme import Role, style
from tui.type_ahead import ASKS, Work
from tui.widgets.bars import Hint
from tui.widgets.line_list import Field, ItemList, LineList

SIDE_BY_SIDE = 130
_MAX_USES = 12
_ENDED = {KeyState.EXPIRED: "expired", KeyState.REVOKED: "revoked"}
_ROLES = {
    KeyState.ACTIVE: Role.GOOD,
    KeyState.RETIRING: Role.WARN,
    KeyState.EXPIRED: Role.DIM,
    KeyState.REVOKED: Role.DIM,
}
_WITH_PRINT = 96
_LIVE = (KeyState.ACTIVE, KeyState.RETIRING)


class KeyList(ItemList[KeyInfo]):
    """Live keys by client, the newest first; below them ended ones that are still sent, all on demand."""

    def __init__(self, state: AppState, now_s: Callable[[], float]) -> None:
        super().__init__(lambda key: key.id, id="ring")
        self._state = state
        self._now_s = now_s
        self.show_ended = False

    def refresh_data(self) -> None:
        """Take over the ring."""
        keys = sorted(self._state.ring.keys, key=lambda key: key.created_at, reverse=True)
        live = sorted((key for key in keys if key.state in _LIVE), key=lambda key: key.client)
        ended = [key for key in keys if key.state not in _LIVE]
        since_s, evidence = self._now_s() - RECENT_S, self._state.evidence
        self.show(live + [key for key in ended if self.show_ended or evidence.refused(key.id, since_s)])

    def fields(self, width: int) -> list[Field]:
        """Return the columns, the fingerprint's if there is room."""
        fingerprint = [Field("print", 8)] if width >= _WITH_PRINT else []
        return [
            Field("client", max(12, min(24, width - 69 - 9 * len(fingerprint)))),
            Field("key id", 8),
            *fingerprint,
            Field("state", 9),
            Field("age", 4, right=True),
            Field("users", 5, right=True),
            Field("ends in", 7, right=True),
            Field(" last used", width),
        ]

    def cells(self, item: KeyInfo) -> dict[str, tuple[str, Role]]:
        """Return one key."""
        key, now_s, evidence = item, self._now_s(), self._state.evidence
        live = key.state in _LIVE
        text = Role.TEXT if live else Role.DIM
        users = evidence.stragglers(key.id) if key.replaced_by else evidence.users(key.id, now_s)
        used = sum(1 for use in users if use.requests)
        if not live:
            used = len(evidence.refused(key.id, now_s - RECENT_S))
        retiring = key.state is KeyState.RETIRING and key.expires_at
        last = "never"
        if key.last_used_at:
            last = f"{age(now_s - epoch_s(key.last_used_at)):>3} ago  {key.last_used_ip or ''}"
        return {
            "client": (key.client, Role.STRONG if live else text),
            "key id": (key.id, Role.DIM),
            "print": (key.fingerprint, Role.DIM),
            "state": (key.state.value, _ROLES[key.state]),
            "age": (age(now_s - epoch_s(key.created_at)), text),
            "users": (str(used or "—"), Role.WARN if used and (retiring or not live) else text),
            "ends in": (
                countdown(epoch_s(key.expires_at or "") - now_s) if retiring else "—",
                Role.WARN if retiring else text,
            ),
            " last used": (f" {last}", text),
        }

    def empty_text(self) -> tuple[str, ...]:
        """Say that there is no ring, or an empty one."""
        if self._state.problem:
            return (f"{self._state.state_word}: the keys are not known.",)
        return ("There is no key.", "a adds a client.")


class EvidenceView(Static):
    """For the client of one key."""

    DEFAULT_CSS = "EvidenceView { height: auto; min-height: 100%; padding: 0 1; background: $surface; }"

    def __init__(self, state: AppState, now_s: Callable[[], float]) -> None:
        super().__init__(markup=False, id="evidence")
        self._state = state
        self._now_s = now_s
        self._shown = ""

    def _look(self, role: Role) -> Style:
        return style(self.app, role)

    def show(self, key: KeyInfo | None) -> None:
        """Show the keys of its client; unchanged text is not drawn again."""
        text = Text() if key is None else self._text(key)
        stamp = f"{self.app.theme}{text.plain}"
        if stamp != self._shown:
            self._shown = stamp
            self.update(text)

    def _text(self, key: KeyInfo) -> Text:
        text = Text()
        keys = sorted(
            (k for k in self._state.ring.keys if k.client == key.client),
            key=lambda k: k.created_at,
            reverse=True,
        )
        newest = next((k for k in keys if k.state is KeyState.ACTIVE), keys[0])
        text.append(f"{key.client}", self._look(Role.STRONG))
        text.append(f"  {plural(len(keys), 'key')} so far\n", self._look(Role.DIM))
        stragglers = self._state.evidence.stragglers
        old = [
            k
            for k in keys
            if k.state is KeyState.RETIRING or (k.state is not KeyState.ACTIVE and stragglers(k.id))
        ]
        if newest not in old:
            self._new_key(text, newest, rotated=any(k.replaced_by == newest.id for k in keys))
        for one in old:
            self._old_key(text, one)
        if not old:
            self._users(text, newest)
        return text

    def _new_key(self, text: Text, key: KeyInfo, *, rotated: bool) -> None:
        made_s = epoch_s(key.created_at)
        word = "New key" if rotated else "Key"
        text.append(f"\n{word} {key.id}", self._look(Role.STRONG))
        text.append(f"  {key.state.value}, made {age(self._now_s() - made_s)} ago\n", self._look(Role.DIM))
        if key.first_used_at is None:
            text.append("  Not used yet.\n", self._look(Role.WARN if rotated else Role.DIM))
            return
        first_s = epoch_s(key.first_used_at)
        text.append(f"  First used at {moment(first_s, self._now_s())}", self._look(Role.GOOD))
        text.append(
            f", {duration((first_s - made_s) * 1000)} after it was made, from {key.first_used_ip or '—'}.\n",
            self._look(Role.TEXT),
        )

    def _old_key(self, text: Text, key: KeyInfo) -> None:
        now_s = self._now_s()
        uses = self._state.evidence.stragglers(key.id)
        still = [use for use in uses if use.requests]
        word = "Old key" if key.replaced_by else "Dead key"
        text.append(f"\n{word} {key.id}", self._look(Role.STRONG))
        if key.state is KeyState.RETIRING and key.expires_at:
            text.append(f"  ends in {countdown(epoch_s(key.expires_at) - now_s)}\n", self._look(Role.WARN))
        else:
            ended_s = epoch_s(key.revoked_at or key.expires_at or key.created_at)
            text.append(
                f"  {_ENDED.get(key.state, key.state.value)} at {moment(ended_s, now_s)}\n",
                self._look(Role.DIM),
            )
        if not still and key.state is KeyState.RETIRING:
            text.append("  Not used since it was replaced.\n", self._look(Role.GOOD))
        for use in still[:_MAX_USES]:
            self._use(text, use, "since the rotation")
        for use in [use for use in uses if use.refused][:_MAX_USES]:
            text.append("  refused ", self._look(Role.BAD))
            text.append(
                f"{use.client}  {use.ip}  {plural(use.refused, 'time')},"
                f" last {age(now_s - use.refused_last_s)} ago\n",
                self._look(Role.TEXT),
            )

    def _users(self, text: Text, key: KeyInfo) -> None:
        uses = [use for use in self._state.evidence.users(key.id, self._now_s()) if use.requests]
        seen_s = self._state.evidence.seen_from_s
        text.append("\nUsed by", self._look(Role.STRONG))
        text.append(
            f"  {plural(len(uses), 'address', 'addresses')} in 24 h, as far as loaded"
            f" (from {moment(seen_s, self._now_s()) if seen_s else '—'})\n",
            self._look(Role.DIM),
        )
        for use in uses[:_MAX_USES]:
            self._use(text, use, "seen")

    def _use(self, text: Text, use: Use, since: str) -> None:
        last_s = self._now_s() - use.last_s
        text.append("  still used " if since != "seen" else "  ", self._look(Role.WARN))
        text.append(f"{use.client}  {use.ip}", self._look(Role.TEXT))
        text.append(
            f"  last {age(last_s)} ago, {plural(use.requests, 'request')} {since}\n", self._look(Role.DIM)
        )


class KeysPane(Pane):
    """The list, and what the log says about the client of the chosen key."""

    DEFAULT_CSS = """
    KeysPane Horizontal { height: 1fr; }
    KeysPane KeyList { width: 3fr; }
    KeysPane VerticalScroll { width: 2fr; background: $surface; }
    KeysPane.-narrow Horizontal { layout: vertical; }
    KeysPane.-narrow KeyList { width: 1fr; height: 1fr; }
    KeysPane.-narrow VerticalScroll { width: 1fr; height: 1fr; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "rotate", "Rotate this key"),
        Binding("a", "add", "Add a client"),
        Binding("plus", "extend", "Extend the grace", key_display="+"),
        Binding("u", "undo", "Undo the rotation"),
        Binding("exclamation_mark", "revoke", "Revoke a key now", key_display="!"),
        Binding("h", "ended", "Show or hide ended keys"),
        Binding("y", "copy_id", "Copy the key's id"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context, id="keys")
        self._actions = KeyActions(self.app, context)

    def compose(self) -> ComposeResult:
        """Show list and evidence."""
        with Horizontal():
            yield KeyList(self.state, self.context.now_s)
            with VerticalScroll(can_focus=False):
                yield EvidenceView(self.state, self.context.now_s)

    @property
    def rows(self) -> KeyList:
        """The list."""
        return self.query_one(KeyList)

    def on_mount(self) -> None:
        """Lay out, and put the cursor on the new key of a rotation that is under way."""
        self.set_class(self.app.size.width < SIDE_BY_SIDE, "-narrow")
        self.rows.refresh_data()
        for key in self.state.retiring()[:1]:
            self.rows.go_to(self.rows.index_of(key.replaced_by or key.id) or 0)

    def on_resize(self) -> None:
        """Lay out for another width."""
        self.set_class(self.size.width < SIDE_BY_SIDE, "-narrow")

    def refresh_data(self) -> None:
        """Show new numbers."""
        self.rows.refresh_data()
        self._show_evidence()

    def focus_default(self) -> None:
        """Focus the list."""
        self.focus_now(self.rows)

    def _show_evidence(self) -> None:
        self.query_one(EvidenceView).show(self.rows.chosen)

    @on(LineList.Moved)
    def _moved(self) -> None:
        self._show_evidence()
        self.post_message(self.HintsChanged())

    def hints(self) -> list[Hint]:
        """Return the keys of this screen, with the reason for each that can't be used."""
        key = self.rows.chosen
        refusal = self.context.commands.refusal()
        none = refusal or ("" if key else "no key is chosen")
        active = none or ("" if key and key.state is KeyState.ACTIVE else "only an active key is rotated")
        grace = none or ("" if self._retiring() else "no rotation of this client is in its grace")
        return [
            Hint("r", "rotate", "rotate", active),
            Hint("a", "add", "add", refusal),
            Hint("+", "extend", "extend", grace),
            Hint("u", "undo", "undo", grace),
            Hint("!", "revoke", "revoke", refusal),
            Hint("h", "ended", "ended"),
            *HELP_HINTS,
            BACK_HINT,
        ]

    def _retiring(self) -> KeyInfo | None:
        """Return the retiring key that is meant: the chosen one, or that of the chosen client."""
        chosen = self.rows.chosen
        if chosen is None or chosen.state is KeyState.RETIRING:
            return chosen
        return next((key for key in self.state.retiring() if key.client == chosen.client), None)

    def _start(self, action: str, change: Work | None) -> None:
        """Start a change, or say why it can't be made now."""
        reason = next(hint.reason for hint in self.hints() if hint.action == action)
        if reason:
            self.app.notify(f"Not now: {reason}.")
        elif change is not None:
            self.app.run_worker(change, exclusive=True, group=f"{ASKS}-key")

    def action_rotate(self) -> None:
        """Rotate the chosen key."""
        key = self.rows.chosen
        self._start("rotate", None if key is None else partial(self._actions.rotate, key))

    def action_add(self) -> None:
        """Add a client."""
        self._start("add", self._actions.add)

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
        self._start("revoke", partial(self._actions.revoke, self.rows.chosen))

    def action_ended(self) -> None:
        """Show or hide keys that have ended."""
        self.rows.show_ended = not self.rows.show_ended
        self.rows.refresh_data()

    def action_copy_id(self) -> None:
        """Copy the key's id."""
        key = self.rows.chosen
        if key is not None:
            self.context.exporter.copy(key.id, "The key's id")
