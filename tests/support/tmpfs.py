"""A small file system of its own, to be filled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CannotMount(Exception):
    """This user may not mount here; the text is what mount(8) said."""


@contextmanager
def small_disk(place: Path, mib: int) -> Iterator[Path]:
    """A tmpfs of this size in a new directory; gone at the end.

    Raises:
        CannotMount: root is needed, or a mount namespace: `unshare --map-root-user --mount`.
    """
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "relayd-test", str(place)],
        capture_output=True,
        check=False,
        timeout=30,
    )
    if mounted.returncode:
        raise CannotMount(mounted.stderr.decode().strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=30)


def fill(ballast: Path) -> None:
    """Take every free block of the file system into this file."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            while True:
                try:
                    file.write(b"x" * size)
                except OSError:
                    break
    assert os.statvfs(ballast).f_bavail == 0
