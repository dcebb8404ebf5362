"""The header of every screen: who answers, how it is doing, and a rotation that is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from relayd.admin.wire import Intake, epoch_s
from tui.model.desk import Contact, Desk
from tui.model.units import countdown, duration, plural, rate
from tui.theme import Role, style
from tui.widgets.bars import Bar
from tui.widgets.cells import Piece, width_of
from tui.widgets.spark import sparkline

WIDE = 100
_SPARK = 24
_WARN_BEFORE_S = 120
_WARN_IF_USED_S = 600


class StatusBar(Bar):
    """One line; on a wide and high screen a second one with the last minutes as sparklines."""

    def __init__(self, desk: Desk, now_s: Callable[[], float], place: str) -> None:
        super().__init__(id="status")
        self._desk = desk
        self._now_s = now_s
        self._place = place

    def pieces(self, y: int, width: int) -> Iterable[Piece]:
        """The line at `y`."""
        return self._sparks(width) if y else self._facts(width)

    def _facts(self, width: int) -> list[Piece]:
        look = {role: style(self.app, role) for role in Role}
        text, dim, strong = look[Role.HEAD], look[Role.HEAD_DIM], look[Role.HEAD_STRONG]
        desk = self._desk
        word = desk.state_word
        role = Role.HEAD_GOOD if word == Contact.LIVE else Role.HEAD_WARN
        if word in {Contact.DOWN, Contact.DENIED, Contact.MISMATCH}:
            role = Role.HEAD_BAD
        dot = "●" if desk.contact is Contact.LIVE else "○"
        pieces: list[Piece] = [(f" {self._place} ", strong), (f"{dot} {word}", look[role])]
        status = desk.status
        if desk.contact is Contact.LIVE and status is not None:
            pieces += [*self._intake(), ("  run ", dim), (str(len(desk.live.streams)), strong)]
            pieces += [("  ", dim), (rate(desk.live.deltas_per_s), strong), (" tok/s", dim)]
            p50, p95 = status.rates.first_token_p50_ms, status.rates.first_token_p95_ms
            if p50 is not None:
                pieces += [("  first ", dim), (f"{duration(p50)}/{duration(p95)}", text)]
            errors = status.rates.errors_5m
            pieces += [("  err ", dim), (str(errors), look[Role.HEAD_BAD] if errors else text), ("/5m", dim)]
            if status.log.error or status.log.lost:
                pieces.append((f"  LOG LOSES {status.log.lost}", look[Role.HEAD_BAD]))
        right = self._rotation()
        room = width - width_of(pieces) - width_of(right)
        if room < 1 and right:
            # The rotation matters more than the rates.
            while len(pieces) > 2 and width_of(pieces) + width_of(right) >= width:  # noqa: PLR2004 - place and state stay
                pieces.pop()
            room = width - width_of(pieces) - width_of(right)
        return [*pieces, (" " * max(0, room), text), *right]

    def _intake(self) -> list[Piece]:
        status = self._desk.status
        if status is None or status.intake is not Intake.DRAINING:
            return []
        left = len(self._desk.live.streams)
        return [(f" {left} left, at most {status.drain_timeout_s:.0f} s", style(self.app, Role.HEAD_WARN))]

    def _rotation(self) -> list[Piece]:
        desk, now_s = self._desk, self._now_s()
        retiring = desk.retiring()
        if not retiring:
            return []
        key = retiring[0]
        left_s = epoch_s(key.expires_at) - now_s if key.expires_at else 0
        users = desk.evidence.straggler_count(retiring)
        last_s = max((use.last_s for use in desk.evidence.stragglers(key.id)), default=0.0)
        urgent = left_s < _WARN_BEFORE_S and now_s - last_s < _WARN_IF_USED_S
        words = f" OLD KEY {countdown(left_s)} {plural(users, 'user') if users else 'unused'} "
        return [
            (words, style(self.app, Role.ALARM if urgent else Role.HEAD_WARN if users else Role.HEAD_DIM))
        ]

    def _sparks(self, width: int) -> list[Piece]:
        desk = self._desk
        text, dim = style(self.app, Role.HEAD), style(self.app, Role.HEAD_DIM)
        buckets = desk.stats.series["5 min"].last(self._now_s())
        firsts = [bucket.all.first.percentile(0.5) for bucket in buckets]
        size = min(_SPARK, (width - 44) // 3)
        groups: list[tuple[str, str, Role]] = [
            ("tok/s", sparkline(list(desk.live.history), size), Role.STREAM),
            ("first p50", sparkline(firsts, size), Role.WAIT),
            ("errors", sparkline([bucket.all.errors for bucket in buckets], size), Role.BAD),
        ]
        pieces: list[Piece] = []
        for name, spark, role in groups:
            pieces += [(f" {name} ", dim), (spark, text + style(self.app, role)), ("  ", dim)]
        return pieces
