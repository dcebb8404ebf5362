"""The state directory: private to the daemon's user, and used by one daemon at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from relayd.files import DATABASE
from relayd.state.errors import StateBusy, StateDamaged, StateReplaced, StateUnreachable
from relayd.state.sqlite import FileId, file_id, how_to_restore, shm_path, wal_path

LOCK_NAME = "relayd.lock"
_SMALLEST_PAGE_BYTES = 512
_HAS_NO_WAL = b"SQLite format 3\0", b"\1\1"
"""What the header of a backup begins with, and the versions at its bytes 18 and 19; 2 means a WAL
(https://www.sqlite.org/fileformat2.html, section 1.3.3)."""
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
_log = logging.getLogger(__name__)


class StateDirectory:
    """A directory that this process has locked, and the database file in it.

    The lock file also has the generation of the ring that was last in force: a start then sees that the
    database lost its keys, or is an older one.
    """

    def __init__(self, path: Path, *, has_database: bool = True) -> None:
        """Make the directory (0700) and the file (0600) if they are missing, and lock the directory.

        Args:
            path: of the directory.
            has_database: False if the database is a server's.

        Raises:
            StateUnreachable: not possible, or the directory is another user's, or others may write to it.
            StateBusy: another daemon uses it.
            StateDamaged: the database is an empty file, and was not always.
            StateReplaced: the WAL of another database is beside it.
        """
        self.path = path
        self.generation = 0
        """Of the ring that was last in force here; 0 before the first key."""
        self.database_id: FileId | None = None
        """Which file is the database; processes that are forked later may open no other. None: no file is."""
        self.database = path / DATABASE
        with _explained(path):
            _make_private(path)
            for file in (path / LOCK_NAME, self.database, wal_path(self.database), shm_path(self.database)):
                if os.path.lexists(file) and not file.is_file():
                    # SQLite would wait for half a minute, or for ever.
                    raise StateUnreachable(f"{file} is not a regular file: move it away.")
            self._lock = os.open(path / LOCK_NAME, _OPEN, 0o600)
            try:
                _take(self._lock, path)
                self.generation = self._read_generation()
                if has_database:
                    self._make_database()
            except BaseException:
                self.close()
                raise

    def note_generation(self, generation: int) -> None:
        """Store the generation of the key ring; 0, before the first key, is not stored."""
        if generation in {0, self.generation}:
            return
        self.generation = generation
        text = b"%d\n" % generation
        try:
            os.pwrite(self._lock, text, 0)
            os.ftruncate(self._lock, len(text))
        except OSError as error:
            _log.warning("%s could not be written: %s", self.path / LOCK_NAME, error.strerror)

    def close(self) -> None:
        """Let another daemon use the directory; a second call does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_generation(self) -> int:
        text = os.pread(self._lock, 20, 0)
        # Whatever else is in it, there was something to remember.
        return int(text) if text.strip().isdigit() else min(len(text), 1)

    def _has_other_wal(self) -> bool:
        """Return whether a backup was put in place of a database whose WAL is still there."""
        wal = wal_path(self.database)
        if not self.database.exists() or not wal.exists() or not wal.stat().st_size:
            return False
        with self.database.open("rb") as file:
            header = file.read(20)
        return (header[:16], header[18:]) == _HAS_NO_WAL

    def _make_database(self) -> None:
        path = self.database
        # SQLite takes what is shorter than a page for a new database.
        if self.generation and path.exists() and path.stat().st_size < _SMALLEST_PAGE_BYTES:
            raise StateDamaged(
                f"The database {path} was cut off, and all its keys are lost. To go on, "
                f"{how_to_restore(path)}"
            )
        # SQLite would replay it over the database: damage, or a mixture in which revoked keys work again.
        if self._has_other_wal():
            raise StateReplaced(
                f"The database {path} was replaced, but {wal_path(path)} is still that of the one before. To "
                f"go on, {how_to_restore(path)}"
            )
        # Before SQLite opens it: its -wal and -shm files take their mode from this one.
        descriptor = os.open(path, _OPEN, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            self.database_id = file_id(os.fstat(descriptor))
        finally:
            os.close(descriptor)
        for side in (wal_path(path), shm_path(path)):
            with suppress(FileNotFoundError):
                side.chmod(0o600)


@contextmanager
def locked_directory(path: Path) -> Iterator[None]:
    """Keep daemons out of a directory that is there, whoever owns it.

    Raises:
        StateBusy: a daemon uses it.
        StateUnreachable: it can't be locked.
    """
    with ExitStack() as stack:
        with _explained(path):
            owner = path.stat()
            lock = os.open(path / LOCK_NAME, _OPEN, 0o600)
            stack.callback(os.close, lock)
            if os.geteuid() == 0:
                os.fchown(lock, owner.st_uid, owner.st_gid)
        _take(lock, path)
        yield


def _take(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StateBusy(
            f"Another relayd uses the state directory {path}. Stop it first, or give this one a state_dir of "
            "its own."
        ) from error


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise every `OSError` of the block as `StateUnreachable`."""
    try:
        yield
    except OSError as error:
        raise StateUnreachable(
            f"The state directory {path} can't be used: {error.filename or path}: "
            f"{error.strerror or error}. relayd needs to own it (mode 0700), or another state_dir."
        ) from error


def _make_private(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.stat()
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid != os.geteuid():
        raise StateUnreachable(
            f"The state directory {path} belongs to another user (uid {info.st_uid}), who could "
            "replace the keys in it. Run relayd as that user, or set state_dir to another directory."
        )
    if mode & stat.S_ISVTX:
        raise StateUnreachable(
            f"{path} is shared by all users (mode {mode:04o}) and can't be the state directory. "
            f"Set state_dir to a directory of its own, such as {path / 'relayd'}"
        )
    if mode & 0o022:
        raise StateUnreachable(
            f"Other users may write to the state directory {path} (mode {mode:04o}). "
            f"Close it first: chmod 700 {path}"
        )


_NETWORK_FILE_SYSTEMS = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|fuse|fuse\..*|ceph|afs|glusterfs|lustre|gfs2|ocfs2|beegfs|virtiofs"
)


def refuse_network_file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Do nothing if several processes can share a database in this directory.

    SQLite's WAL is in memory that all of them map, and its locks must hold between them
    (https://www.sqlite.org/wal.html); neither is certain where files come from elsewhere.

    Raises:
        StateUnreachable: the directory is on a network file system, or on one in user space.
    """
    kind = _file_system(path.resolve(), mounts)
    if _NETWORK_FILE_SYSTEMS.fullmatch(kind):
        raise StateUnreachable(
            f"The state directory {path} is on a network file system ({kind}), where several processes can't "
            "share it. Set state_dir to a directory on a local disk, or server.workers to 1."
        )


def _file_system(path: Path, mounts: Path) -> str:
    """Return the type of the file system that holds a path (proc(5), mountinfo); empty if it is not known."""
    holders = {path, *path.parents}
    kind = ""
    depth = 0
    with suppress(OSError):
        for line in mounts.read_text().splitlines():
            before, _, after = line.partition(" - ")
            # A space in the name is written as an octal number.
            place = Path(re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), before.split()[4]))
            # The last one at a place covers those before it.
            if place in holders and len(place.parts) >= depth:
                depth, kind = len(place.parts), after.split()[0]
    return kind
