"""Certificates of a moment, made by OpenSSL."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path


def certificate(home: Path, name: str, *, days: int) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context, and that of a client who trusts its certificate.

    Args:
        home: where `chain.pem` and `key.pem` are written.
        name: whose it is: `DNS:relay.example.com` or `IP:127.0.0.1`.
        days: how long it is good.
    """
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", str(days), "-subj", "/CN=test", "-addext", f"subjectAltName={name}"),
            *("-keyout", str(home / "key.pem"), "-out", str(home / "chain.pem")),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(home / "chain.pem", home / "key.pem")
    return server, ssl.create_default_context(cafile=home / "chain.pem")
