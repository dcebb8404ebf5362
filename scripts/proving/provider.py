"""A provider of this machine, for proofs that ask one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PROVIDER_KEY = "provider-key-of-the-proof"


@contextmanager
def provider() -> Iterator[str]:
    """Relayd's offline upstream in the provider's place; yields its address."""
    env = {"RELAYD_DEMO_KEY": PROVIDER_KEY, "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "relayd.demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process.stdout.readline().strip() if process.stdout else ""
        finally:
            process.terminate()
