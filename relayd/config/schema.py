"""The schema: every section and key, with type, default, bounds and the line that explains it.

Everything else about a key is derived from here: its environment variable, its error message, its line in
relayd.toml, and whether SIGHUP can change it in a running daemon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter
from pydantic.fields import FieldInfo

from relayd.config.values import (
    Allowed,
    AuthorizationKey,
    BaseUrl,
    CommandLine,
    DatabaseUrl,
    EndpointPatterns,
    Group,
    Host,
    ModelName,
    ModelNames,
    ModelPatterns,
    Networks,
    ProviderKey,
    ProxyUrl,
    RouteName,
    RouteUrl,
    WebOrigins,
)
from relayd.state.bounds import allows

_MIB = 1024 * 1024
_WEEK_S = 7 * 86400
_YEAR_S = 366 * 86400
_MAX_USD = 1_000_000


def _key(default: Any, doc: str, *, restart: bool = False, **bounds: Any) -> Any:
    """Describe a key. `restart`: only a restart changes it; SIGHUP changes all others in a running daemon."""
    return Field(default, description=doc, json_schema_extra={"restart": restart}, **bounds)


def _whole(default: int, low: int, high: int, doc: str, *, restart: bool = False) -> Any:
    """Describe a key with a whole number from `low` to `high`, both included."""
    field = _key(default, doc, restart=restart, ge=low, le=high)
    field.metadata.append(Allowed(f"a whole number from {low} to {high}"))
    return field


def _seconds(
    default: float, doc: str, *, high: int = _WEEK_S, zero: bool = False, restart: bool = False
) -> Any:
    """Describe a key with a time in seconds, up to `high`; 0 only if `zero`."""
    field = _key(default, doc, restart=restart, le=high, **({"ge": 0} if zero else {"gt": 0}))
    field.metadata.append(
        Allowed(f"a number of seconds {'from 0 to' if zero else 'above 0, at most'} {high}")
    )
    return field


def _usd(default: Any, doc: str) -> Any:
    """Describe a key with a price in US dollars a million tokens."""
    field = _key(default, doc, ge=0, le=_MAX_USD)
    field.metadata.append(Allowed(f"US dollars a million tokens, from 0 to {_MAX_USD}"))
    return field


class Section(BaseModel):
    """A table of the configuration. Strict: neither `true` nor `"3"` is a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class ServerSettings(Section):
    """The public listener."""

    host: Host = _key("127.0.0.1", "address or name to listen on", restart=True)
    port: int = _whole(3666, 0, 65535, "TCP port; 0 lets the system choose", restart=True)
    workers: int = _whole(1, 1, 64, "processes that serve the port, each on a core of its own", restart=True)
    keep_alive_s: float = _seconds(130.0, "how long a connection stays open between two requests")
    page: bool = _key(default=True, doc="show a chat page at /; false: two sentences instead", restart=True)
    max_body_bytes: int = _whole(2 * _MIB, 1, 1024 * _MIB, "a larger request body gets 413 (2 MiB)")
    header_timeout_s: float = _seconds(10.0, "time limit for receiving a request's headers")
    body_timeout_s: float = _seconds(30.0, "time limit for receiving its body")
    write_timeout_s: float = _seconds(30.0, "a client that reads nothing for this long is disconnected")
    max_streams: int = _whole(1000, 1, 1_000_000, "limit of open streams in all; a further request gets 429")
    max_streams_per_address: int = _whole(50, 1, 1_000_000, "the same for one client address")
    drain_timeout_s: float = _seconds(30.0, "how long open streams may continue after SIGTERM")
    trusted_proxies: Networks = _key(
        ("127.0.0.1", "::1"), "addresses and networks whose X-Forwarded-For is believed", restart=True
    )


class CorsSettings(Section):
    """Which pages may call from a browser. An empty list is none."""

    allow_origins: WebOrigins = _key(("*",), 'web pages that may use relayd: "*" for all, or exact origins')


class ChatSettings(Section):
    """What `/chat` offers."""

    default_model: ModelName = _key("gpt-4o-mini", "the model if a request names none")
    allowed_models: ModelNames = _key((), "models that clients may use; empty: all")
    heartbeat_s: float = _seconds(15.0, "after a silence of this length, an empty line is sent")
    max_tokens_limit: int = _whole(0, 0, 100_000_000, "highest max_tokens of a request; 0: no limit")


