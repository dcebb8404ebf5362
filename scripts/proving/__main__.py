"""Chooses the proof, and says what is missing for it."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from proving import host, image, vps
from proving.roots import ProofFailed, Supplies

_NEEDED = ("debootstrap", "systemd-nspawn", "nsenter", "git")


def main() -> int:
    """Run one proof; the exit status is 1 where it failed."""
    parser = argparse.ArgumentParser(
        prog="scripts/prove", description="Prove what needs a machine of its own."
    )
    parser.add_argument("what", choices=["vps", "image"])
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "relayd-proving"
    parser.add_argument(
        "--cache", type=Path, default=cache, help="keeps the bare Debian (default: %(default)s)"
    )
    chosen = parser.parse_args()
    missing = [program for program in _NEEDED if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        print(f"scripts/prove must run as root and needs {', '.join(missing or _NEEDED)}.", file=sys.stderr)
        return 1
    supplies = Supplies(chosen.cache, host.effective_pip_settings())
    with tempfile.TemporaryDirectory(prefix="relayd-proof-", ignore_cleanup_errors=True) as home:
        try:
            {"vps": vps.prove, "image": image.prove}[chosen.what](supplies, Path(home))
        except ProofFailed as failure:
            print(f"\nNOT PROVED: {failure}", file=sys.stderr)
            return 1
    print("\nPROVED")
    return 0


if __name__ == "__main__":
    sys.exit(main())
