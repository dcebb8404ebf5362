"""The command itself: what it asks, in which order it acts, how it ends."""

from __future__ import annotations

import asyncio
import getpass
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from relayd.config import ConfigError, Settings, load
from relayd.config.toml import commented_toml
from relayd.findings import collect, has_errors
from relayd.init import service
from relayd.init.desk import Desk, InitError
from relayd.init.plans import OwnPlan, Plan, SystemPlan
from relayd.init.questions import asked


def run(args: Namespace) -> int:
    """Carry out `relayd init`; returns the exit status."""
    present = sys.stdin.isatty() and not args.yes
    desk = Desk(
        os.environ, Path.cwd(), sys.stdout, input if present else None, getpass.getpass, sys.stdin.read
    )
    try:
        return init(args, desk)
    except (InitError, service.ServiceError) as error:
        sys.stderr.write(f"relayd: {error}\n")
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
    except OSError as error:
        sys.stderr.write(f"relayd: {error.filename or 'a file'}: {error.strerror or error}\n")
    except EOFError:
        sys.stderr.write("\nrelayd: the answer to a question is missing; nothing was changed.\n")
    return 1


def init(args: Namespace, desk: Desk) -> int:
    """Ask, check, write, start: nothing is changed before the check.

    Raises:
        InitError: it can't go on.
        ConfigError: what was given makes no configuration.
        ServiceError: the service can't be installed or started.
        OSError: a file can't be read or written.
        EOFError: nobody answered.
    """
    known = _given(args)
    plan = _plan(args, known, desk)
    if plan.config.exists() and not args.force:
        return plan.keep(desk)
    values = known | asked(known, desk, lambda found: _settings(known | found, "", desk))
    plan = _plan(args, values, desk)
    key = _key(args, desk)
    settings = _settings(values, key, desk)
    if key and not args.no_check:
        _check(settings, desk)
    plan.write(commented_toml(values | plan.values(key)), key, desk)
    return plan.finish(settings, desk)


def _given(args: Namespace) -> dict[str, object]:
    flags = {
        "server.host": args.host,
        "server.port": args.port,
        "chat.default_model": args.model,
        "upstream.base_url": args.base_url,
    }
    return {name: value for name, value in flags.items() if value is not None}


def _plan(args: Namespace, values: Mapping[str, object], desk: Desk) -> Plan:
    server = _settings(values, "", desk).server
    if args.system:
        machine = service.Machine(Path(args.root), service.program(sys.argv[0]))
        return SystemPlan.on(machine, server.host, server.port)
    return OwnPlan.at(
        desk.cwd / (args.config or "relayd.toml"),
        _settings({}, "", desk),
        key_stays=args.key_file is None and "OPENAI_API_KEY" in desk.env,
    )


def _key(args: Namespace, desk: Desk) -> str:
    """The provider's key: from a file, stdin, the environment, or the person; empty where there is none."""
    if args.key_file is not None:
        text = desk.read_stdin() if args.key_file == "-" else Path(args.key_file).read_text(encoding="utf-8")
        if not text.strip():
            raise InitError("--key-file holds no key.")
        return text.strip()
    if "OPENAI_API_KEY" in desk.env:
        desk.say("The provider's key is taken from OPENAI_API_KEY.")
        return desk.env["OPENAI_API_KEY"]
    if desk.ask is not None:
        return desk.ask_secret("The provider's key (not shown; empty: later): ").strip()
    return ""


def _settings(values: Mapping[str, object], key: str, desk: Desk) -> Settings:
    """The values as the daemon would see them, checked by the same rules.

    Raises:
        ConfigError: one of them is impossible.
    """
    env = {name: desk.env[name] for name in ("HOME", "XDG_STATE_HOME") if name in desk.env}
    if key:
        env["OPENAI_API_KEY"] = key
    nowhere = desk.cwd / ".relayd-init-reads-nothing"
    return load(config_path=None, cli=values, env=env, cwd=nowhere, system_config=nowhere)


def _check(settings: Settings, desk: Desk) -> None:
    from relayd.commands.check_upstream import Provider, check  # noqa: PLC0415 - needs the SDK

    desk.say("Asking the provider:")
    if not has_errors(asyncio.run(collect(check(Provider.of(settings)), desk.out))):
        return
    if desk.ask is None:
        raise InitError("the provider can't be used; nothing was changed. --no-check skips this check.")
    if not desk.ask("Continue all the same? [y/N] ").strip().lower().startswith("y"):
        raise InitError("nothing was changed.")
