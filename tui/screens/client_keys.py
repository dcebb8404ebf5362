"""One client: its keys as a list, and as text the evidence of their use, its bounds and what it used."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.style import Style
from rich.text import Text

from relayd.admin.schema import LIVE_STATES, ClientInfo, KeyInfo, KeyState, PeriodUse, epoch_s
from relayd.printable import plural
from tui.model.app_state import AppState
from tui.model.clients import NEAR, Meter, bar, has_expired, meters
from tui.model.evidence import RECENT_S, Use
from tui.model.sorting import Value
from tui.model.units import age, count, countdown, duration, moment, money
from tui.theme import Role, style
from tui.widgets.line_list import Field, ItemList
from tui.widgets.words import Words

_MAX_USES = 5
"""So many of the users of a key are named; the key's own view has all of them."""
_ENDED = {KeyState.EXPIRED: "expired", KeyState.REVOKED: "revoked"}
_ROLES = {
    KeyState.ACTIVE: Role.GOOD,
    KeyState.RETIRING: Role.WARN,
    KeyState.EXPIRED: Role.DIM,
    KeyState.REVOKED: Role.DIM,
}
_BAR_CELLS = 12
_LISTS = (("models", "models"), ("endpoints", "paths"), ("origins", "origins"))


def role_of(meter: Meter) -> Role:
    """Return the colour of a bound: a warning from `NEAR` on, bad once it is used up."""
    if meter.share >= 1:
        return Role.BAD
    return Role.WARN if meter.share >= NEAR else Role.GOOD


