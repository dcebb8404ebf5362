"""`relayd check`: the settings as the daemon would see them."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path

from relayd import checkcmd
from relayd.config import ConfigError, Settings, load


def run(args: Namespace) -> int:
    """Load and show them; returns the exit status."""
    overrides = {} if args.socket is None else {"admin.socket": args.socket}
    found: Settings | ConfigError
    try:
        found = load(config_path=args.config, cli=overrides, env=os.environ, cwd=Path.cwd())
    except ConfigError as error:
        found = error
    return checkcmd.run(found, args.json, sys.stdout, sys.stderr)
