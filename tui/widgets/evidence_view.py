"""What the log says about a client's keys: who took the new one, who still has the old one."""

from __future__ import annotations

from collections.abc import Callable

from rich.style import Style
from rich.text import Text
from textual.widgets import Static

from relayd.admin.schema import KeyInfo, KeyState, epoch_s
from tui.model.app_state import AppState
from tui.model.evidence import Use
from tui.model.units import age, countdown, duration, moment, plural
from tui.theme import Role, style

_MAX_USES = 12
_ENDED = {KeyState.EXPIRED: "expired", KeyState.REVOKED: "revoked"}


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
        """Write it down; unchanged text is not drawn again."""
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
        text.append(f"{key.client}", self._look(Role.TITLE))
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
            text.append("  Nobody has used it since it was replaced.\n", self._look(Role.GOOD))
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