class KeyList(ItemList[KeyInfo]):
    """The keys of one client: live ones, ended ones that are still sent, and on demand all."""

    def __init__(self, state: AppState, now_s: Callable[[], float]) -> None:
        super().__init__(lambda key: key.id, id="ring", cursor_always=False)
        self._state = state
        self._now_s = now_s
        self._client = ""
        self.show_ended = False

    def show_client(self, client: str) -> None:
        """Take over the keys of this client, the newest first."""
        self._client = client
        keys = sorted(
            self._state.keys_by_client.get(client, []),
            key=lambda key: (key.state in LIVE_STATES, key.created_at),
            reverse=True,
        )
        since_s, evidence = self._now_s() - RECENT_S, self._state.evidence
        self.show(
            key
            for key in keys
            if key.state in LIVE_STATES or self.show_ended or evidence.refused(key.id, since_s)
        )

    def fields(self, width: int) -> list[Field]:
        """Return the columns."""
        return [
            Field("key id", 8),
            Field("fingerprint", 11),
            Field("state", 9),
            Field("age", 4, right=True),
            Field("users", 5, right=True),
            Field("ends in", 8, right=True),
            Field(" last used", max(0, width - 52)),
        ]

    def sort_values(self) -> Mapping[str, Value[KeyInfo]]:
        """Return what a key is sorted by."""
        return {
            " last used": self._last_used_s,
            "age": lambda key: -epoch_s(key.created_at),
            "ends in": lambda key: epoch_s(key.expires_at) if key.expires_at else None,
            "state": lambda key: key.state.value,
            "key id": lambda key: key.id,
        }

    def _last_used_s(self, key: KeyInfo) -> float | None:
        use = self._state.evidence.last_use(key)
        return None if use is None else use[0]

    def cells(self, item: KeyInfo) -> dict[str, tuple[str, Role]]:
        """Return one key."""
        key, now_s, evidence = item, self._now_s(), self._state.evidence
        live = key.state in LIVE_STATES
        text = Role.TEXT if live else Role.DIM
        users = evidence.stragglers(key.id) if key.replaced_by else evidence.users(key.id, now_s)
        used = sum(1 for use in users if use.requests)
        if not live:
            used = len(evidence.refused(key.id, now_s - RECENT_S))
        retiring = key.state is KeyState.RETIRING and key.expires_at
        last_use = evidence.last_use(key)
        last = "never"
        if last_use is not None:
            last = f"{age(now_s - last_use[0]):>3} ago  {last_use[1]}"
        return {
            "key id": (key.id, Role.STRONG if live else text),
            "fingerprint": (key.fingerprint, Role.DIM),
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
        """Say that there is no key."""
        return (f"{self._client} has no live key; r makes one." if self._client else "No client is chosen.",)


class ClientSummary(Words):
    """A client in words: who uses which of its keys, what it may use, and what it used."""

    DEFAULT_CSS = "ClientSummary { height: auto; min-height: 100%; padding: 0 1; background: $surface; }"

    def __init__(self, state: AppState, now_s: Callable[[], float]) -> None:
        super().__init__(id="summary")
        self._state = state
        self._now_s = now_s

    def _look(self, role: Role) -> Style:
        return style(self.app, role)

    def show(self, client: ClientInfo | None) -> None:
        """Show this client."""
        self.say("" if client is None else self._text(client))

    def _text(self, client: ClientInfo) -> Text:
        text = Text()
        keys = sorted(
            self._state.keys_by_client.get(client.name, []), key=lambda key: key.created_at, reverse=True
        )
        stragglers = self._state.evidence.stragglers
        old = [
            key
            for key in keys
            if key.state is KeyState.RETIRING or (key.state is not KeyState.ACTIVE and stragglers(key.id))
        ]
        self._head(text, client, len(keys))
        # A rotation under way, or a dead key in use, comes first.
        if old:
            self._keys(text, keys, old)
        if self._state.clients_known:
            self._use_and_bounds(text, client)
        if keys and not old:
            self._keys(text, keys, old)
        return text

    def _head(self, text: Text, client: ClientInfo, keys: int) -> None:
        now_s = self._now_s()
        text.append(client.name, self._look(Role.STRONG))
        text.append(f"  {plural(keys, 'key')} so far", self._look(Role.DIM))
        if client.removed_at is not None:
            text.append(f"  removed at {moment(epoch_s(client.removed_at), now_s)}", self._look(Role.BAD))
        elif has_expired(client, now_s):
            text.append("  expired: its keys are refused", self._look(Role.BAD))
        elif client.expires_at is not None:
            text.append(f"  ends at {moment(epoch_s(client.expires_at), now_s)}", self._look(Role.WARN))
        text.append(f"\n{client.note}\n" if client.note else "\n", self._look(Role.TEXT))

    # Evidence.

    def _keys(self, text: Text, keys: list[KeyInfo], old: list[KeyInfo]) -> None:
        newest = next((key for key in keys if key.state is KeyState.ACTIVE), keys[0])
        if newest not in old:
            self._new_key(text, newest, rotated=any(key.replaced_by == newest.id for key in keys))
        for one in old:
            self._old_key(text, one)
        if not old:
            self._users(text, newest)

    def _new_key(self, text: Text, key: KeyInfo, *, rotated: bool) -> None:
        made_s = epoch_s(key.created_at)
        word = "New key" if rotated else "Key"
        text.append(f"\n{word} {key.id}", self._look(Role.STRONG))
        text.append(f"  {key.state.value}, made at {moment(made_s, self._now_s())}\n", self._look(Role.DIM))
        if key.first_used_at is None:
            unused = "Not used yet" if key.state in LIVE_STATES else "It was never used"
            text.append(f"  {unused}.\n", self._look(Role.WARN if rotated else Role.DIM))
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
            text.append(f"  ends at {moment(epoch_s(key.expires_at), now_s)}\n", self._look(Role.WARN))
        else:
            ended_s = epoch_s(key.revoked_at or key.expires_at or key.created_at)
            text.append(
                f"  {_ENDED.get(key.state, key.state.value)} at {moment(ended_s, now_s)}\n",
                self._look(Role.DIM),
            )
        if not still and key.state is KeyState.RETIRING:
            text.append("  Not used since it was replaced.\n", self._look(Role.GOOD))
        for use in still[:_MAX_USES]:
            if key.state is KeyState.RETIRING:
                self._use(text, use, "still used ", "since the rotation")
            else:
                self._use(text, use, "was used ", "since the rotation, before it ended")
        refused = [use for use in uses if use.refused]
        self._more(text, len(still))
        for use in refused[:_MAX_USES]:
            text.append("  refused ", self._look(Role.BAD))
            text.append(
                f"{use.client}  {use.ip}  {plural(use.refused, 'time')},"
                f" last {age(now_s - use.refused_last_s)} ago\n",
                self._look(Role.TEXT),
            )

        self._more(text, len(refused))

    def _more(self, text: Text, users: int) -> None:
        if users > _MAX_USES:
            more = f"  … and {users - _MAX_USES:,} more: Enter on the key lists all of them.\n"
            text.append(more, self._look(Role.DIM))

    def _users(self, text: Text, key: KeyInfo) -> None:
        uses = [use for use in self._state.evidence.users(key.id, self._now_s()) if use.requests]
        seen_s = self._state.evidence.seen_from_s
        text.append("\nUsed by", self._look(Role.STRONG))
        text.append(
            f"  {plural(len(uses), 'address', 'addresses')} in 24 h"
            f"{f', as far as loaded (from {moment(seen_s, self._now_s())})' if seen_s else ''}\n",
            self._look(Role.DIM),
        )
        for use in uses[:_MAX_USES]:
            self._use(text, use, "", "seen")
        self._more(text, len(uses))

    def _use(self, text: Text, use: Use, how: str, since: str) -> None:
        last_s = self._now_s() - use.served_last_s
        text.append(f"  {how}", self._look(Role.WARN))
        text.append(f"{use.client}  {use.ip}", self._look(Role.TEXT))
        text.append(
            f"  last {age(last_s)} ago, {plural(use.requests, 'request')} {since}\n", self._look(Role.DIM)
        )

    # Use and bounds.

    def _use_and_bounds(self, text: Text, client: ClientInfo) -> None:
        text.append("\nUsed", self._look(Role.STRONG))
        streams = self._state.open_streams.streams.values()
        if any(stream.progress.client == client.name for stream in streams):
            text.append("  and what its open streams may still use", self._look(Role.DIM))
        text.append("\n")
        for name, use in (("today", client.today), ("this month", client.month)):
            text.append(f"  {name:<11}", self._look(Role.DIM))
            text.append(f"{_used(use)}\n", self._look(Role.TEXT))
        given = meters(client)
        lists = [(label, getattr(client, name)) for name, label in _LISTS if getattr(client, name)]
        text.append("\nBounds", self._look(Role.STRONG))
        if not given and not lists and client.max_output_tokens is None:
            text.append("  none; e sets them\n", self._look(Role.DIM))
            return
        text.append("\n")
        for meter in given:
            role = role_of(meter)
            text.append(f"  {meter.label:<18}", self._look(Role.DIM))
            text.append(bar(meter.share, _BAR_CELLS), self._look(role))
            text.append(f" {meter.amounts}", self._look(Role.TEXT))
            text.append(f"  {meter.share:.0%}\n", self._look(role))
        if client.max_output_tokens is not None:
            text.append(f"  {'tokens an answer':<18}", self._look(Role.DIM))
            text.append(f"at most {client.max_output_tokens:,}\n", self._look(Role.TEXT))
        for label, names in lists:
            text.append(f"  {label:<18}", self._look(Role.DIM))
            text.append(f"{' '.join(names)}\n", self._look(Role.TEXT))


def _used(use: PeriodUse) -> str:
    return f"{plural(use.requests, 'request')}, {count(use.tokens)} tokens, US$ {money(use.cost_usd)}"
