"""The thread that writes to the terminal: no more at once than a slow line carries in a moment."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque

from tui.model.glyphs import Repertoire
from tui.screen_buffer import ScreenBuffer

ASK = "\x1b[5n"
"""Device status report: a terminal answers when it has acted on all that came before (ECMA-48, 8.3.35)."""
ANSWER = b"\x1b[0n"
PIECE_BYTES = 1024
UNANSWERED_BYTES = 1024
"""A terminal that answers has this and a piece on its way when a key is pressed: half a second at 4 kB/s."""
UNANSWERED_URGENT_BYTES = 2048
"""The answer to a key is not held back so soon: on a long but fast line each wait is a round trip."""
ANSWER_WITHIN_S = 10.0
_SYNC_BEGIN, _SYNC_END = "\x1b[?2026h", "\x1b[?2026l"


class Painter:
    """Brings the terminal to the picture that Textual wants, from a thread of its own.

    What the kernel and the line hold can't be overtaken, so it is kept small: after each piece the
    terminal is asked for a sign, and the next piece waits if too much is unanswered. A terminal that
    does not answer is not waited for.

    Args:
        fd: the terminal.
        size: columns and rows.
        repertoire: what the terminal can show.
    """

    def __init__(self, fd: int, size: tuple[int, int], repertoire: Repertoire) -> None:
        self._fd = fd
        self._repertoire = repertoire
        self._buffer = ScreenBuffer(*size)
        self._changed = threading.Condition()
        self._controls: list[str] = []
        self._unanswered: deque[int] = deque()
        """The sizes of the pieces that the terminal has not answered yet."""
        self.answers = False
        """Whether the terminal answers at all."""
        self._answer_by_s = 0.0
        self._synchronized = False
        self._drawing = True
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="painter", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Ask for the first sign; the terminal's echo must be off."""
        self.control(ASK)

    def draw(self, frame: str, size: tuple[int, int], *, urgent: bool) -> bool:
        """Take over a frame of the whole screen or of parts.

        Returns:
            False if the size is another one: what is not in this frame is lost.
        """
        text = self._repertoire.shown(frame)
        with self._changed:
            is_same = size == self._buffer.size
            if not is_same:
                # The terminal moves what it shows in its own way.
                self._buffer = ScreenBuffer(*size)
            self._buffer.draw(text, urgent=urgent)
            self._changed.notify()
        return is_same

    def forget(self) -> None:
        """Take what the terminal shows for unknown: the next frame must be a whole one."""
        with self._changed:
            self._buffer = ScreenBuffer(*self._buffer.size)

    def control(self, sequence: str) -> None:
        """Write a sequence that prints nothing, before all that is not yet drawn."""
        with self._changed:
            if sequence in {_SYNC_BEGIN, _SYNC_END}:
                # Frames are put together anew, and each piece is such an update.
                self._synchronized = True
                return
            self._controls.append(sequence)
            self._changed.notify()

    def answered(self, times: int) -> None:
        """Note that the terminal has acted on the oldest unanswered pieces."""
        with self._changed:
            self.answers = True
            for _ in range(min(times, len(self._unanswered))):
                self._unanswered.popleft()
            self._answer_by_s = time.monotonic() + ANSWER_WITHIN_S
            self._changed.notify()

    def stop_drawing(self) -> None:
        """Write only control sequences from now on: what is not drawn yet never is."""
        with self._changed:
            self._drawing = False
            self._changed.notify()

    def close(self) -> None:
        """Write the last control sequences, and end."""
        with self._changed:
            self._drawing, self._ended = False, True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (piece := self._next()) is not None:
            data = piece.encode(self._repertoire.encoding, "replace")
            try:
                while data:
                    data = data[self._write(data) :]
            except OSError:
                # The terminal is gone, which the reading thread tells the app.
                return

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            # Whoever started the app has made the terminal non-blocking.
            select.select([], [self._fd], [])
            return 0

    def _next(self) -> str | None:
        """Wait for what is to be written next, and return it; None at the end."""
        with self._changed:
            while True:
                if self._controls:
                    written = "".join(self._controls)
                    self._controls.clear()
                    return written
                if self._ended:
                    return None
                if self._drawing and self._may_send():
                    piece = self._buffer.next_piece(PIECE_BYTES)
                    if piece:
                        return self._enclosed(piece)
                self._wait()

    def _may_send(self) -> bool:
        most = UNANSWERED_URGENT_BYTES if self._buffer.is_urgent else UNANSWERED_BYTES
        return not self.answers or sum(self._unanswered) < most

    def _wait(self) -> None:
        if not self._drawing or self._may_send():
            self._changed.wait()
        elif (left_s := self._answer_by_s - time.monotonic()) > 0:
            # Frames come meanwhile, and end the waiting early.
            self._changed.wait(left_s)
        else:
            self.answers = False
            self._unanswered.clear()
            self._controls.append(ASK)

    def _enclosed(self, piece: str) -> str:
        if self._synchronized:
            piece = f"{_SYNC_BEGIN}{piece}{_SYNC_END}"
        if self.answers:
            piece += ASK
            if not self._unanswered:
                self._answer_by_s = time.monotonic() + ANSWER_WITHIN_S
            self._unanswered.append(len(piece.encode(self._repertoire.encoding, "replace")))
        return piece
