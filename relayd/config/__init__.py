"""The configuration: `load` returns checked `Settings`, or raises a `ConfigError` with every problem."""

from relayd.config.errors import ConfigError
from relayd.config.loader import find_config, load
from relayd.config.schema import KEYS, Key, LiveDiff, Origin, OriginKind, Settings, live_changes

__all__ = [
    "KEYS",
    "ConfigError",
    "Key",
    "LiveDiff",
    "Origin",
    "OriginKind",
    "Settings",
    "find_config",
    "live_changes",
    "load",
]
