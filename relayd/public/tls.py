"""The certificate that the daemon shows, read anew when its files change."""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_Signature = tuple[tuple[int, int, int], ...]


class TlsError(Exception):
    """The files of `tls.cert` and `tls.key` cannot be used; the text says why, and holds no secret."""


class TlsFiles:
    """Gives the TLS context for new connections; open connections keep theirs.

    The files are looked at once a second at most, when somebody connects. Renewed ones are used from
    then on. Ones that do not fit together, as between the two writes of a renewal, change nothing.

    Args:
        cert: PEM, the daemon's certificate first, then those between it and the root.
        key: PEM, without a passphrase.
        clock: monotonic seconds.

    Raises:
        TlsError: the files cannot be used.
    """

    def __init__(self, cert: Path, key: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._cert, self._key = cert, key
        self._context = load_context(cert, key)
        self._signature = _signature(cert, key)
        self._look_at = clock() + _LOOK_EVERY_S

    def context(self) -> ssl.SSLContext:
        """What a new connection is wrapped with."""
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + _LOOK_EVERY_S
            signature = _signature(self._cert, self._key)
            if signature != self._signature:
                self._signature = signature
                self._renew()
        return self._context

    def _renew(self) -> None:
        try:
            self.use(self._cert, self._key)
        except TlsError as error:
            _log.warning("the changed TLS files cannot be used; the previous certificate stays: %s", error)
        else:
            _log.info("the TLS files changed; new connections get the new certificate")

    def use(self, cert: Path, key: Path) -> None:
        """Read these files now, for connections from now on.

        Raises:
            TlsError: they cannot be used; nothing changed.
        """
        signature = _signature(cert, key)
        self._context = load_context(cert, key)
        self._cert, self._key, self._signature = cert, key, signature


def load_context(cert: Path, key: Path) -> ssl.SSLContext:
    """A server's context: TLS 1.2 or later, HTTP/1.1.

    Raises:
        TlsError: the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client could have the server do the costly part of a handshake over and over.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])

    def passphrase() -> str:
        # Without this, OpenSSL would ask at the terminal.
        raise TlsError(f"tls.key {key} has a passphrase, which a daemon cannot type; store it without one.")

    try:
        context.load_cert_chain(cert, key, password=passphrase)
    except ssl.SSLError as error:
        raise TlsError(f"tls.cert {cert} and tls.key {key} cannot be used: {_in_words(error)}.") from error
    except OSError as error:
        raise TlsError(f"tls.cert {cert} or tls.key {key} cannot be read: {error.strerror}.") from error
    return context


def _in_words(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    if not reason or "PEM" in reason or "START_LINE" in reason:
        return "one of them is not in PEM form"
    return reason.lower().replace("_", " ")


def _signature(cert: Path, key: Path) -> _Signature:
    """Changes when a file does; of a file that is not there, too."""
    found = []
    for path in (cert, key):
        try:
            status = os.stat(path)  # noqa: PTH116 - on the accept path, and Path.stat costs twice as much
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((status.st_mtime_ns, status.st_ino, status.st_size))
    return tuple(found)
