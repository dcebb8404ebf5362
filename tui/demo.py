"""The daemon behind `--demo`: a real one, as a child process, with a made-up past and made-up clients."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relayd.files import SOCKET


@contextmanager
def demo_daemon() -> Iterator[Path]:
    """Run the daemon; yield the path of its admin socket, which is there within a second or two.

    The daemon ends with this process, however that ends: its standard input is a pipe that closes.
    """
    with tempfile.TemporaryDirectory(prefix="relayd-demo-", ignore_cleanup_errors=True) as directory:
        daemon = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "relayd.demo.showcase", directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield Path(directory, SOCKET)
        finally:
            # Nothing of it is to be kept, so it need not end in order.
            daemon.kill()
            daemon.communicate()
