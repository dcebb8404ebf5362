"""A booted Debian, and a person at its terminal."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from proving.roots import ProofFailed, Supplies, call
from proving.terminal import at_terminal

_BOOT_S = 120.0
_WANTS_A_RESTART = 133
"""What systemd-nspawn --keep-unit ends with where the container asked for a reboot."""


class Machine:
    """One container with systemd as its first process; ended on leaving."""

    def __init__(self, supplies: Supplies, root: Path) -> None:
        self.root = root
        self._command = supplies.nspawn(root, "--boot", "systemd.log_level=warning")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._boot()
        return self

    def _boot(self) -> None:
        with (self.root.parent / "console.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_up()
        except BaseException:
            self._end()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._container.terminate()
        try:
            self._container.wait(60)
        except subprocess.TimeoutExpired:
            self._container.kill()
            self._container.wait()

    @property
    def _container(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise LookupError("not started yet")
        return self._process

    def reboot(self) -> None:
        """Go down and come up again. Raises ProofFailed."""
        with suppress(ProofFailed):  # the machine may be gone before it has answered
            self.run("systemctl", "reboot")
        try:
            status = self._container.wait(_BOOT_S)
        except subprocess.TimeoutExpired as failure:
            raise ProofFailed("the machine does not go down") from failure
        if status != _WANTS_A_RESTART:
            raise ProofFailed(f"the machine went down with {status}")
        self._boot()

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + _BOOT_S
        while True:
            try:
                state = call([*self._inside(), "systemctl", "is-system-running", "--wait"])
            except (ProofFailed, LookupError) as failure:
                # A bare container has units that can't start; what matters is that the boot is over.
                state = str(failure)
            if state.split()[-1:] in (["running"], ["degraded"]):
                return
            if time.monotonic() > deadline:
                raise ProofFailed(f"the machine does not boot: {state}")
            time.sleep(0.5)

    def _leader(self) -> int:
        """The container's first process, seen from here."""
        pid = self._container.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            raise LookupError("not started yet")
        return int(children[0])

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self._leader()}", "--mount", "--uts", "--ipc", "--net", "--pid", "--"]

    def run(self, *words: str) -> str:
        """Run a command as root; returns what it said. Raises ProofFailed."""
        return call([*self._inside(), *words])

    def type(self, user: str, script: str, answers: Sequence[tuple[str, str]] = ()) -> str:
        """Type a script at a user's terminal, and answer what is asked.

        Args:
            user: who types.
            script: ends at the first command that fails.
            answers: part of each question, in order, and what is typed then.

        Raises:
            ProofFailed: it failed, or takes too long.
        """
        shell = ["su", "--login", user, "--command", f"set -euxo pipefail; {script}"]
        return at_terminal(
            [*self._inside(), *shell], [(question, f"{answer}\n") for question, answer in answers]
        )
