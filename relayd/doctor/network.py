"""What checks over the network have in common."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from typing import Any

from relayd.findings import Finding, ok, warning

_EXPIRES_SOON_DAYS = 14
_DAY_S = 86400


def judge_certificate(certificate: Mapping[str, Any], subject: str) -> Finding:
    """Judge how long a verified certificate is still valid.

    Args:
        certificate: as `SSLSocket.getpeercert` returns it.
        subject: how the message begins.
    """
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / _DAY_S
    message = f"{subject} is trusted, and valid for {days:.0f} days."
    if days < _EXPIRES_SOON_DAYS:
        return warning("TLS", message, "check that its renewal works (certbot renew)")
    return ok("TLS", message)
