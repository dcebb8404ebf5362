"""`relayd serve`: from the configuration to a running daemon, and its first messages to the operator."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import shlex
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvloop

from relayd.admin.events import EventBus
from relayd.admin.unix_socket import AdminSocket, AdminSocketError, open_admin_socket
from relayd.config import ConfigError, Settings, load
from relayd.files import demo_state_dir, write_file
from relayd.findings import Finding, Severity
from relayd.first_key import FIRST_KEY_FILE
from relayd.logs import set_up_logging
from relayd.printable import typeable
from relayd.processes import ask_for_descriptors, listening_process
from relayd.public.listener import bind, limit_send_buffer
from relayd.public.tls import TlsError, TlsFiles
from relayd.reload import ConfigReloader
from relayd.server import Server, new_boot_id, public_url
from relayd.state.directory import StateDirectory, refuse_network_file_system
from relayd.state.engine import Engine
from relayd.state.errors import RingError, StateError, StateUnreachable
from relayd.state.keyring import InitialKey, InitialKeyOutcome
from relayd.state.state import State
from relayd.supervisor import Supervisor, SupervisorLink
from relayd.systemd import ServiceManager, SystemdError, inherited_sockets, watchdog_period_s

_log = logging.getLogger(__name__)

_SWITCH_INTERVAL_S = 0.0005
_NEXT_START_S = 10.0
"""How long systemd waits for the end of a process that cannot reach its database."""

_TRY_BODY = '{"messages":[{"role":"user","content":"Say hi"}]}'


def run(args: Namespace) -> int:
    """Run the daemon until it stops; return the exit status.

    With `--demo` an offline upstream in this process takes the provider's place, with `--demo-without-key`
    only if there is no provider key. Its state directory is its own unless the configuration names one.
    """
    options: dict[str, object] = {"server.workers": args.workers}
    try:
        inherited = inherited_sockets(os.environ)
        read = partial(
            load,
            config_path=args.config,
            env=os.environ,
            cwd=Path.cwd(),
            listening=[sock.getsockname()[:2] for sock in inherited],
        )
        settings = read(cli=options)
        demo: bool = args.demo or (args.demo_without_key and settings.provider_key_remedy is not None)
        if demo and settings.origins["state_dir"].variable in {"HOME", "XDG_STATE_HOME"}:
            options["state_dir"] = demo_state_dir(settings.state_dir)
            settings = read(cli=options)
        if demo:
            _refuse_shared_database(settings)
        else:
            _require_provider_key(settings)
    except (ConfigError, SystemdError) as error:
        return _refuse(str(error))
    set_up_logging(settings.log.level, os.environ)
    for warning in settings.warnings:
        _log.warning("%s", typeable(warning))

    def reread() -> Settings:
        new = read(cli=options)
        if not demo:
            _require_provider_key(new)
        return new

    # After each disk write the writer's thread waits this long for the loop's; by default it is 5 ms.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        return _serve(_Plan(settings, reread, inherited, demo))
    except _REFUSALS as error:
        return _refuse_start(error, settings)
    except OSError as error:
        return _refuse(f"relayd cannot start: {error}")


@dataclass(frozen=True, slots=True)
class _Plan:
    settings: Settings
    reread: Callable[[], Settings]
    inherited: list[socket.socket]
    """Listening sockets from systemd."""
    demo: bool


def _require_provider_key(settings: Settings) -> None:
    """Raise ConfigError if there is none."""
    remedy = settings.provider_key_remedy
    if remedy is not None:
        message = f"it is missing; {remedy}, or try relayd without one: relayd serve --demo"
        raise ConfigError([Finding(Severity.ERROR, "provider key", message, key="openai_api_key")])


def _refuse_shared_database(settings: Settings) -> None:
    """Raise ConfigError if a demo would use a database: real relays would accept its keys."""
    if settings.state.is_on_server:
        message = (
            "it would share keys, clients and log with the relays of the database in state.url; "
            "start it without one: RELAYD_STATE__URL= RELAYD_STATE__URL_FILE= relayd serve --demo"
        )
        raise ConfigError([Finding(Severity.ERROR, "demo", message, key="state.url")])


class _ListenError(Exception):
    """The public address cannot be listened on."""


_REFUSALS = (AdminSocketError, _ListenError, RingError, StateError, TlsError)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where relayd serves."""

    sockets: list[socket.socket]
    directory: StateDirectory
    admin_socket: AdminSocket
    tls: TlsFiles | None