class RouteSettings(Section):
    """One of several ways to a provider: a key of its own, perhaps an address of its own."""

    name: RouteName = _key(..., "how the log, status and metrics call it")
    base_url: RouteUrl = _key(None, "as upstream.base_url, which is the default")
    openai_api_key_file: Path | None = _key(None, "a file that contains only the key of this route")
    openai_api_key: ProviderKey = _key(None, "the key of this route")
    weight: int = _whole(1, 1, 1000, "its share of the requests, beside those of the other routes")
    models: ModelPatterns = _key((), "the models that it serves, as names or globs; empty: all")

    def serves(self, model: str) -> bool:
        """Return whether the route is for a model."""
        return allows(self.models, model)


class UpstreamSettings(Section):
    """The provider, and how long relayd waits for it."""

    base_url: BaseUrl = _key(
        "https://api.openai.com/v1", "OpenAI's API, or a provider with the same protocol", restart=True
    )
    connect_timeout_s: float = _seconds(5.0, "time limit for connecting")
    first_token_timeout_s: float = _seconds(300.0, "time limit from the request to the first token")
    idle_timeout_s: float = _seconds(60.0, "longest silence between tokens")
    total_timeout_s: float = _seconds(1800.0, "longest duration of a stream")
    max_retries: int = _whole(2, 0, 10, "retries before the first byte")
    max_retry_wait_s: float = _seconds(
        5.0, "a refusal that asks for a longer wait is passed on at once", zero=True
    )
    proxy: ProxyUrl = _key(
        SecretStr(""), "http://, https:// or socks5://, with user:password@ if need be", restart=True
    )
    include_usage: bool = _key(default=True, doc="ask for token counts, for the request log")
    route: tuple[RouteSettings, ...] = _key((), "several provider keys; without any, base_url and its key")


class V1Settings(Section):
    """What `/v1` offers."""

    enabled: bool = _key(default=True, doc="serve OpenAI's own protocol at /v1; false: 404")
    allow: EndpointPatterns = _key((), 'what is open beside the usual, such as "GET /v1/files/*"')
    max_body_bytes: int = _whole(32 * _MIB, 1, 1024 * _MIB, "a larger request body gets 413 (32 MiB)")


class Price(Section):
    """What a model costs, in US dollars a million tokens."""

    input: float = _usd(..., "of the prompt")
    cached_input: float | None = _usd(None, "of what the provider had cached; default: input")
    output: float = _usd(..., "of the answer")


class KeysSettings(Section):
    """Client keys."""

    grace_s: float = _seconds(
        3600.0, "how long a rotated key keeps working; 0: not at all", high=_YEAR_S, zero=True
    )


class TlsSettings(Section):
    """TLS in the daemon itself; both None is plain HTTP."""

    cert: Path | None = _key(None, "file with the certificate chain, PEM; empty: plain HTTP")
    key: Path | None = _key(None, "file with its private key, PEM")


class StateSettings(Section):
    """Where keys, clients, usage, audit and log are kept."""

    url: DatabaseUrl = _key(
        SecretStr(""), "a PostgreSQL database for several machines; empty: SQLite in state_dir", restart=True
    )
    url_file: Path | None = _key(None, "a file that contains only the URL; mode 0600", restart=True)
    stale_after_s: float = _seconds(300.0, "without the database, keys work for this long; then they get 503")

    @property
    def is_on_server(self) -> bool:
        """Whether it is in PostgreSQL, and not in a file of this machine."""
        return bool(self.url.get_secret_value())


class AlertsSettings(Section):
    """What the operator is told of, and the program that tells it."""

    command: CommandLine = _key((), "run with one JSON document on stdin when an alert begins or ends")
    error_percent: int = _whole(
        10, 1, 100, "an alert if more of the requests of 5 minutes failed than this percentage"
    )
    error_min_requests: int = _whole(20, 1, 1_000_000, "and if at least so many ended in these 5 minutes")
    bound_percent: int = _whole(
        80, 1, 100, "an alert if a client has used this percentage of a day's or month's bound"
    )
    disk_free_mib: int = _whole(256, 0, _MIB, "an alert if less is free on the disk of the database; 0: none")


