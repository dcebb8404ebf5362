"""The key ring as a list: never a key, only what tells keys apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from relayd.admin.schema import KeyInfo, KeyState, epoch_s
from tui.model.app_state import AppState
from tui.model.evidence import RECENT_S
from tui.model.units import age, countdown
from tui.theme import Role, style
from tui.widgets.cells import Piece, fit
from tui.widgets.line_list import Key, LineList

_ROLES = {
    KeyState.ACTIVE: Role.GOOD,
    KeyState.RETIRING: Role.WARN,
    KeyState.EXPIRED: Role.DIM,
    KeyState.REVOKED: Role.DIM,
}
_WITH_PRINT = 96
_LIVE = (KeyState.ACTIVE, KeyState.RETIRING)


class KeyList(LineList):
    """Live keys by client, the newest first; below them ended ones that are still sent, all on demand."""

    def __init__(self, state: AppState, now_s: Callable[[], float], *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.state = state
        self._now_s = now_s
        self.show_ended = False
        self._keys: list[KeyInfo] = []

    def rows_changed(self) -> None:
        """Take over the ring."""
        keys = sorted(self.state.ring.keys, key=lambda key: key.created_at, reverse=True)
        live = sorted((key for key in keys if key.state in _LIVE), key=lambda key: key.client)
        ended = [key for key in keys if key.state not in _LIVE]
        since_s = self._now_s() - RECENT_S
        self._keys = live + [
            k for k in ended if self.show_ended or self.state.evidence.refused(k.id, since_s)
        ]
        super().rows_changed()

    @property
    def chosen(self) -> KeyInfo | None:
        """The key under the cursor."""
        return next((key for key in self._keys if key.id == self.cursor_key), None)

    def row_count(self) -> int:
        """Keys shown."""
        return len(self._keys)

    def row_key(self, index: int) -> Key:
        """The key's id."""
        return self._keys[index].id

    def _client_width(self, width: int) -> int:
        return max(12, min(24, width - (77 if width >= _WITH_PRINT else 68)))

    def _print(self, text: str, width: int) -> str:
        """The fingerprint's column, where there is room."""
        return f"{fit(text, 8)} " if width >= _WITH_PRINT else ""

    def head_pieces(self, width: int) -> Iterable[Piece] | None:
        """Column names."""
        titles = (
            f" {fit('client', self._client_width(width))} {'key id':<8} {self._print('print', width)}"
            f"{'state':<9} {'age':>3} {'users':>5} {'ends in':>7}  last used"
        )
        return [(titles, style(self.app, Role.DIM))]

    def row_pieces(self, index: int, width: int, *, selected: bool) -> Iterable[Piece]:
        """One key."""
        key, now_s = self._keys[index], self._now_s()
        look = {role: style(self.app, role) for role in Role}
        live = key.state in _LIVE
        text = look[Role.TEXT if live else Role.DIM]
        evidence = self.state.evidence
        users = evidence.stragglers(key.id) if key.replaced_by else evidence.users(key.id, now_s)
        used = sum(1 for use in users if use.requests)
        if not live:
            used = len(evidence.refused(key.id, now_s - RECENT_S))
        retiring = key.state is KeyState.RETIRING and key.expires_at
        ends = countdown(epoch_s(key.expires_at or "") - now_s) if retiring else "—"
        last = "never"
        if key.last_used_at:
            last = f"{age(now_s - epoch_s(key.last_used_at)):>3} ago  {key.last_used_ip or ''}"
        return [
            ("▶" if selected else " ", look[Role.ACCENT]),
            (fit(key.client, self._client_width(width + 1)) + " ", look[Role.STRONG] if live else text),
            (f"{fit(key.id, 8)} {self._print(key.fingerprint, width + 1)}", look[Role.DIM]),
            (f"{key.state.value:<9} ", look[_ROLES[key.state]]),
            (f"{age(now_s - epoch_s(key.created_at)):>3} ", text),
            (f"{used or '—':>5} ", look[Role.WARN] if used and (retiring or not live) else text),
            (f"{ends:>7}  ", look[Role.WARN] if retiring else text),
            (last, text),
        ]

    def empty_text(self) -> tuple[str, ...]:
        """No ring, or an empty one."""
        if self.state.trouble:
            return (f"{self.state.state_word}: the keys are not known.",)
        return ("There is no key.", "a adds a client.")