def _serve(plan: _Plan) -> int:
    settings, tls = plan.settings, plan.settings.tls
    tls_files = None if tls.cert is None or tls.key is None else TlsFiles(tls.cert, tls.key)
    with ExitStack() as held:
        sockets = _public_sockets(plan)
        for sock in sockets:
            held.enter_context(sock)
        # Before the admin socket, which is usually in it.
        has_database = not settings.state.is_on_server
        directory = StateDirectory(settings.state_dir, has_database=has_database)
        with ExitStack() as undo:
            undo.enter_context(directory)
            admin_socket = held.enter_context(
                open_admin_socket(
                    settings.admin.socket, group=settings.admin.group, state_dir=settings.state_dir
                )
            )
            # The state closes the directory, or keeps its lock if a thread still writes.
            undo.pop_all()
        place = _Place(sockets, directory, admin_socket, tls_files)
        if settings.server.workers == 1:
            return _run_server(plan, place, None)
        with directory:
            return _supervise(plan, place)


def _supervise(plan: _Plan, place: _Place) -> int:
    """Serve with several processes, as their supervisor. The last of them to end gives up the lock."""
    settings = plan.settings
    if not settings.state.is_on_server:
        refuse_network_file_system(settings.state_dir)

    def work(link: SupervisorLink) -> int:
        try:
            return _run_server(plan, place, link)
        except _REFUSALS as error:
            return _refuse_start(error, settings)

    # Import nothing and collect nothing more: what the workers have in common stays shared.
    gc.collect()
    gc.freeze()
    return Supervisor(
        settings.server.workers,
        work,
        place.sockets,
        ServiceManager.from_environment(os.environ),
        watchdog_s=watchdog_period_s(os.environ),
    ).run()


def _run_server(plan: _Plan, place: _Place, supervisor: SupervisorLink | None) -> int:
    ask_for_descriptors(plan.settings.server.max_streams)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve_at(plan, place, supervisor))


def _public_sockets(plan: _Plan) -> list[socket.socket]:
    """Return the sockets that systemd passed, else new ones. Raises _ListenError."""
    if plan.inherited:
        for sock in plan.inherited:
            limit_send_buffer(sock)
        return plan.inherited
    server = plan.settings.server
    try:
        return bind(server.host, server.port)
    except OSError as error:
        where = f"relayd cannot listen on {server.host} port {server.port}: {error.strerror or error}"
        holder = listening_process(server.port) if error.errno == errno.EADDRINUSE else None
        if holder is not None:
            where += f" by {holder}; stop that first, or"
        else:
            where += ";"
        raise _ListenError(f"{where} set server.host and server.port to an address that is free.") from error


def _engine(settings: Settings) -> Engine | None:
    """Return the database that several machines share; None: it is a file in the state directory."""
    url = settings.state.url.get_secret_value()
    if not url:
        return None
    from relayd.state.postgres import Postgres  # noqa: PLC0415 - psycopg takes memory and time, and few need it

    return Postgres(url)


