"""The command line. Building it imports nothing but argparse; each command imports what it needs."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib import import_module
from pathlib import Path

from relayd import __version__
from relayd.commands.client_options import add_bound_options
from relayd.durations import parse_duration
from relayd.state.calendar import local_date

EXIT_BROKEN_PIPE = 141
"""As a shell reports a death by SIGPIPE."""
EXIT_INTERRUPTED = 130
_WRITE_ERRORS = frozenset({errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; None takes the process's own.

    Returns:
        0 done, 1 refused or failed, 2 wrong usage, 3 no daemon at the socket.
    """
    _open_closed_streams()
    args = parser().parse_args(argv)
    if args.run is None:
        args.print_help()
        return 0
    try:
        # Imported only now, so that each command loads no more than it needs.
        module, name = args.run.split(":")
        status: int = getattr(import_module(module), name)(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has left: discard what is still buffered, without an error.
        _discard_output()
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except FileNotFoundError:
        if _has_working_directory():
            raise
        sys.stderr.write("relayd: The working directory was deleted. Go to another one: cd /\n")
        return 1
    except OSError as error:
        if error.errno not in _WRITE_ERRORS or error.filename is not None:
            raise
        _discard_output()
        sys.stderr.write(
            f"relayd: The output could not be written: {error.strerror}. Send it to another file.\n"
        )
        return 1
    return status


def _open_closed_streams() -> None:
    """Give each standard stream that the shell has closed (`>&-`) a place, which no other file gets then."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # What is written to stdout must fail, as on a full disk: it may be a key that is shown only once.
            access = os.O_WRONLY if name == "stderr" else os.O_RDONLY
            setattr(sys, name, os.fdopen(os.open(os.devnull, access), mode, encoding="utf-8"))


def _discard_output() -> None:
    """Send what is still buffered nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; a command without its subcommand shows its help."""
    relayd = argparse.ArgumentParser(
        prog="relayd",
        description="Lend one provider key, safely and visibly.",
        epilog="Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 no daemon at the socket.",
        allow_abbrev=False,
    )
    relayd.add_argument("--version", action="version", version=f"relayd {__version__}")
    relayd.set_defaults(run=None, print_help=relayd.print_help)
    commands = relayd.add_subparsers(dest="command", metavar="COMMAND")
    _add_local(commands)
    _add_init(commands)
    _add_doctor(commands)
    _add_status_and_log(commands)
    _add_control(commands)
    _add_keys(commands)
    _add_clients(commands)
    _add_usage(commands)
    return relayd


_Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for its type


def _add_local(commands: _Commands[argparse.ArgumentParser]) -> None:
    serve = _command(commands, "serve", "relayd.commands.serve:run", "run the daemon")
    serve.add_argument(
        "--demo", action="store_true", help="answer from a small offline upstream; needs no provider key"
    )
    serve.add_argument(
        "--demo-without-key", action="store_true", help="as --demo, but only if there is no provider key"
    )
    serve.add_argument(
        "--workers", metavar="N", type=int, help="serve with N processes (default: server.workers)"
    )
    check = _command(
        commands,
        "check",
        "relayd.commands.check:run",
        "show the settings in effect, and what is wrong with them",
    )
    check.add_argument(
        "--upstream", action="store_true", help="ask the provider as well, step by step; costs nothing"
    )
    _add_socket_and_json(check)
    for parser in (serve, check):
        parser.add_argument(
            "--config", metavar="FILE", type=Path, help="read this file instead of relayd.toml"
        )


def _add_init(commands: _Commands[argparse.ArgumentParser]) -> None:
    init = _command(commands, "init", "relayd.init.command:run", "write a configuration that works")
    init.add_argument(
        "--system",
        action="store_true",
        help="install for the whole machine, as a systemd service; needs root",
    )
    init.add_argument("--config", metavar="FILE", type=Path, help="write this file instead of ./relayd.toml")
    init.add_argument("--base-url", metavar="URL", help="the provider's address")
    init.add_argument(
        "--key-file", metavar="FILE", help="file with the provider's key; - reads it from stdin"
    )
    init.add_argument("--model", metavar="NAME", help="the model for requests that name none")
    init.add_argument("--host", metavar="ADDRESS", help="address to listen on")
    init.add_argument("--port", metavar="N", type=int, help="port to listen on")
    init.add_argument("--no-check", action="store_true", help="do not ask the provider")
    init.add_argument(
        "--yes", action="store_true", help="ask nothing; use the options given, else the defaults"
    )
    init.add_argument("--force", action="store_true", help="replace an existing configuration")
    init.add_argument(
        "--root",
        metavar="DIR",
        default="/",
        help="with --system: root directory of an image that is being built",
    )


def _add_doctor(commands: _Commands[argparse.ArgumentParser]) -> None:
    doctor = _command(
        commands,
        "doctor",
        "relayd.doctor.command:run",
        "test a deployment from outside, and say what to fix",
    )
    doctor.add_argument("url", metavar="URL", help="address of the relay, such as https://relay.example.com")
    doctor.add_argument(
        "--key-file",
        metavar="FILE",
        help="file with a client's key; - reads it from stdin (default: $AUTHORIZATION_KEY)",
    )
    doctor.add_argument(
        "--origin", metavar="ORIGIN", help="origin of a web page that should be able to use the relay"
    )
    doctor.add_argument(
        "--ca", metavar="FILE", type=Path, help="trust this authority instead of the system's"
    )
    doctor.add_argument("--address", metavar="IP", help="connect to this address instead of the one in DNS")
    doctor.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_status_and_log(commands: _Commands[argparse.ArgumentParser]) -> None:
    _daemon_command(commands, "status", "control:status", "show the daemon at a glance")
    log = _daemon_command(commands, "log", "log:run", "show the requests to the relay, oldest first")
    log.add_argument("-f", "--follow", action="store_true", help="continue with new requests as they end")
    log.add_argument(
        "--since",
        metavar="2h",
        type=_duration,
        help="show all requests of the last 30s, 10m, 2h or 7d, not only the newest 50",
    )
    log.add_argument(
        "--where",
        metavar="FILTER",
        default="",
        help="show only the requests that match, such as 'status>=500 client=web'",
    )


def _add_control(commands: _Commands[argparse.ArgumentParser]) -> None:
    cancel = _daemon_command(commands, "cancel", "control:cancel", "end one open stream")
    cancel.add_argument("id", metavar="ID", help="the request's id, as `relayd log` shows it")
    _daemon_command(commands, "pause", "control:pause", "refuse new requests; open streams continue")
    _daemon_command(commands, "resume", "control:resume", "accept new requests again")
    _daemon_command(
        commands, "reload", "control:reload", "read configuration, certificates and the provider's key again"
    )
    drain = _daemon_command(
        commands, "drain", "control:drain", "let open streams finish, then stop the daemon"
    )
    drain.add_argument(
        "--instance", metavar="NAME", help="stop only this one of several instances that share the relay"
    )
    backup = _daemon_command(commands, "backup", "backup:run", "copy keys, audit and log into one file")
    backup.add_argument("file", metavar="FILE", type=Path, help="a new file; it is never overwritten")
    migrate = _command(
        commands,
        "migrate-state",
        "relayd.commands.migrate_state:run",
        "copy the state of a stopped daemon from SQLite into PostgreSQL",
    )
    migrate.add_argument(
        "url", metavar="URL", help="an empty database: postgresql://USER@HOST/NAME; - reads it from stdin"
    )
    migrate.add_argument("--config", metavar="FILE", type=Path, help="the daemon's relayd.toml")
    _add_socket_and_json(migrate)


def _add_keys(commands: _Commands[argparse.ArgumentParser]) -> None:
    keys = commands.add_parser("keys", help="list, make, rotate and revoke keys", allow_abbrev=False)
    keys.set_defaults(print_help=keys.print_help)
    actions = keys.add_subparsers(dest="action", metavar="ACTION")
    _daemon_command(
        actions, "list", "keys:list_keys", "show the keys: state, last use, and from which address"
    )
    add = _daemon_command(actions, "add", "keys:add", "make a key for a new client")
    import_key = _daemon_command(
        actions, "import", "keys:import_key", "give a new client a key of your own, read from stdin"
    )
    _daemon_command(
        actions, "find", "keys:find", "say whose key this is, live or dead; it is read from stdin"
    )
    rotate = _daemon_command(
        actions, "rotate", "keys:rotate", "make a new key for a client; the old one works for a grace period"
    )
    rotate.add_argument(
        "--grace", metavar="1h", type=_duration, help="how long the old key works: 30s, 10m, 2h or 7d"
    )
    extend = _daemon_command(actions, "extend", "keys:extend", "let a retiring key work longer")
    undo = _daemon_command(actions, "undo", "keys:undo", "take back a client's latest rotation")
    revoke = _daemon_command(actions, "revoke", "keys:revoke", "end a key now, for good")
    revoke.add_argument("--cut", action="store_true", help="end the streams that it opened, too")
    for parser in (add, import_key, rotate, undo):
        parser.add_argument("name", metavar="NAME", help="the client's name, such as default")
    for parser in (extend, revoke):
        parser.add_argument(
            "id", metavar="ID", help="the key's id, as `relayd keys list` shows it, or its client's name"
        )
    extend.add_argument("by", metavar="1h", type=_duration, help="how much longer")


def _add_usage(commands: _Commands[argparse.ArgumentParser]) -> None:
    usage = _daemon_command(commands, "usage", "usage:run", "show what was used: requests, tokens and money")
    usage.add_argument(
        "--by", choices=("client", "model", "day", "key"), default="client", help="what each line sums up"
    )
    usage.add_argument(
        "--since",
        metavar="7d",
        type=_day,
        help="the first day: 2026-01-31, or 7d ago (default: the first of this month)",
    )
    usage.add_argument("--until", metavar="DAY", type=_day, help="the last day (default: today)")
    usage.add_argument("--client", metavar="NAME", help="count this client alone")
    usage.add_argument("--csv", action="store_true", help="print CSV, for spreadsheets")


def _day(text: str) -> str:
    """Return a day as the admin API reads it; a span means that long ago."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        pass
    try:
        span_s = parse_duration(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is neither a day nor a span; write 2026-01-31 or 7d"
        ) from None
    return local_date(time.time() - span_s).isoformat()


def _add_clients(commands: _Commands[argparse.ArgumentParser]) -> None:
    clients = commands.add_parser(
        "clients", help="list, add, change and remove clients and their bounds", allow_abbrev=False
    )
    clients.set_defaults(print_help=clients.print_help)
    actions = clients.add_subparsers(dest="action", metavar="ACTION")
    _daemon_command(
        actions, "list", "clients:list_clients", "show the clients: keys, use, last use and bounds"
    )
    add = _daemon_command(actions, "add", "clients:add", "make a client with its bounds and its first key")
    change = _daemon_command(
        actions, "set", "clients:set_bounds", "change bounds of a client; 'none' removes one"
    )
    remove = _daemon_command(
        actions, "remove", "clients:remove", "remove a client, and end its keys for good"
    )
    remove.add_argument("--cut", action="store_true", help="end its open streams, too")
    for parser in (add, change, remove):
        parser.add_argument("name", metavar="NAME", help="the client's name, such as anna")
    for parser in (add, change):
        add_bound_options(parser)


def _command(
    commands: _Commands[argparse.ArgumentParser], name: str, run: str, text: str
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: where to add it.
        name: on the command line.
        run: its function as `module:name`, imported when the command runs.
        text: what it does.
    """
    description = text[0].upper() + text[1:] + "."
    parser = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _daemon_command(
    commands: _Commands[argparse.ArgumentParser], name: str, answer: str, text: str
) -> argparse.ArgumentParser:
    """Add a command that asks the daemon; `answer` is its function below `relayd.commands`."""
    parser = _command(commands, name, "relayd.commands.console:run", text)
    parser.set_defaults(answer=answer)
    _add_socket_and_json(parser)
    return parser


def _add_socket_and_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", metavar="PATH", help="path of the daemon's admin socket")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def _duration(text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
