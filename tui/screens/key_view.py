"""One key in full: its state over time, everybody who used it, and what was done to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from relayd.admin.schema import KeyInfo, KeyState, KeyUser, KeyUsers, epoch_s
from relayd.printable import plural
from tui.model.app_state import AppState, KeyUse
from tui.model.evidence import state_in_words, use_in_words
from tui.model.key_history import KeyEvent, history_of
from tui.model.sorting import Value
from tui.model.units import age, count, day_clock, moment
from tui.model.usage import by_day
from tui.theme import Role, style
from tui.widgets.line_list import Field, ItemList
from tui.widgets.plot import Line, Plot
from tui.widgets.words import Words

_WIDE = 110
_HIGH = 28
_USERS_EVERY_S = 2.0
_USERS_REST = 20
"""So many times as long as an answer took, nothing is asked again."""
_ROLES = {
    KeyState.ACTIVE: Role.GOOD,
    KeyState.RETIRING: Role.WARN,
    KeyState.EXPIRED: Role.BAD,
    KeyState.REVOKED: Role.BAD,
}


class UsersAsked:
    """When the users of a key were asked for last, so that a large log is not read all the time."""

    def __init__(self) -> None:
        self.problem = ""
        self._key = ("", KeyState.ACTIVE)
        self._log_seq: int | None = None
        self._began_s = 0.0
        self._next_s = 0.0

    def is_due(self, key: KeyInfo, log_seq: int | None) -> bool:
        """Return whether there may be news since."""
        if self._key != (key.id, key.state):
            return True
        may_differ = self._log_seq != log_seq or bool(self.problem)
        return may_differ and time.monotonic() >= self._next_s

    def begin(self, key: KeyInfo, log_seq: int | None) -> None:
        """Note that they are asked for now."""
        self._key, self._log_seq = (key.id, key.state), log_seq
        self._began_s = time.monotonic()

    def end(self) -> None:
        """Note that the answer came: the longer it took, the later the next question."""
        now_s = time.monotonic()
        self._next_s = now_s + max(_USERS_EVERY_S, _USERS_REST * (now_s - self._began_s))


def user_id(user: KeyUser) -> str:
    """Return what identifies a user of a key."""
    return f"{user.ip} {user.user_agent or ''}"


class UserList(ItemList[KeyUser]):
    """Who used a key, by address and program, the latest first; Enter filters by the address."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        super().__init__(user_id, id="key-users")
        self._now_s = now_s
        self.is_replaced = False
        self.problem = ""

    def fields(self, width: int) -> list[Field]:
        """Return the columns; the program has what the others leave."""
        fields = [
            Field("address", 39 if width >= _WIDE else 22),
            Field("last", 4, right=True),
            Field("first", 5, right=True),
            Field("requests", 8, right=True),
        ]
        if self.is_replaced:
            fields.append(Field("since rot.", 10, right=True))
        fields.append(Field("refused", 7, right=True))
        left = width - 2 - sum(field.width + 1 for field in fields)
        return [*fields, Field(" program", max(0, left))]

    def sort_values(self) -> Mapping[str, Value[KeyUser]]:
        """Return what a user is sorted by."""
        return {
            "requests": lambda user: user.requests,
            "since rot.": lambda user: user.requests_since,
            "refused": lambda user: user.refused,
            "last": lambda user: user.last_at,
            "first": lambda user: user.first_at,
            "address": lambda user: user.ip,
        }

    def cells(self, item: KeyUser) -> dict[str, tuple[str, Role]]:
        """Return one user."""
        now_s = self._now_s()
        return {
            "address": (item.ip, Role.STRONG),
            "last": (age(now_s - epoch_s(item.last_at)), Role.TEXT),
            "first": (age(now_s - epoch_s(item.first_at)), Role.DIM),
            "requests": (count(item.requests), Role.TEXT),
            "since rot.": (count(item.requests_since), Role.WARN if item.requests_since else Role.DIM),
            "refused": (count(item.refused), Role.BAD if item.refused else Role.DIM),
            " program": (f" {item.user_agent or '—'}", Role.DIM),
        }

    def empty_text(self) -> tuple[str, ...]:
        """Say that nobody used it, or that it is not known."""
        return (self.problem or "No request with this key is in the log.",)


class EventList(ItemList[KeyEvent]):
    """What became of a key, the latest first."""

    def __init__(self) -> None:
        super().__init__(lambda event: f"{event.at_s} {event.what}", id="key-events", cursor_always=False)

    def fields(self, width: int) -> list[Field]:
        """Return the columns."""
        return [Field("when", 14), Field("by", 9), Field("history", max(0, width - 27))]

    def cells(self, item: KeyEvent) -> dict[str, tuple[str, Role]]:
        """Return one event."""
        return {
            "when": (day_clock(item.at_s)[5:], Role.DIM),
            "by": (item.by, Role.TEXT),
            "history": (item.what, Role.TEXT),
        }


