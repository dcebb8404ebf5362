"""The request log as the relay sees it: tell it of each start and each end, and go on."""

from __future__ import annotations

from relayd.state.records import RequestRecord


class RequestLog:
    """Takes records on the event loop and never waits; the writer thread puts them on disk.

    Up to 10,000 entries wait for the disk. When it is full, a start is not noted down, but its
    end still records the request whole if there is room by then; else the request is lost, and counted.
    """

    boot_id: str

    def started(self, record: RequestRecord) -> None:
        """A request was admitted or refused; the record is copied."""
        raise NotImplementedError

    def ended(self, record: RequestRecord) -> None:
        """The request with this id ended; the record is copied. Call it once for each start."""
        raise NotImplementedError

    @property
    def queued(self) -> int:
        """How many starts and ends wait for the disk."""
        raise NotImplementedError

    @property
    def lost(self) -> int:
        """How many requests were lost since this start of the daemon."""
        raise NotImplementedError

    @property
    def error(self) -> str | None:
        """Why writing fails now, as a sentence; None while it works."""
        raise NotImplementedError
