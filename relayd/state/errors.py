"""What can go wrong with the state, as types; every text is a sentence for the operator."""

from __future__ import annotations


class StateError(Exception):
    """The state can't be used."""


class StateUnreachable(StateError):
    """No such directory or file, or no permission; the text names the path."""


class StateOtherFormat(StateError):
    """Another version of relayd wrote the file, in a format not known here; it is left untouched."""


class StateDamaged(StateError):
    """The file is not a database, or parts of it can't be read."""


class StateBusy(StateError):
    """The disk is full or failing, or another process holds the file."""


class StateReplaced(StateError):
    """The database was moved, deleted or replaced while it was open, or after a crash."""


class RingStale(StateError):
    """A shared database can't be asked, and what is in memory does not tell whether a key is valid."""


class RingError(Exception):
    """A change of the key ring was refused; the ring is as it was.

    `code` is for programs, the text for people.
    """

    code = "refused"


class GenerationMismatch(RingError):
    """The ring has moved on since the caller looked."""

    code = "generation_mismatch"

    def __init__(self, message: str, *, expected: int, actual: int) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class NoSuchKey(RingError):
    """No key has this id."""

    code = "no_such_key"


class NoSuchClient(RingError):
    """No client has this name."""

    code = "no_such_client"


class WrongState(RingError):
    """The state of the key, or of its client's other keys, does not allow the change."""

    code = "wrong_state"


class BadChange(RingError):
    """A client's name, a bound, a duration or an idempotency key is not acceptable."""

    code = "bad_request"


class IdempotencyMismatch(RingError):
    """The same Idempotency-Key came before with another change."""

    code = "idempotency_mismatch"


class RingUnavailable(RingError):
    """The change could not be put on disk; the old ring stays in force."""

    code = "ring_unavailable"


class OutcomeUnknown(RingUnavailable):
    """The connection to the database broke during the commit; the same Idempotency-Key tells the outcome."""

    code = "outcome_unknown"