class LogSettings(Section):
    """What is written to stderr, and how much of the request log is kept on disk."""

    level: Literal["debug", "info", "warning", "error"] = _key(
        "info", "debug, info, warning or error, to stderr"
    )
    retention_days: int = _whole(30, 1, 3650, "older requests are deleted from the request log")
    max_mib: int = _whole(512, 1, _MIB, "the oldest requests are deleted earlier if the log is larger")


class AdminSettings(Section):
    """The operator's Unix socket, and the group that may use it beside the daemon's own user."""

    socket: Path = _key(..., "the operator's Unix socket; follows state_dir", restart=True)
    group: Group = _key("", "a Unix group that may use it too", restart=True)


class OriginKind(StrEnum):
    """The kind of source that a value comes from, weakest first."""

    DEFAULT = "default"
    CREDENTIAL = "systemd credential"
    KEY_FILE = "key file"
    FILE = "file"
    DOTENV = ".env"
    ENVIRONMENT = "environment"
    COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was set: a file and line or a source's name, and the variable if there is one."""

    kind: OriginKind
    place: str
    variable: str = ""

    def __str__(self) -> str:
        return f"{self.place} {self.variable}".rstrip()


class Settings(Section):
    """The configuration, frozen. `relayd.config.load` makes it; a repr or dump never shows a secret.

    Units are in the names (`_s` seconds, `_bytes`, `_days`, `_mib`). Paths are absolute.
    """

    state_dir: Path = _key(
        ...,
        "of database, first key and socket; $STATE_DIRECTORY and $XDG_STATE_HOME come first",
        restart=True,
    )
    openai_api_key_file: Path | None = _key(None, "a file that contains only the provider's key; mode 0600")
    openai_api_key: ProviderKey = _key(None, "the provider's key")
    authorization_key: AuthorizationKey = _key(None, "the first client key", restart=True)
    server: ServerSettings = ServerSettings()
    cors: CorsSettings = CorsSettings()
    chat: ChatSettings = ChatSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    v1: V1Settings = V1Settings()
    aliases: Mapping[str, ModelName] = _key({}, "what the provider is asked for when clients ask for a model")
    prices: Mapping[str, Price] = _key({}, "US dollars a million tokens, by model; they replace relayd's own")
    state: StateSettings = StateSettings()
    alerts: AlertsSettings = AlertsSettings()
    keys: KeysSettings = KeysSettings()
    tls: TlsSettings = TlsSettings()
    log: LogSettings = LogSettings()
    admin: AdminSettings

    _origins: Mapping[str, Origin] = {}
    _warnings: tuple[str, ...] = ()
    _config_file: Path | None = None

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Where the value of each dotted key was set."""
        return self._origins

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what works but is probably not intended; none holds a secret."""
        return self._warnings

    @property
    def config_file(self) -> Path | None:
        """The relayd.toml that was read, or None."""
        return self._config_file

    def value(self, name: str) -> Any:
        """Return the value of a dotted key."""
        section, _, leaf = name.rpartition(".")
        return getattr(getattr(self, section) if section else self, leaf)

    def route_url(self, route: RouteSettings) -> str:
        """Return the address of a route."""
        return route.base_url or self.upstream.base_url

    def route_key(self, route: RouteSettings) -> SecretStr | None:
        """Return the key of a route: its own, else `openai_api_key` if that is for the same address."""
        if route.openai_api_key is None and self.route_url(route) == self.upstream.base_url:
            return self.openai_api_key
        return route.openai_api_key

    @property
    def provider_key_remedy(self) -> str | None:
        """What to do if the key of a provider is missing, else None."""
        if not self.upstream.route:
            if self.openai_api_key is not None:
                return None
            return "set OPENAI_API_KEY or openai_api_key_file"
        for route in self.upstream.route:
            if self.route_key(route) is None:
                return (
                    f"set openai_api_key_file of the route {route.name}, "
                    f"or pass it the systemd credential {route_credential(route.name)}"
                )
        return None


def route_credential(name: str) -> str:
    """Return the name of the systemd credential that is the key of a route."""
    return f"openai_api_key.{name}"


