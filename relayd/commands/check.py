"""`relayd check`: the settings as the daemon would see them."""

from __future__ import annotations

import json
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
    else:
        problem = checkcmd.tls_problem(found)
        if problem is not None:
            found = ConfigError([problem])
    if args.upstream and isinstance(found, Settings):
        return _check_upstream(found, as_json=args.json)
    return checkcmd.run(found, args.json, sys.stdout, sys.stderr)


def _check_upstream(settings: Settings, *, as_json: bool) -> int:
    from relayd.checkupstream import Provider, document, show  # noqa: PLC0415 - only this needs the network

    provider = Provider.of(settings)
    if not as_json:
        return 0 if show(provider) else 1
    told = document(provider)
    sys.stdout.write(json.dumps(told) + "\n")
    return 0 if told["ok"] else 1
