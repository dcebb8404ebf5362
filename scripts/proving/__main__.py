"""Chooses the proof, and says what is missing for it."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from proving import host, image, vps, wheel
from proving.roots import ProofFailed, Supplies

_PROOFS = {"vps": vps.prove, "image": image.prove, "wheel": wheel.prove}
_NEEDED = ("debootstrap", "systemd-nspawn", "nsenter", "git")


def main() -> int:
    """Run one proof; the exit status is 1 where it failed."""
    parser = argparse.ArgumentParser(
        prog="scripts/prove", description="Prove what needs a machine of its own."
    )
    parser.add_argument("what", choices=list(_PROOFS))
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "relayd-proving"
    parser.add_argument(
        "--cache", type=Path, default=cache, help="keeps the bare Debian (default: %(default)s)"
    )
    chosen = parser.parse_args()
    if chosen.what != "wheel" and (missing := _missing()):
        print(f"scripts/prove {chosen.what} needs {', '.join(missing)}.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended on the way out
    supplies = Supplies(chosen.cache, host.effective_pip_settings())
    with tempfile.TemporaryDirectory(prefix="relayd-proof-", ignore_cleanup_errors=True) as home:
        try:
            _PROOFS[chosen.what](supplies, Path(home))
        except ProofFailed as failure:
            print(f"\nNOT PROVED: {failure}", file=sys.stderr)
            return 1
    print("\nPROVED")
    return 0


def _missing() -> list[str]:
    """What a machine of its own can't be made without."""
    return [program for program in _NEEDED if shutil.which(program) is None] + ["root"] * (os.geteuid() != 0)


if __name__ == "__main__":
    sys.exit(main())
