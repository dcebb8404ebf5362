"""What can go wrong with the state, as types; every text is a sentence for the operator."""

from __future__ import annotations


class StateError(Exception):
    """The state can't be used.

    StateError
    ├── StateUnreachable   no such directory or file, or no permission
    ├── StateOtherFormat   another version of relayd wrote the file
    ├── StateDamaged       the file is not a database, or a damaged one
    ├── StateBusy          the disk or another process does not let us read or write now
    ├── StateReplaced      the file at the path is not the one that relayd used
    └── RingStale          a shared database can't be asked whether a key is valid
    """


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

    RingError
    ├── GenerationMismatch    the ring has moved on since the caller looked
    ├── NoSuchKey             no key has this id
    ├── NoSuchClient          no client has this name
    ├── WrongState            the key's state, or its client's, does not allow it
    ├── BadChange             a name, a bound, a duration or an idempotency key that can't be
    ├── IdempotencyMismatch   the same Idempotency-Key came with another change
    └── RingUnavailable       the disk refused; the old ring stays in force
        └── OutcomeUnknown    the database did not say whether the change is in force
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
