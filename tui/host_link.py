"""The way to a daemon on a server: the system's ssh, which forwards the admin socket.

One `ssh` runs for each server. It is the master of its connection (`ControlMaster`, ssh_config(5)), so the
forwarding can be added once the daemon's socket is found. Its session is a shell that looks for the socket
and ends with its input: however this process ends, its ssh ends too.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Never

from relayd.admin.client import (
    AdminClient,
    AdminClientError,
    AnswerUnknown,
    Denied,
    NoDaemon,
    Refused,
    Response,
    Unreachable,
    VersionMismatch,
)
from relayd.files import SERVICE_DIRS, SOCKET
from tui.hosts import Host, HostError
from tui.model.text import printable_text

_OPTIONS = {
    "ControlMaster": "yes",
    "ControlPersist": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    # Says why a channel can't be opened.
    "LogLevel": "INFO",
    "ConnectTimeout": "15",
    # A network that is gone is noticed after 15 s.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
}
_AGAIN_WITHIN_S = 30.0
_LOOK_WITHIN_S = 30.0
_WAIT_FOR_LINK_S = 2.0
_SAID_WITHIN_S = 0.5
END_WITHIN_S = 1.0
_LAST_WORDS_WITHIN_S = 10.0
_KEPT_LINES = 20
_MAX_NOISE_LINES = 1000
_READ_BYTES = 1 << 16
_MARK = "relayd-tui"
_DENIED_WORDS = 6
_LONGEST_REASON = 1000
# ssh takes a forwarding apart at colons, and replaces `%` and `$` (ssh_config(5), TOKENS).
_PLAIN_PATH = re.compile(r"/[\w./+,@=~-]*")
_LONGEST_DIRECTORY = 40
"""The path of a Unix socket has at most 107 bytes (unix(7)), and ssh adds 17 to that of its own."""

# The rules of relayd.files, by the environment there. It answers at once, and after each line of input
_LOOK = r"""
say() { printf 'relayd-tui %s\n' "$*"; }
denied() {
  ls -ld "$1" 2>/dev/null | {
    read -r mode _ owner group _
    say denied "$(id -un)" "${mode:--}" "${owner:--}" "${group:--}" "$1"
  }
}
look() {
  for file do
    case $file in /*) ;; '~/'*) file=$HOME/${file#??} ;; *) file=$HOME/$file ;; esac
    if [ -S "$file" ]; then
      if ! [ -r "$file" ] || ! [ -w "$file" ]; then denied "$file"; return; fi
      # relayd binds its socket under another name in the same directory.
      if grep -qsF " ${file%/*}/" /proc/net/unix; then say bound "$file"; else say stale "$file"; fi
      return
    fi
    way=${file%/*}
    while [ -n "$way" ] && ! [ -d "$way" ]; do way=${way%/*}; done
    if [ -n "$way" ] && ! [ -x "$way" ]; then denied "$way"; return; fi
  done
  say none
}
search() {
  state=${XDG_STATE_HOME:-$HOME/.local/state}
  named=${NAMED:-$RELAYD_ADMIN__SOCKET}
  [ -n "$named" ] || [ -z "$RELAYD_STATE_DIR" ] || named=$RELAYD_STATE_DIR/SOCKET
  if [ -n "$named" ]; then look "$named"; else
    look "$state/relayd/SOCKET" SERVICES "$state/relayd-demo/SOCKET"; fi
}
search
while read -r _; do search; done
"""

# What ssh says, what the operator can do, and whether only a person can mend it.
_FAULTS = (
    (
        "IDENTIFICATION HAS CHANGED",
        "Another machine may answer in its place. Find out why before you remove the old key: {forget}",
        True,
    ),
    (
        "Host key verification failed",
        "ssh does not trust its host key. Look at the key once: {command}",
        True,
    ),
    ("Permission denied (", "The server did not let you in. Check user name and key: {command}", True),
    ("Too many authentication failures", "The server did not let you in: ssh offers it too many keys.", True),
    ("Could not resolve hostname", "Check the name; it may be one of ssh's configuration.", False),
    ("Connection refused", "No ssh server answers there. Check the port: --host [user@]server:port", False),
    ("timed out", "The server does not answer. Check name, network and firewall.", False),
)
_NO_SSH = "There is no `ssh` on this machine. Install OpenSSH's client; on Debian: apt install openssh-client"


class HostLink:
    """One server's ssh, and the daemon's admin socket on this side of it.

    Args:
        host: the server.
        named: the socket's path there; empty: it is looked for.
        env: the environment of ssh: its agent, its terminal.
    """

    def __init__(self, host: Host, named: str, env: Mapping[str, str]) -> None:
        self.host = host
        self.path = ""
        """The admin socket's path on the server, once it is found."""
        self.failures = 0
        """How many connections to the socket the server has refused."""
        self.asked = self.answered = 0
        """How many questions were sent, and how many of them are over or have their answer."""
        self._env = dict(env)
        self._script = _script(named)
        self._directory = Path(tempfile.mkdtemp(prefix="relayd-ssh-", dir=_base_directory()))
        self.socket = self._directory / SOCKET
        self._ssh: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._problem: HostError | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._told = asyncio.Condition()
        self._asking = asyncio.Lock()

    @property
    def is_up(self) -> bool:
        """Whether ssh is connected, as far as it knows."""
        return self._connecting is None and self._runs()

    def _runs(self) -> bool:
        return (
            self._ssh is not None
            and self._ssh.returncode is None
            and self._reading is not None
            and not self._reading.done()
        )

    async def connect(self, *, may_ask: bool) -> None:
        """Log in, look for the daemon's socket and forward it.

        Args:
            may_ask: whether ssh may use this terminal, for a password or the question about a new host key.

        Raises:
            HostError: that failed.
        """
        await self._end()
        self._lines.clear()
        # An ssh that was killed leaves both, and the next one would not listen there.
        for left in (self._control, self.socket):
            left.unlink(missing_ok=True)
        self._ssh = ssh = await self._start(may_ask=may_ask)
        self._reading = asyncio.create_task(self._read_errors(ssh, echo=may_ask), name="ssh-errors")
        try:
            async with asyncio.timeout(None if may_ask else _AGAIN_WITHIN_S):
                self._take(await self._ask(self._script) or await self._no_shell(ssh))
                await self._forward()
        except TimeoutError:
            await self._end()
            raise HostError(f"ssh to {self.host}: not connected within {_AGAIN_WITHIN_S:g} s.") from None
        except BaseException:
            await self._end()
            raise

    async def _start(self, *, may_ask: bool) -> Process:
        options = {**_OPTIONS, "ControlPath": str(self._control), **({} if may_ask else {"BatchMode": "yes"})}
        arguments = [f"-o{name}={value}" for name, value in options.items()]
        try:
            return await asyncio.create_subprocess_exec(
                _program(self._env),
                *arguments,
                *self.host.arguments,
                "exec sh -s",
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env=self._env,
            )
        except OSError as error:
            raise HostError(f"ssh can't be started: {error.strerror}.", needs_person=True) from error

    @property
    def _control(self) -> Path:
        return self._directory / "ssh"

    async def _read_errors(self, ssh: Process, *, echo: bool) -> None:
        """Keep what ssh says, and count the connections that the server refuses."""
        while line := await _line(ssh.stderr):
            text = printable_text(line.decode(errors="replace").rstrip(), 500)
            self._lines.append(text)
            if echo and not self.path:
                sys.stderr.write(f"{text}\n")
            if "open failed" in text:
                self.failures += 1
                await self._tell()
        await self._tell()

    async def _tell(self) -> None:
        async with self._told:
            self._told.notify_all()

    async def _ask(self, text: str) -> list[str] | None:
        """Send a line to the shell on the server and return its answer; None if it gives none."""
        ssh = self._ssh
        if ssh is None or ssh.stdin is None:
            return None
        async with self._asking:
            # An ssh that has ended; RuntimeError is uvloop's word for it.
            with suppress(ConnectionError, RuntimeError):
                ssh.stdin.write(text.encode())
                await ssh.stdin.drain()
            for _ in range(_MAX_NOISE_LINES):
                line = await _line(ssh.stdout)
                if not line:
                    return None
                mark, *answer = line.decode(errors="replace").rstrip("\n").split(" ", 6)
                if mark == _MARK:
                    return answer
        return None

    async def _no_shell(self, ssh: Process) -> Never:
        """Raise HostError with why there is no answer."""
        if ssh.stdout is not None and not ssh.stdout.at_eof():
            command = shlex.join(["ssh", *self.host.arguments, "true"])
            raise HostError(
                f"ssh to {self.host}: the shell there prints over {_MAX_NOISE_LINES} lines before it runs a"
                f" command. Its start-up files should print nothing without a terminal; see: {command}",
                needs_person=True,
            )
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_WITHIN_S):
                await ssh.wait()
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=_LAST_WORDS_WITHIN_S)
        raise _refusal(self.host, list(self._lines))

    def _take(self, answer: list[str]) -> None:
        """Take over what was found at first; later, the daemon may be down for a while."""
        match answer:
            case ["bound" | "stale", *path]:
                self.path = " ".join(path)
            case ["denied", *_]:
                raise HostError(self._denial(answer), needs_person=True)
            case _ if not self.path:
                raise HostError(
                    f"There is no relayd on {self.host.server}: no admin socket is in the usual places. Start"
                    " it there, or name its socket: --socket PATH",
                    needs_person=True,
                )

    def _denial(self, answer: list[str]) -> str:
        # What is not said is unknown.
        user, mode, owner, group, *words = [*answer[1:], *["-"] * (_DENIED_WORDS - len(answer))]
        path = " ".join(words)
        return printable_text(
            f"You are {user} on {self.host.server}, and may not use {path} there (owner {owner},"
            f" group {group}, mode {mode}). Log in as {owner} or root, or set admin.group in its relayd.toml"
            f" and join that group there: sudo usermod -aG GROUP {user}",
            _LONGEST_REASON,
        )

    async def _forward(self) -> None:
        if not _PLAIN_PATH.fullmatch(self.path):
            path = printable_text(self.path)
            raise HostError(f"ssh can't forward a socket of this path: {path}", needs_person=True)
        arguments = [
            "-F",
            "none",
            "-S",
            str(self._control),
            "-O",
            "forward",
            "-L",
            f"{self.socket}:{self.path}",
        ]
        process = await asyncio.create_subprocess_exec(
            _program(self._env),
            *arguments,
            "relayd",
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            env=self._env,
        )
        _, said = await process.communicate()
        if process.returncode:
            reason = printable_text(said.decode(errors="replace").strip(), 500)
            raise HostError(f"ssh can't forward {self.path} of {self.host}: {reason}")

    async def ready(self) -> None:
        """Return if ssh is connected; else connect again, and wait a little for it.

        Raises:
            Unreachable: it is not connected yet.
            Denied: it can't be connected again without the operator.
        """
        if self._connecting is None and not self._runs() and self._problem is None:
            self._connecting = asyncio.create_task(self._connect_again(), name="ssh-connect")
        if self._connecting is not None:
            await asyncio.wait({self._connecting}, timeout=_WAIT_FOR_LINK_S)
        if self._problem is not None:
            raise Denied(f"{self._problem} Then press H and choose {self.host} again.")
        if self._connecting is not None or not self._runs():
            raise Unreachable(self._broken())

    async def _connect_again(self) -> None:
        try:
            await self.connect(may_ask=False)
        except (HostError, OSError) as error:
            self._lines.append(str(error))
            if isinstance(error, HostError) and error.needs_person:
                self._problem = error
        finally:
            self._connecting = None

    def retry(self) -> None:
        """Try again even what only a person can mend."""
        self._problem = None

    def _broken(self) -> str:
        said = next((line for line in reversed(self._lines) if line.strip()), "")
        return f"The ssh connection to {self.host} is broken{f' ({said})' if said else ''}."

    async def explain(self, error: AdminClientError, failures: int, *, is_only: bool) -> AdminClientError:
        """Return why a connection to the socket gave no answer.

        Args:
            error: what this side of the connection knows.
            failures: how many connections the server had refused before this one.
            is_only: whether no other connection can be the one that was refused since.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_SAID_WITHIN_S), self._told:
                await self._told.wait_for(lambda: self.failures > failures or not self._runs())
        if not self._runs():
            is_sent = isinstance(error, AnswerUnknown)
            return AnswerUnknown(f"{self._broken()} {error}") if is_sent else Unreachable(self._broken())
        if self.failures <= failures or (isinstance(error, AnswerUnknown) and not is_only):
            return error
        try:
            async with asyncio.timeout(_LOOK_WITHIN_S):
                answer = await self._ask("\n")
        except TimeoutError:
            # Its answer would be taken for the next one.
            await self._end()
            return Unreachable(self._broken())
        match answer:
            case ["denied", *_]:
                return Denied(self._denial(answer))
            case ["bound", *_]:
                return Denied(
                    f"The ssh server of {self.host.server} forbids to forward Unix sockets. Set"
                    " `AllowStreamLocalForwarding yes` in its sshd_config, and reload it there."
                )
            case _:
                return NoDaemon(
                    f"No relayd answers at {self.path} on {self.host.server}. Start it there; if it runs, its"
                    " sshd_config must allow AllowStreamLocalForwarding."
                )

    async def _end(self) -> None:
        """End ssh and wait for it."""
        ssh, self._ssh = self._ssh, None
        if ssh is not None:
            # What ssh has started, such as a proxy command, may hold its pipes open, which asyncio waits for.
            for end in (ssh.terminate, ssh.kill):
                if ssh.returncode is None:
                    with suppress(ProcessLookupError):
                        end()
                with suppress(TimeoutError):
                    async with asyncio.timeout(END_WITHIN_S):
                        await self._wait(ssh)
                    break
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _wait(self, ssh: Process) -> None:
        """Wait for the end of ssh and of its output: what nobody reads keeps its pipe open."""
        async with self._asking:
            while ssh.stdout is not None and await ssh.stdout.read(_READ_BYTES):
                pass
        await ssh.wait()

    async def close(self) -> None:
        """End ssh, and remove this side of the socket."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        await self._end()
        shutil.rmtree(self._directory, ignore_errors=True)


class HostClient(AdminClient):
    """Talks to a daemon on a server.

    Args:
        link: the way there, connected.
    """

    def __init__(self, link: HostLink) -> None:
        super().__init__(link.socket, name=f"{link.path} on {link.host.server}")
        self._link = link

    def retry_now(self) -> None:
        """Connect again, even if ssh needs the operator."""
        self._link.retry()

    @asynccontextmanager
    async def _request(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> AsyncIterator[Response]:
        await self._link.ready()
        link = self._link
        failures, is_first = link.failures, link.asked == link.answered
        link.asked = asked = link.asked + 1
        is_over = False
        try:
            async with super()._request(method, target, headers, body) as response:
                link.answered += 1
                is_over = True
                yield response
        except (Denied, Refused, VersionMismatch):
            raise
        except AdminClientError as error:
            is_only = is_first and link.asked == asked
            raise await link.explain(error, failures, is_only=is_only) from error
        finally:
            if not is_over:
                link.answered += 1


@asynccontextmanager
async def connected(host: Host, named: str, env: Mapping[str, str]) -> AsyncIterator[HostClient]:
    """Connect to a server's daemon with the help of the operator, and end ssh at the end.

    Raises:
        HostError: the daemon can't be reached from here, and waiting does not mend it.
    """
    link = HostLink(host, named, env)
    try:
        await link.connect(may_ask=True)
        client = HostClient(link)
        try:
            await client.status()
        except (Denied, Unreachable) as error:
            raise HostError(str(error)) from error
        except AdminClientError:
            # The app says it, and waits for a daemon that is down.
            pass
        yield client
    finally:
        await link.close()


async def _line(stream: asyncio.StreamReader | None) -> bytes:
    """Return the next line, or what is left of one that is too long; empty at the end."""
    if stream is None:
        return b""
    while True:
        with suppress(ValueError):
            return await stream.readline()


def _program(env: Mapping[str, str]) -> str:
    program = shutil.which("ssh", path=env.get("PATH"))
    if program is None:
        raise HostError(_NO_SSH, needs_person=True)
    return program


def _script(named: str) -> str:
    services = " ".join(shlex.quote(str(service / SOCKET)) for service in SERVICE_DIRS)
    script = _LOOK.replace("SERVICES", services).replace("SOCKET", SOCKET)
    return f"NAMED={shlex.quote(named)}\n{script}"


def _base_directory() -> str:
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _LONGEST_DIRECTORY and _PLAIN_PATH.fullmatch(usual) else "/tmp"  # noqa: S108 - mkdtemp


def _refusal(host: Host, said: list[str]) -> HostError:
    """Return why ssh ended, in its own last words, and what to do."""
    last = next(
        (line.strip().removeprefix("ssh: ").rstrip(".") for line in reversed(said) if line.strip()), ""
    )
    command = shlex.join(["ssh", *host.arguments])
    name = host.server.strip("[]")
    forget = shlex.join(["ssh-keygen", "-R", name if host.port is None else f"[{name}]:{host.port}"])
    for sign, remedy, needs_person in _FAULTS:
        if any(sign in line for line in said):
            what = remedy.format(command=command, forget=forget)
            return HostError(f"ssh to {host}: {last}. {what}", needs_person=needs_person)
    if last:
        return HostError(f"ssh to {host}: {last}.")
    return HostError(
        f"ssh to {host}: the connection ended. relayd-tui needs a shell there; try it: {command} true"
    )
