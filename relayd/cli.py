"""The command line. Building it imports nothing but argparse; each command imports what it needs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from relayd import __version__
from relayd.durations import parse_duration

EXIT_BROKEN_PIPE = 141
"""As a shell reports a death by SIGPIPE."""
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; None takes the process's own.

    Returns:
        0 done, 1 refused or failed, 2 wrong usage, 3 no daemon at the socket.
    """
    args = _parser().parse_args(argv)
    try:
        status = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read our output has seen enough. What is still buffered goes nowhere, in silence.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


def _run(args: argparse.Namespace) -> int:
    if args.command == "serve":
        from relayd.commands.serve import serve  # noqa: PLC0415 - only this command needs the daemon

        return serve(args.config, demo=args.demo, demo_without_key=args.demo_without_key)
    if args.command == "check":
        from relayd.commands.check import run as check  # noqa: PLC0415 - as above

        return check(args)
    if args.command == "init":
        from relayd.init.command import run as init  # noqa: PLC0415 - as above

        return init(args)
    if args.command == "doctor":
        from relayd.doctor.command import run as doctor  # noqa: PLC0415 - as above

        return doctor(args)
    from relayd.commands.remote import run  # noqa: PLC0415 - as above

    return run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="relayd",
        description="Lend one provider key, safely and visibly.",
        epilog="Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 no daemon at the socket.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"relayd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_local(commands)
    _add_init(commands)
    _add_doctor(commands)
    _add_remote(commands)
    _add_keys(commands)
    return parser


_Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for its type


def _add_local(commands: _Commands[argparse.ArgumentParser]) -> None:
    serve = _command(commands, "serve", "run the daemon", reaches_daemon=False)
    serve.add_argument(
        "--demo", action="store_true", help="answer from a small offline upstream; needs no provider key"
    )
    serve.add_argument(
        "--demo-without-key", action="store_true", help="as --demo, but only where there is no provider key"
    )
    check = _command(commands, "check", "show the effective settings, and what is wrong with them")
    check.add_argument(
        "--upstream", action="store_true", help="go to the provider as well, step by step; costs nothing"
    )
    for parser in (serve, check):
        parser.add_argument("--config", metavar="FILE", type=Path, help="instead of relayd.toml")


def _add_init(commands: _Commands[argparse.ArgumentParser]) -> None:
    init = _command(commands, "init", "write a configuration that works", reaches_daemon=False)
    init.add_argument(
        "--system", action="store_true", help="for the whole machine, as a systemd service; needs root"
    )
    init.add_argument("--config", metavar="FILE", type=Path, help="instead of relayd.toml, here")
    init.add_argument("--base-url", metavar="URL", help="the provider's address")
    init.add_argument("--key-file", metavar="FILE", help="holds the provider's key; - reads it from stdin")
    init.add_argument("--model", metavar="NAME", help="used when a request names none")
    init.add_argument("--host", metavar="ADDRESS", help="to listen on")
    init.add_argument("--port", metavar="N", type=int, help="to listen on")
    init.add_argument("--no-check", action="store_true", help="do not ask the provider")
    init.add_argument("--yes", action="store_true", help="ask nothing; take what is given, else the defaults")
    init.add_argument("--force", action="store_true", help="replace a configuration that is there")
    init.add_argument(
        "--root", metavar="DIR", default="/", help="with --system: of an image that is being made"
    )


def _add_doctor(commands: _Commands[argparse.ArgumentParser]) -> None:
    doctor = _command(
        commands, "doctor", "look at a deployment from outside, and say what to mend", reaches_daemon=False
    )
    doctor.add_argument("url", metavar="URL", help="of the relay, such as https://relay.example.com")
    doctor.add_argument(
        "--key-file",
        metavar="FILE",
        help="holds a client's key; - reads it from stdin (or AUTHORIZATION_KEY)",
    )
    doctor.add_argument("--origin", metavar="ORIGIN", help="of a page that should be able to call")
    doctor.add_argument("--ca", metavar="FILE", type=Path, help="trust this authority instead of the usual")
    doctor.add_argument("--address", metavar="IP", help="look there instead of where the name leads")
    doctor.add_argument("--json", action="store_true", help="answer in JSON, for programs")


def _add_remote(commands: _Commands[argparse.ArgumentParser]) -> None:
    _command(commands, "status", "the daemon at a glance")
    log = _command(commands, "log", "what was asked of the relay, oldest first")
    log.add_argument("-f", "--follow", action="store_true", help="go on with what is being asked")
    log.add_argument(
        "--since",
        metavar="2h",
        type=_duration,
        help="all of the last 30s, 10m, 2h or 7d, not just the newest 50",
    )
    log.add_argument(
        "--where", metavar="FILTER", default="", help="only what passes, such as 'status>=500 client=web'"
    )
    cancel = _command(commands, "cancel", "end one open stream")
    cancel.add_argument("id", metavar="ID", help="of the request, as `relayd log` shows it")
    _command(commands, "pause", "take no new work; open streams go on")
    _command(commands, "resume", "take new work again")
    _command(commands, "drain", "let open streams finish, then stop the daemon")


def _add_keys(commands: _Commands[argparse.ArgumentParser]) -> None:
    keys = commands.add_parser("keys", help="the keys of clients", allow_abbrev=False)
    actions = keys.add_subparsers(dest="action", metavar="ACTION", required=True)
    _command(actions, "list", "show them: state, last use, from where")
    add = _command(actions, "add", "make a key for a new client")
    rotate = _command(actions, "rotate", "make a new key for a client; the old one works on for a grace")
    rotate.add_argument("--grace", metavar="1h", type=_duration, help="such as 30s, 10m, 2h, 7d")
    extend = _command(actions, "extend", "let a retiring key work longer")
    undo = _command(actions, "undo", "take back a client's latest rotation")
    revoke = _command(actions, "revoke", "end a key now, for good")
    revoke.add_argument("--cut", action="store_true", help="end the streams too that it opened")
    for parser in (add, rotate, undo):
        parser.add_argument("name", metavar="NAME", help="of the client, such as default")
    for parser in (extend, revoke):
        parser.add_argument("id", metavar="ID", help="of the key, as `relayd keys list` shows it")
    extend.add_argument("by", metavar="1h", type=_duration, help="how much longer")


def _command(
    commands: _Commands[argparse.ArgumentParser], name: str, text: str, *, reaches_daemon: bool = True
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text.capitalize() + ".", allow_abbrev=False)
    if reaches_daemon:
        parser.add_argument("--socket", metavar="PATH", help="the daemon's admin socket")
        parser.add_argument("--json", action="store_true", help="answer in JSON, for programs")
    return parser


def _duration(text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
