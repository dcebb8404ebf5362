"""The settings as the rest of relayd sees them: one frozen object that knows where each value came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Strict
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from relayd.config.sections import (
    PATH,
    PATH_OR_NONE,
    AdminSettings,
    ChatSettings,
    CorsSettings,
    Key,
    KeysSettings,
    LogSettings,
    ServerSettings,
    TlsSettings,
    UpstreamSettings,
    keys_of,
)
from relayd.config.sources import Layer, Origin, OriginKind, nested
from relayd.config.values import AuthorizationKey, ProviderKey


class Settings(BaseSettings):
    """Everything relayd is told, frozen. Made by `load`; a repr or dump never shows a secret.

    Units stand in the names (`_s` seconds, `_bytes`, `_days`, `_mib`). Paths are absolute.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    state_dir: Annotated[Path, Strict(), PATH]
    openai_api_key_file: Annotated[Path | None, Strict(), PATH_OR_NONE] = None
    openai_api_key: ProviderKey = None
    authorization_key: AuthorizationKey = None
    server: ServerSettings = ServerSettings()
    cors: CorsSettings = CorsSettings()
    chat: ChatSettings = ChatSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    keys: KeysSettings = KeysSettings()
    tls: TlsSettings = TlsSettings()
    log: LogSettings = LogSettings()
    admin: AdminSettings

    _layers: tuple[Layer, ...] = ()
    _warnings: tuple[str, ...] = ()
    _config_file: Path | None = None

    def __init__(
        self, layers: Iterable[Layer], config_file: Path | None = None, warnings: Iterable[str] = ()
    ) -> None:
        """Merge `layers`, strongest first, and validate the sum (pydantic.ValidationError if that fails)."""
        layers = tuple(layers)
        super().__init__(_build_sources=(tuple(_Source(type(self), layer) for layer in layers), {}))
        self._layers = layers
        self._config_file = config_file
        self._warnings = (*warnings,)

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Where the value of each dotted key comes from."""
        found = {name: Origin(OriginKind.DEFAULT, "default") for name in KEYS}
        for layer in reversed(self._layers):
            found |= {name: entry.origin for name, entry in layer.items()}
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what is allowed but seldom meant; none holds a secret."""
        return self._warnings

    @property
    def config_file(self) -> Path | None:
        """The relayd.toml that was read, or None."""
        return self._config_file

    def value(self, name: str) -> Any:
        """The value of a dotted key."""
        section, _, key = name.rpartition(".")
        return getattr(getattr(self, section) if section else self, key)


class _Source(PydanticBaseSettingsSource):
    """Hands one layer to pydantic-settings, which merges them."""

    def __init__(self, settings_cls: type[BaseSettings], layer: Layer) -> None:
        super().__init__(settings_cls)
        self._layer = layer

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Do what the base class asks of a source that is read field by field; this one is read whole."""
        del field
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        return nested((name, entry.value) for name, entry in self._layer.items())


KEYS: Mapping[str, Key] = keys_of(Settings)
"""Every key by its dotted name, in the order of relayd.toml."""