class KeyView(Vertical):
    """One key: facts above, its users and its history below each other, or side by side."""

    DEFAULT_CSS = """
    KeyView Words { height: auto; padding: 0 1; background: $surface; }
    KeyView #key-lists { height: 3fr; }
    KeyView #key-plots { height: 2fr; display: none; }
    KeyView.-high #key-plots { display: block; }
    KeyView UserList { width: 3fr; }
    KeyView EventList { width: 2fr; }
    KeyView.-narrow #key-lists { layout: vertical; }
    KeyView.-narrow UserList { width: 1fr; height: 2fr; }
    KeyView.-narrow EventList { width: 1fr; height: 1fr; max-height: 8; }
    """

    def __init__(self, state: AppState, now_s: Callable[[], float]) -> None:
        super().__init__(id="key-view")
        self._state = state
        self._now_s = now_s

    def compose(self) -> ComposeResult:
        """Show facts, users and history."""
        # A countdown draws its own line again each second, and not the others.
        yield Words(id="key-state")
        yield Words(id="key-use")
        with Horizontal(id="key-lists"):
            yield UserList(self._now_s)
            yield EventList()
        with Horizontal(id="key-plots"):
            yield Plot(id="key-requests")
            yield Plot(id="key-tokens")

    def on_resize(self) -> None:
        """Lay out for another size."""
        self.set_class(self.size.width < _WIDE, "-narrow")
        self.set_class(self.size.height >= _HIGH, "-high")

    @property
    def users(self) -> UserList:
        """Who used it."""
        return self.query_one(UserList)

    def show(self, key: KeyInfo, use: KeyUse | None, problem: str, first_day: str) -> None:
        """Show this key, and its use from this day on; `problem` says why that is not known."""
        known = None if use is None else use.users
        self._plot(use, first_day)
        users = self.users
        users.is_replaced, users.problem = key.replaced_by is not None, problem
        users.show(() if known is None else known.users)
        history = history_of(key, self._state.ring.keys, self._state.audit, self._now_s())
        if history != self.query_one(EventList).all_items:
            self.query_one(EventList).show(history)
        self.query_one("#key-state", Words).say(self._key_and_state(key))
        self.query_one("#key-use", Words).say(self._use(key, known))

    def _plot(self, use: KeyUse | None, first_day: str) -> None:
        """Draw requests and tokens of each day."""
        days = {"req": [], "tok": []} if use is None else by_day(use.by_day, ("req", "tok"))
        for name, title, column, role in (
            ("#key-requests", "Requests", "req", Role.RUN),
            ("#key-tokens", "Tokens", "tok", Role.STREAM),
        ):
            lines = [Line("yesterday", days[column], role)] if days[column] else []
            self.query_one(name, Plot).show(title, lines, (first_day, "today"), count)

    def _look(self, role: Role) -> Style:
        return style(self.app, role)

    def _key_and_state(self, key: KeyInfo) -> Text:
        text = Text()
        text.append(f"Key {key.id}", self._look(Role.STRONG))
        text.append(f" of {key.client}  ", self._look(Role.TEXT))
        text.append(state_in_words(key, self._now_s()), self._look(_ROLES[key.state]))
        text.append(f"  fingerprint {key.fingerprint}", self._look(Role.DIM))
        return text

    def _use(self, key: KeyInfo, known: KeyUsers | None) -> Text:
        now_s = self._now_s()
        text = Text()
        streams = sum(
            stream.progress.key_id == key.id for stream in self._state.open_streams.streams.values()
        )
        use = use_in_words(key, self._state.evidence, streams, now_s)
        text.append(f"{use.replace(chr(10), ' ')}\n", self._look(Role.TEXT))
        if known is not None:
            text.append(_sums(known, now_s), self._look(Role.DIM))
        return text


def _sums(known: KeyUsers, now_s: float) -> str:
    """Return how many users there are, and since when the log tells of them."""
    since = ""
    if known.log_begins_at is not None:
        since = f" in the log, which begins at {moment(epoch_s(known.log_begins_at), now_s)}"
    refused = f", {known.refused:,} refused" if known.refused else ""
    words = f"{plural(known.count, 'user')}{since}: {plural(known.requests, 'request')}{refused}."
    more = known.count - len(known.users)
    return f"{words} {more:,} more are not listed: they came earlier." if more else words