async def _serve_at(plan: _Plan, place: _Place, supervisor: SupervisorLink | None) -> int:
    settings = plan.settings
    boot_id = new_boot_id()
    event_bus = EventBus()
    is_first = supervisor is None or supervisor.is_first
    state = State.open(
        place.directory,
        boot_id=boot_id,
        keep_days=settings.log.retention_days,
        max_mib=settings.log.max_mib,
        on_commit=event_bus.publish,
        worker=None if supervisor is None else supervisor.number,
        is_shared=supervisor is not None,
        is_first=is_first,
        engine=_engine(settings),
    )
    given = settings.authorization_key
    try:
        initial = state.ring.ensure_initial_key(given.get_secret_value() if given is not None else None)
    except RingError:
        state.close()
        raise
    host, port, *_ = place.sockets[0].getsockname()
    url = public_url(host, port, tls=place.tls is not None)
    messages = _first_messages(initial, settings, url, demo=plan.demo) if is_first else []

    def announce(line: str) -> None:
        if is_first:
            sys.stderr.write("\n".join([line, *map(typeable, messages), ""]))
            sys.stderr.flush()

    manager = supervisor or ServiceManager.from_environment(os.environ)
    server = Server(
        ConfigReloader(settings, plan.reread, manager),
        state,
        boot_id=boot_id,
        demo=plan.demo,
        announce=announce,
        manager=manager,
        tls=place.tls,
    )
    return await server.run(place.sockets, place.admin_socket, event_bus)


def _first_messages(initial: InitialKey, settings: Settings, url: str, *, demo: bool) -> list[str]:
    """Return what to tell the operator once the daemon serves; a first key is shown here and nowhere else."""
    messages = []
    if demo:
        messages.append("This is a demo: answers come from a small offline upstream, no provider is asked.")
    if initial.note is not None:
        _log.warning("%s", typeable(initial.note))
    key = "$AUTHORIZATION_KEY" if os.environ.get("AUTHORIZATION_KEY") else "YOUR-KEY"
    first_line = []
    if initial.outcome is InitialKeyOutcome.MADE and initial.secret is not None:
        if sys.stderr.isatty():
            key = initial.secret
            messages += [
                "",
                "The first authorization key, shown only this once:",
                "",
                f"    {initial.secret}",
                "",
            ]
        else:
            path = settings.state_dir / FIRST_KEY_FILE
            # In a variable: the file goes with the first use of the key.
            key, first_line = "$key", [f"    key=$(cat {shlex.quote(str(path))})"]
            messages.append(_save_first_key(path, initial.secret))
    elif initial.unused is not None:
        messages.append(_find_first_key(settings.state_dir / FIRST_KEY_FILE, initial.unused.client))
    elif demo and key == "YOUR-KEY":
        messages.append("The key is the one of the first start; if it is lost: relayd keys rotate default")
    if not demo and initial.outcome is not InitialKeyOutcome.MADE:
        return messages
    messages += [
        "Try it:",
        "",
        *first_line,
        f"    curl -N {url}/chat -H \"Authorization: {key}\" -d '{_TRY_BODY}'",
        "",
    ]
    return messages


def _save_first_key(path: Path, secret: str) -> str:
    """Save the first key, and return where it is, or how to get another if it could not be saved."""
    try:
        write_file(path, secret + "\n", mode=0o600)
    except OSError as error:
        return (
            f"The first authorization key could not be saved in {path} ({error.strerror}) and is lost; "
            "make another: relayd keys rotate default --grace 0s"
        )
    return _first_key_in(path)


def _first_key_in(path: Path) -> str:
    return f"The first authorization key is in {path}. Keep it: the file is deleted once the key was used."


def _find_first_key(path: Path, client: str) -> str:
    """Return where the first key is, or how to get another: the first start may have been killed early."""
    if path.is_file():
        return _first_key_in(path)
    return (
        "No authorization key has been used yet. If the first one was lost, make another: "
        f"relayd keys rotate {client} --grace 0s"
    )


def _refuse_start(error: Exception, settings: Settings) -> int:
    status = _refuse(str(error))
    is_shared = settings.state.is_on_server
    if is_shared and isinstance(error, StateUnreachable) and "NOTIFY_SOCKET" in os.environ:
        # After five quick starts systemd gives up; after a power cut, the database may come up much later.
        time.sleep(_NEXT_START_S)
    return status


def _refuse(sentence: str) -> int:
    sys.stderr.write(typeable(sentence) + "\n")
    return 1