@dataclass(frozen=True)
class Key:
    """One key of the configuration, by its dotted name (`server.port`)."""

    name: str
    field: FieldInfo

    @property
    def section(self) -> str:
        """The table that the key belongs to; "" at the top."""
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        """The key without its section."""
        return self.name.rpartition(".")[2]

    @property
    def is_list(self) -> bool:
        """Whether the key takes a list."""
        return get_origin(self.field.annotation) is tuple

    @property
    def is_table(self) -> bool:
        """Whether the key is a table, or a list of tables, that the operator fills; only files have those."""
        return self.row is not None or get_origin(self.field.annotation) is Mapping

    @property
    def row(self) -> type[Section] | None:
        """The type of each table in a table, or in a list of tables; None: there are plain values."""
        inner = [part for part in get_args(self.field.annotation) if isinstance(part, type)]
        return inner[-1] if inner and issubclass(inner[-1], Section) else None

    @cached_property
    def row_keys(self) -> Mapping[str, Key]:
        """The keys of each row, by their names in it."""
        return {} if self.row is None else _keys_of(self.row)

    @property
    def is_path(self) -> bool:
        """Whether the key takes a path."""
        return self.field.annotation in {Path, Path | None}

    @property
    def secret(self) -> bool:
        """Whether the value must never be shown."""
        return self.field.annotation is SecretStr or not self.in_file

    @property
    def in_file(self) -> bool:
        """Whether relayd.toml may have the key; those that are nothing but a credential have other places."""
        return bool(self.field.annotation != SecretStr | None)

    @property
    def live(self) -> bool:
        """Whether SIGHUP changes the key in a running daemon."""
        extra = self.field.json_schema_extra
        return isinstance(extra, dict) and extra["restart"] is False

    @property
    def default(self) -> Any:
        """The default; None also if it is derived at start (`state_dir`, `admin.socket`)."""
        return None if self.field.is_required() else self.field.default

    @property
    def allowed(self) -> Allowed:
        """What the value must be, in words."""
        for mark in self.field.metadata:
            if isinstance(mark, Allowed):
                return mark
        if self.field.annotation is bool:
            return Allowed("true or false")
        if self.is_path:
            none = ', or "" for none' if self.field.annotation != Path else ""
            return Allowed(f"a path{none}; ~/ stands for the home directory")
        *words, last = get_args(self.field.annotation)
        return Allowed(f"{', '.join(words)} or {last}")

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        annotated: Any = Annotated[self.field.annotation, self.field]
        return TypeAdapter(annotated, config=ConfigDict(strict=True, hide_input_in_errors=True))

    def check(self, value: object, *, from_text: bool) -> Any:
        """Return the value as the settings hold it.

        Args:
            value: as a source has it.
            from_text: numbers and booleans may come as text.

        Raises:
            pydantic.ValidationError: the value is not allowed.
        """
        return self._adapter.validate_python(value, strict=not from_text)


def _keys_of(model: type[BaseModel], prefix: str = "") -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            keys |= _keys_of(inner, f"{name}.")
        else:
            keys[prefix + name] = Key(prefix + name, field)
    return keys


KEYS: Mapping[str, Key] = _keys_of(Settings)
"""Every key by its dotted name, in the order of relayd.toml."""

COMMAND = "alerts.command"
"""The key whose value may hold a token: webhooks have one in their URL. Only `relayd check` shows it all."""


@dataclass(frozen=True, slots=True)
class LiveDiff:
    """Dotted keys whose values differ: `live` can be applied at once, `restart` needs a new process."""

    live: tuple[str, ...]
    restart: tuple[str, ...]


def live_changes(old: Settings, new: Settings) -> LiveDiff:
    """Compare two settings key by key, in the order of relayd.toml. Values are not included.

    Turning TLS on or off changes what the listener speaks, so it needs a restart; other TLS files do not.
    """
    changed = [key for name, key in KEYS.items() if old.value(name) != new.value(name)]
    tls_stays = (old.tls.cert is None) == (new.tls.cert is None)
    live = [key.name for key in changed if key.live and (tls_stays or key.section != "tls")]
    return LiveDiff(tuple(live), tuple(key.name for key in changed if key.name not in live))
