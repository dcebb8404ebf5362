"""The header of every screen: which daemon, how it is doing, a rotation under way, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap

from rich.style import Style
from rich.text import Text

from relayd.admin.schema import AcceptState, AlertKind, Status, epoch_s
from relayd.printable import plural
from tui.context import Context
from tui.model.alerts import KnownAlert
from tui.model.app_state import Connection
from tui.model.old_keys import OldKey, old_key
from tui.model.routes import cooling
from tui.model.stats import WINDOWS
from tui.model.units import age, clock, countdown, duration, rate
from tui.theme import Role, style
from tui.widgets.bars import Bar
from tui.widgets.cells import Piece, fit, width_of
from tui.widgets.plot import sparkline
from tui.widgets.words import Words

WIDE = 100
_SPARK = 24
_BOLD = Style(bold=True)
_MAX_OLD_KEYS = 4
_MAX_ALERTS = 3
_MAX_NOTICE_LINES = 8
"""One more says what they leave no room for."""
_ANSWER = "  A shows it"
_GIVES_WAY = ("first", "tok/s", "run", "err")
"""The figures that are left out of a narrow header, the least important first."""
_ASKING_SHOWN_AFTER_S = 0.5
_WHAT_IS_SHOWN = {
    Connection.CONNECTING: "Connecting.",
    Connection.STALE: "Figures are from then; a change waits for its answer.",
    Connection.DOWN: "Nothing can be changed. Trying again; R tries now.",
    Connection.DENIED: "Nothing can be read. R tries again.",
    Connection.MISMATCH: "Nothing can be changed.",
}


class StatusBar(Bar):
    """One line; on a wide and high screen a second one with the last minutes as sparklines."""

    def __init__(self, context: Context) -> None:
        super().__init__(id="status")
        self._state = context.state
        self._now_s = context.now_s
        self._place = context.place
        self._reaches_back = context.feed.history.reaches_back

    def pieces(self, y: int, width: int) -> Iterable[Piece]:
        """Return the line at `y`."""
        return self._sparks(width) if y else self._facts(width)

    def _facts(self, width: int) -> list[Piece]:
        look = {role: style(self.app, role) for role in Role}
        strong = look[Role.STRONG]
        state, is_stale = self._state, self._state.connection is Connection.STALE
        word = state.state_word
        if is_stale:
            word = f"{word} {age(self._now_s() - state.silent_since_s)}"
        role = Role.GOOD if word == Connection.LIVE else Role.WARN
        if word in {Connection.DOWN, Connection.DENIED, Connection.MISMATCH}:
            role = Role.BAD
        dot = "●" if state.connection is Connection.LIVE else "○"
        left: list[Piece] = [(f" {self._place} ", strong), (f"{dot} {word}", look[role] + _BOLD)]
        figures: dict[str, list[Piece]] = {}
        if state.connection in {Connection.LIVE, Connection.STALE} and state.status is not None:
            faded = dict.fromkeys(Role, look[Role.DIM]) if is_stale else look
            left += self._trouble(state.status, faded)
            figures = self._rates(state.status, faded)
        right = [*self._routes(), *self._rotation()]
        # What is wrong, a rotation, and a route that fails matter more than the figures.
        taken = width_of(left) + width_of(right)
        for name in _GIVES_WAY:
            if taken + sum(map(width_of, figures.values())) > width:
                figures.pop(name, None)
        pieces = [*left, *(piece for figure in figures.values() for piece in figure)]
        room = width - width_of(pieces) - width_of(right)
        return [*pieces, (" " * max(0, room), strong), *right]

    def _trouble(self, status: Status, look: dict[Role, Style]) -> Iterable[Piece]:
        dim, bad = look[Role.DIM], look[Role.BAD]
        if status.log.error or status.log.lost:
            yield f"  LOG LOSES {status.log.lost}", bad
        if self._state.alerts.live:
            yield f"  {plural(len(self._state.alerts.live), 'alert')}", look[Role.WARN]
        if not status.engine.ok:
            yield "  DATABASE DOWN", bad
        if self._state.is_shared:
            live_count, have_ring = status.instances.live, status.instances.have_ring
            yield "  keys on ", dim
            yield f"{have_ring} of {live_count}", look[Role.TEXT if have_ring == live_count else Role.WARN]
        if status.intake is AcceptState.DRAINING:
            left = len(self._state.open_streams.streams)
            yield f" {left} left, at most {status.drain_timeout_s:.0f} s", look[Role.WARN] + _BOLD

    def _rates(self, status: Status, look: dict[Role, Style]) -> dict[str, list[Piece]]:
        """Return the figures as they stand beside each other, by the names in `_GIVES_WAY`."""
        text, dim, strong = look[Role.TEXT], look[Role.DIM], look[Role.STRONG]
        live, rates = self._state.open_streams, status.rates
        tokens = rates.deltas_per_s if not live.streams else live.deltas_per_s
        figures: dict[str, list[Piece]] = {
            "run": [("  run ", dim), (str(len(live.streams)), strong)],
            "tok/s": [("  ", dim), ("—" if tokens is None else rate(tokens), strong), (" tok/s", dim)],
        }
        if rates.first_token_p50_ms is not None:
            p50, p95 = duration(rates.first_token_p50_ms), duration(rates.first_token_p95_ms)
            short = p50.removesuffix("s") if p50.endswith("s") and not p50.endswith("ms") else p50
            figures["first"] = [("  first ", dim), (f"{short}/{p95}", text)]
        errors = self._errors(status)
        words = "—" if errors is None else str(errors)
        figures["err"] = [("  err ", dim), (words, look[Role.BAD] if errors else text), ("/5m", dim)]
        return figures

    def _errors(self, status: Status) -> int | None:
        """Return the errors of the last minutes; None if neither log nor daemon reaches so far back."""
        window, now_s = WINDOWS[0], self._now_s()
        if self._reaches_back(now_s - window.span_s):
            return sum(bucket.all.errors for bucket in self._state.stats.buckets(window, now_s))
        return status.rates.errors_5m if status.uptime_s >= window.span_s else None

    def _routes(self) -> list[Piece]:
        status = self._state.status
        if status is None or self._state.connection is not Connection.LIVE:
            return []
        found = cooling(status.routes, self._now_s())
        if not found:
            return []
        if len(found) > 1:
            return [(f" {len(found)} ROUTES COOL DOWN ", style(self.app, Role.WARN) + _BOLD)]
        [one] = found
        model = f" for {one.model}" if one.model else ""
        state = f"COOLS {countdown(one.left_s)}" if one.left_s > 0 else "IS TRIED NEXT"
        words = f" ROUTE {one.route}{model} {state} "
        return [(words, style(self.app, Role.WARN) + _BOLD)]

    def _rotation(self) -> list[Piece]:
        state, now_s = self._state, self._now_s()
        retiring = state.retiring()
        if not retiring:
            return []
        old = old_key(retiring[0], state.evidence, now_s)
        name = "OLD KEY" if len(retiring) == 1 else f"{len(retiring)} OLD KEYS, {old.key.client}"
        users = old.users
        words = f" {name} {countdown(old.left_s)} {plural(users, 'user') if users else 'unused'} "
        if old.is_urgent:
            return [(words, style(self.app, Role.ALARM))]
        return [(words, style(self.app, Role.WARN) + _BOLD if users else style(self.app, Role.DIM))]

    def _sparks(self, width: int) -> list[Piece]:
        state = self._state
        dim = style(self.app, Role.DIM)
        buckets = state.stats.buckets(WINDOWS[0], self._now_s())
        firsts = [bucket.all.first.percentile(0.5) for bucket in buckets]
        is_heard = state.connection in {Connection.LIVE, Connection.STALE}
        is_known = is_heard or state.stats.oldest_s is not None
        size = min(_SPARK, (width - 44) // 3)
        groups: list[tuple[str, str, Role]] = [
            ("tok/s", sparkline(list(state.open_streams.history) if is_heard else [], size), Role.STREAM),
            ("first p50", sparkline(firsts, size), Role.WAIT),
            ("errors", sparkline([b.all.errors for b in buckets] if is_known else [], size), Role.BAD),
        ]
        pieces: list[Piece] = []
        for name, spark, role in groups:
            pieces += [(f" {name} ", dim), (spark, style(self.app, role)), ("  ", dim)]
        return pieces


class Notice(Words):
    """Lines below the tabs for what needs the operator; hidden while all is well."""

    DEFAULT_CSS = """
    Notice { height: auto; max-height: 9; padding: 0 1; display: none; background: $panel; }
    Notice.-on { display: block; }
    """

    def __init__(self, context: Context) -> None:
        super().__init__(id="notice")
        self._state = context.state
        self._now_s = context.now_s
        self._settings = context.settings_file.settings

    def refresh_data(self) -> None:
        """Say how things stand, and ring once if an alert has begun."""
        if self._state.alerts.take_news() and self._settings.bell:
            self.app.bell()
        lines = [*self._connection(), *self._trouble(), *self._asking(), *self._alerts()]
        most = min(_MAX_NOTICE_LINES, self.app.size.height // 3)
        lines += self._old_keys(most - self._height(lines))
        self.say(Text("\n".join(lines), style=style(self.app, Role.WARN)))
        self.set_class(bool(lines), "-on")

    def _alerts(self) -> Iterable[str]:
        """Say what the operator has not seen yet, in one line each; the list has the whole sentences."""
        told = [known.alert for known in self._state.alerts.unanswered if not self._is_told_otherwise(known)]
        for alert in told[:_MAX_ALERTS]:
            when = clock(epoch_s(alert.since))
            word = "ALERT" if alert.ended_at is None else "ALERT, over"
            lead = f"{word} {when}: "
            room = max(20, self.app.size.width - 2 - len(lead) - len(_ANSWER))
            yield f"{lead}{fit(alert.sentence, room).rstrip()}{_ANSWER}"
        if len(told) > _MAX_ALERTS:
            yield f"{plural(len(told) - _MAX_ALERTS, 'more alert')}; A shows all."

    def _is_told_otherwise(self, known: KnownAlert) -> bool:
        """Return whether another line tells of an alert that holds."""
        alert, status = known.alert, self._state.status
        if alert.ended_at is not None:
            return False
        if alert.kind is AlertKind.CONTACT:
            return True
        if alert.kind is AlertKind.ENGINE:
            return status is not None and not status.engine.ok
        if alert.kind is AlertKind.KEY_ENDS:
            return any(old.key.id == alert.key_id and old.is_urgent for old in self._known_old_keys())
        return False

    def _connection(self) -> Iterable[str]:
        state = self._state
        if state.problem and state.connection is not Connection.LIVE:
            problem = state.problem if state.problem.endswith((".", "!", "?")) else f"{state.problem}."
            disk = ""
            if state.connection in {Connection.DOWN, Connection.MISMATCH}:
                disk = "History is read from disk. " if state.reads_disk else f"{state.no_history} "
            yield f"{state.connection}: {problem} {disk}{_WHAT_IS_SHOWN[state.connection]}"

    def _trouble(self) -> Iterable[str]:
        status = self._state.status
        if status is None or self._state.connection is not Connection.LIVE:
            return
        if not status.engine.ok:
            yield f"DATABASE: {status.engine.error or 'It does not answer'}"
        if status.silent:
            yield f"NO ANSWER from {', '.join(status.silent)}: figures of it are missing."

    def _known_old_keys(self) -> list[OldKey]:
        now_s, evidence = self._now_s(), self._state.evidence
        return [old_key(key, evidence, now_s) for key in self._state.ring.keys if key.expires_at]

    def _old_keys(self, room: int) -> list[str]:
        """Say in so many lines how each rotation stands that needs a look; at least that there are some."""
        old_keys = self._known_old_keys()
        alone = len(self._state.retiring()) < 2  # noqa: PLR2004 - the header tells of one
        sentences = [
            sentence
            for old in sorted(old_keys, key=lambda old: (not old.is_urgent, old.left_s <= 0, old.left_s))
            if (sentence := old.sentence(is_alone=alone))
        ]
        if not sentences or (len(sentences) <= _MAX_OLD_KEYS and self._height(sentences) <= room):
            return sentences
        shown = sentences[:_MAX_OLD_KEYS]
        while shown and self._height(shown) >= room:
            shown.pop()
        kind = "more old key" if shown else "old key"
        return [*shown, f"{plural(len(sentences) - len(shown), kind)}; K shows all."]

    def _height(self, lines: Iterable[str]) -> int:
        """Return how many lines these take, broken where the screen ends."""
        width = self.app.size.width - 2
        return sum(len(wrap(line, max(1, width), break_on_hyphens=False)) for line in lines)

    def _asking(self) -> Iterable[str]:
        now_s = self._now_s()
        for asking in self._state.asking:
            if not asking.lost and now_s - asking.since_s < _ASKING_SHOWN_AFTER_S:
                continue
            again = f", {plural(asking.lost, 'answer')} lost" if asking.lost else ""
            since = f"{clock(asking.since_s)} ({age(now_s - asking.since_s)}{again})"
            yield (
                f"{asking.change}: asking since {since}. UNKNOWN whether it is done; it is never done twice."
            )
