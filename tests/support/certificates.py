"""Throwaway certificates, made by the openssl command."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import require

_NEW = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2"


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate for 127.0.0.1 and its key, as PEM files."""

    cert: Path
    key: Path

    def replace(self, other: Pair) -> None:
        """Take over the other's content, as a renewal does: file by file, each by a rename."""
        for mine, theirs in ((self.cert, other.cert), (self.key, other.key)):
            fresh = mine.with_suffix(".new")
            fresh.write_bytes(theirs.read_bytes())
            fresh.replace(mine)


class Authority:
    """Signs certificates; everything is kept in one directory.

    Args:
        directory: made if there is none.
        signed_by: the authority that signs this one's certificate; None makes a root.
    """

    def __init__(self, directory: Path, signed_by: Authority | None = None) -> None:
        self._directory = directory
        directory.mkdir(exist_ok=True)
        self.root = directory / "root.pem"
        self._root_key = directory / "root.key"
        signer: list[str | Path] = []
        if signed_by is not None:
            signer = ["-CA", signed_by.root, "-CAkey", signed_by._root_key]
        _openssl(
            f"{_NEW} -nodes -subj /CN={directory.name} -addext basicConstraints=critical,CA:TRUE",
            *signer,
            "-keyout",
            self._root_key,
            "-out",
            self.root,
        )

    def intermediate(self, name: str) -> Authority:
        """Return an authority whose certificate, `root`, this one has signed."""
        return Authority(self._directory / name, self)

    def pair(self, name: str, *, passphrase: str = "") -> Pair:
        """Return a new certificate whose common name is `name`."""
        made = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        secret = ["-passout", f"pass:{passphrase}"] if passphrase else ["-nodes"]
        _openssl(
            f"{_NEW} -subj /CN={name}"
            " -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE",
            *secret,
            "-CA",
            self.root,
            "-CAkey",
            self._root_key,
            "-keyout",
            made.key,
            "-out",
            made.cert,
        )
        return made

    def trusted(self, latest: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A client's context that trusts this authority and nothing else."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.root)
        if latest is not None:
            # OpenSSL itself refuses versions below 1.2 unless the security level is 0.
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = latest
            context.set_ciphers("ALL:@SECLEVEL=0")
        return context


def certificate(home: Path, name: str, *, days: int) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make a self-signed certificate; return a server's context and one of a client that trusts it.

    Args:
        home: where `chain.pem` and `key.pem` are written.
        name: what it names: `DNS:relay.example.com` or `IP:127.0.0.1`.
        days: how long it is valid.
    """
    _openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=test"
        f" -days {days} -addext subjectAltName={name}",
        "-keyout",
        home / "key.pem",
        "-out",
        home / "chain.pem",
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(home / "chain.pem", home / "key.pem")
    return server, ssl.create_default_context(cafile=home / "chain.pem")


def _openssl(words: str, *more: str | Path) -> None:
    require("openssl")
    subprocess.run(["openssl", *words.split(), *map(str, more)], check=True, capture_output=True, timeout=60)
