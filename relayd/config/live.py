"""What SIGHUP can change in a running daemon, and what waits for a restart."""

from __future__ import annotations

from dataclasses import dataclass

from relayd.config.settings import KEYS, Settings


@dataclass(frozen=True, slots=True)
class LiveDiff:
    """Dotted keys whose values differ: `live` may be applied at once, `restart` needs a new process."""

    live: tuple[str, ...]
    restart: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.live or self.restart)


def live_changes(old: Settings, new: Settings) -> LiveDiff:
    """Compare two settings key by key, in the order of relayd.toml. No value is shown, so no secret is.

    Limits, models, CORS, timeouts and TLS files change live. Turning TLS on or off changes what the listener
    speaks, and needs a restart. A TLS file rewritten under the same name is not a difference here.
    """
    changed = [key for name, key in KEYS.items() if old.value(name) != new.value(name)]
    tls_stays = (old.tls.cert is None) == (new.tls.cert is None)
    live = [key for key in changed if key.live and (tls_stays or key.section != "tls")]
    return LiveDiff(
        live=tuple(key.name for key in live),
        restart=tuple(key.name for key in changed if key not in live),
    )
