"""The command itself: what it asks, in which order it acts, how it ends."""

from __future__ import annotations

import getpass
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import uvloop

from relayd.config import ConfigError, Settings, load
from relayd.config.toml import commented_toml
from relayd.findings import collect, has_errors
from relayd.init.install import (
    Console,
    InitError,
    SystemInstall,
    UserInstall,
    Values,
    program,
    refuse_hidden,
)
from relayd.printable import typeable

_KEY_FILE = "provider-key"
_QUESTIONS = {"upstream.base_url": "The provider's address", "server.port": "Port to listen on"}


def run(args: Namespace) -> int:
    """Carry out `relayd init`; returns the exit status."""
    is_interactive = sys.stdin.isatty() and not args.yes
    ask = input if is_interactive else None
    console = Console(os.environ, Path.cwd(), sys.stdout, ask, getpass.getpass, sys.stdin.read)
    try:
        return init(args, console)
    except InitError as error:
        sys.stderr.write(f"relayd: {typeable(str(error))}\n")
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
    except OSError as error:
        # Of two names, the second is where a file was to go.
        where = error.filename2 or error.filename or "a file"
        sys.stderr.write(f"relayd: {where}: {error.strerror or error}\n")
    except EOFError:
        sys.stderr.write("\nrelayd: the answer to a question is missing; nothing was changed.\n")
    return 1


def init(args: Namespace, console: Console) -> int:
    """Ask, check, write, start: nothing is changed before the check.

    Raises:
        InitError: it cannot continue.
        ConfigError: the values make no configuration.
        OSError: a file cannot be read or written.
        EOFError: an answer is missing.
    """
    flags = _flags(args)
    _settings(flags, "", console)  # report a wrong flag before asking anything
    install = _install(args, console)
    if install.config.exists() and not args.force:
        return install.keep(console, partial(_new_key, args, install.config, console))
    values = _ask_settings(flags, console)
    key = _checked_key(args, console)
    settings = _settings(values, key, console)
    if key and not args.no_check:
        _check_upstream(settings, console)
    install.write(commented_toml(values | install.values(key)), key, console)
    return install.finish(settings, console)


def _flags(args: Namespace) -> Values:
    flags = {
        "server.host": args.host,
        "server.port": args.port,
        "chat.default_model": args.model,
        "upstream.base_url": args.base_url,
    }
    return {name: value for name, value in flags.items() if value is not None}


def _ask_settings(known: Values, console: Console) -> Values:
    """Ask for what flags left open; Enter keeps the default, an unusable answer is asked again."""
    values = dict(known)
    for name, question in _QUESTIONS.items():
        if console.ask is None or name in known:
            continue
        default = _settings(values, "", console).value(name)
        while answer := console.ask(f"{question} [{default}]: ").strip():
            try:
                values[name] = _settings(values | {name: answer}, "", console).value(name)
                break
            except ConfigError as error:
                console.say(f"That cannot be used: {error.problems[0].message}")
    return values


def _install(args: Namespace, console: Console) -> UserInstall | SystemInstall:
    if not args.system:
        return UserInstall(
            console.cwd / (args.config or "relayd.toml"),
            _settings({}, "", console).state_dir / _KEY_FILE,
            key_is_in_environment=args.key_file is None and "OPENAI_API_KEY" in console.env,
        )
    install = SystemInstall(Path(args.root), program(sys.argv[0]))
    if install.root == Path("/"):
        if os.geteuid() != 0:
            raise InitError("--system changes the whole machine; run it as root: sudo relayd init --system")
        refuse_hidden(install.program)
    return install


def _read_key(args: Namespace, console: Console) -> str:
    """Return the provider's key from a file, stdin, the environment or the person; empty if there is none."""
    if args.key_file is not None:
        try:
            text = console.read_stdin() if args.key_file == "-" else Path(args.key_file).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise InitError("--key-file is not text, so it is not the provider's key.") from error
        if not text.strip():
            raise InitError("--key-file contains no key.")
        return text.strip()
    if "OPENAI_API_KEY" in console.env:
        console.say("The provider's key is taken from OPENAI_API_KEY.")
        return console.env["OPENAI_API_KEY"]
    if console.ask is not None:
        return console.ask_secret("The provider's key (not shown; empty: later): ").strip()
    return ""


def _checked_key(args: Namespace, console: Console) -> str:
    """Return the provider's key; empty if there is none. Raises InitError if it cannot be one."""
    key = _read_key(args, console)
    try:
        _settings({}, key, console)
    except ConfigError as error:
        raise InitError(f"that is not a key: {error.problems[0].message}") from error
    return key


def _new_key(args: Namespace, config: Path, console: Console) -> str:
    """Return a key for a configuration that is kept and has none; empty if there is none yet."""
    key = _checked_key(args, console)
    if key:
        settings = load(config_path=config, cli={}, env={"OPENAI_API_KEY": key}, cwd=config.parent)
        if not args.no_check:
            _check_upstream(settings, console)
    return key


def _settings(values: Mapping[str, object], key: str, console: Console) -> Settings:
    """Return the values as the daemon would see them. Raises ConfigError."""
    env = {name: console.env[name] for name in ("HOME", "XDG_STATE_HOME") if name in console.env}
    if key:
        env["OPENAI_API_KEY"] = key
    nowhere = console.cwd / ".relayd-init-reads-nothing"
    return load(config_path=None, cli=values, env=env, cwd=nowhere, system_config=nowhere)


def _check_upstream(settings: Settings, console: Console) -> None:
    """Ask the provider. Raises InitError if it cannot be used and the person does not insist."""
    from relayd.commands.check_upstream import Provider, check_all  # noqa: PLC0415 - needs the SDK

    console.say("Asking the provider:")
    if not has_errors(uvloop.run(collect(check_all(Provider.all_of(settings)), console.out))):
        return
    if console.ask is None:
        raise InitError("the provider cannot be used; nothing was changed. --no-check skips this check.")
    if not console.ask("Continue anyway? [y/N] ").strip().lower().startswith("y"):
        raise InitError("nothing was changed.")
