"""What other instances commit, noticed by one thread that looks at the database four times a second."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from relayd.state.database import Database
from relayd.state.engine import Connection, as_state_errors
from relayd.state.errors import StateError
from relayd.state.instances import Commands, Instances, News
from relayd.state.keyring import KeyRing
from relayd.state.schema import MIGRATIONS
from relayd.state.transitions import RingMark

LOOK_EVERY_S = 0.25
_HURRY_S = 0.02
"""While a coroutine waits for what other instances write."""
_USES_EVERY_S = 1.0
_HEAD = f"""SELECT
    (SELECT value FROM meta WHERE name = 'seq'), (SELECT value FROM meta WHERE name = 'command'),
    (SELECT value FROM meta WHERE name = 'oldest_reader'),
    {", ".join(RingMark._fields)} FROM ring"""  # noqa: S608 - own columns

_log = logging.getLogger(__name__)


class Follower:
    """Brings into this process what others wrote: changes of keys, commands, how far the log reaches.

    Notifications would only make it look sooner: that it looks is what makes the promises true.
    """

    def __init__(
        self, database: Database, ring: KeyRing, instances: Instances, commands: Commands, news: News
    ) -> None:
        self._error: str | None = None
        self.latency_s: float | None = None
        """How long the last look took."""
        self.has_looked = False
        """Whether this instance knows what the others changed until it began to follow them."""
        self._database = database
        self._ring = ring
        self._instances = instances
        self._commands = commands
        self._news = news
        self._on_news: Callable[[int], None] = lambda _: None
        self._on_outdated: Callable[[], None] = lambda: None
        self._is_outdated = False
        self._watch = database.engine.watch()
        self._is_closing = False
        self._seq = 0
        self._uses_due = 0.0
        # A daemon thread: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="relayd-state-follower", daemon=True)

    @property
    def error(self) -> str | None:
        """Return why the database can't be followed now, as a sentence; None while it is."""
        return self._error or self._ring.error

    def start(self, on_news: Callable[[int], None], on_outdated: Callable[[], None]) -> None:
        """Begin, on the running loop.

        Args:
            on_news: called there with the newest place in the log.
            on_outdated: called there once this release must not use the tables any more.
        """
        self._on_news, self._on_outdated = on_news, on_outdated
        self._news.open()
        self._news.hurry = self._watch.wake
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """End the thread. Blocks."""
        self._is_closing = True
        self._watch.wake()
        if self._thread.ident is None:
            self._watch.close()
        else:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        engine = self._database.engine
        while not self._is_closing:
            began = time.monotonic()
            try:
                with as_state_errors(engine):
                    self._database.connection.check_in_place()
                    self._look(self._watch.connection)
            except StateError as error:
                if self._error is None and not self._is_closing:
                    _log.error("What other instances do can't be read: %s", error)
                self._error = str(error)
                self._ring.doubt()
            except Exception:  # noqa: BLE001 - a bug must not end the thread: revoked keys would stay valid here
                _log.exception("The follower failed")
            else:
                self.latency_s = time.monotonic() - began
                if self._error is not None:
                    _log.warning("What other instances do can be read again")
                    self._error = None
            self._watch.wait(_HURRY_S if self._news.is_awaited else LOOK_EVERY_S)
        self._watch.close()

    def _look(self, connection: Connection) -> None:
        # Before the disk is looked at: what is in memory by then is on it.
        known = self._ring.mark
        seq, command, oldest_reader, *found = connection.execute(_HEAD).fetchone()
        self._database.note_seq(seq)
        # Of a SQLite file the format cannot change while a process has it open.
        if not self._is_outdated and oldest_reader is not None and oldest_reader > len(MIGRATIONS):
            self._is_outdated = True
            _log.error(
                "A newer relayd changed the tables of %s in a way that this one does not know, so it stops. "
                "Upgrade it.",
                connection.where,
            )
            self._news.tell(self._on_outdated)
        self._ring.follow(connection, known, RingMark(*found))
        self._instances.read(connection)
        if time.monotonic() >= self._uses_due:
            self._ring.load_uses(connection)
            self._uses_due = time.monotonic() + _USES_EVERY_S
        self._commands.read(connection, command)
        self.has_looked = True
        if seq != self._seq or self._news.is_awaited:
            self._seq = seq
            self._news.tell(self._on_news, seq)
