"""The sections of the configuration: every key, its type, its default, and whether it can change live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import BaseModel, ConfigDict, SecretStr
from pydantic.fields import FieldInfo

from relayd.config.values import (
    WEEK_S,
    YEAR_S,
    Allowed,
    BaseUrl,
    Group,
    Host,
    Model,
    Network,
    Seconds,
    Span,
    WebOrigin,
    Whole,
)

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Live:
    """Marks a key that SIGHUP may change in a running daemon; any other needs a restart."""


LIVE = Live()
MODEL_NAME = Allowed("the name of a model, without spaces")
MODEL_NAMES = Allowed("a list of models' names", MODEL_NAME.text)
PATH = Allowed("a path; ~/ stands for the home directory")
PATH_OR_NONE = Allowed('a path, or "" for none; ~/ stands for the home directory')


class Section(BaseModel):
    """A table of relayd.toml. Strict: `true` is no number, `"3"` is no number, unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class ServerSettings(Section):
    """The public listener. Sizes in bytes, times in seconds."""

    host: Host = "127.0.0.1"
    port: Annotated[int, Whole(0, 65535)] = 3666
    keep_alive_s: Annotated[Seconds, LIVE] = 130.0
    page: Annotated[bool, Allowed("true or false")] = True
    max_body_bytes: Annotated[int, Whole(1, 1024 * MIB, "bytes"), LIVE] = 2 * MIB
    header_timeout_s: Annotated[Seconds, LIVE] = 10.0
    body_timeout_s: Annotated[Seconds, LIVE] = 30.0
    write_timeout_s: Annotated[Seconds, LIVE] = 30.0
    max_streams: Annotated[int, Whole(1, 1_000_000), LIVE] = 1000
    max_streams_per_address: Annotated[int, Whole(1, 1_000_000), LIVE] = 50
    drain_timeout_s: Annotated[Seconds, LIVE] = 30.0
    trusted_proxies: Annotated[
        tuple[Network, ...],
        Allowed("a list of addresses or CIDR networks", 'an IP address or a CIDR network like "10.0.0.0/8"'),
    ] = ("127.0.0.1", "::1")


class CorsSettings(Section):
    """Which pages may call from a browser. `*` is any; an empty list is none."""

    allow_origins: Annotated[
        tuple[WebOrigin, ...],
        Allowed(
            'a list of "*" or origins like "https://app.example:8443"',
            '"*" or scheme://host[:port], without a path',
        ),
        LIVE,
    ] = ("*",)


class ChatSettings(Section):
    """What `/chat` offers. An empty `allowed_models` is all; `max_tokens_limit` 0 is no ceiling."""

    default_model: Annotated[Model, MODEL_NAME, LIVE] = "gpt-4o-mini"
    allowed_models: Annotated[tuple[Model, ...], MODEL_NAMES, LIVE] = ()
    heartbeat_s: Annotated[Seconds, LIVE] = 15.0
    max_tokens_limit: Annotated[int, Whole(0, 100_000_000, "tokens"), LIVE] = 0


class UpstreamSettings(Section):
    """The provider, and how long relayd waits for it. Times in seconds."""

    base_url: BaseUrl = "https://api.openai.com/v1"
    connect_timeout_s: Annotated[Seconds, LIVE] = 5.0
    first_token_timeout_s: Annotated[Seconds, LIVE] = 300.0
    idle_timeout_s: Annotated[Seconds, LIVE] = 60.0
    total_timeout_s: Annotated[Seconds, LIVE] = 1800.0
    max_retries: Annotated[int, Whole(0, 10), LIVE] = 2
    max_retry_wait_s: Annotated[float, Span(WEEK_S, zero=True), LIVE] = 5.0
    include_usage: Annotated[bool, Allowed("true or false"), LIVE] = True


class KeysSettings(Section):
    """Client keys. `grace_s` is how long a rotated key goes on working unless the rotation says otherwise."""

    grace_s: Annotated[float, Span(YEAR_S, zero=True), LIVE] = 3600.0


class TlsSettings(Section):
    """TLS in the daemon itself; both None is plain HTTP."""

    cert: Annotated[Path | None, PATH_OR_NONE, LIVE] = None
    key: Annotated[Path | None, PATH_OR_NONE, LIVE] = None


class LogSettings(Section):
    """What is written to stderr (`level`), and how much of the request log is kept on disk."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Allowed("debug, info, warning or error"), LIVE
    ] = "info"
    retention_days: Annotated[int, Whole(1, 3650, "days"), LIVE] = 30
    max_mib: Annotated[int, Whole(1, MIB, "MiB"), LIVE] = 512


class AdminSettings(Section):
    """The operator's Unix socket, and the group that may use it beside the daemon's own user."""

    socket: Annotated[Path, PATH]
    group: Group = ""


Kind = Literal["int", "float", "bool", "list", "path", "secret", "str"]


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration. `name` is dotted (`server.port`).

    `allowed` ends the sentence "… must be"; `allowed_item` says it of one item of a list.
    """

    name: str
    kind: Kind
    allowed: str
    allowed_item: str
    live: bool
    default: Any
    """As the section holds it; None also where the default is worked out at start."""

    @property
    def section(self) -> str:
        """The table the key stands in; "" at the top."""
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        """The key without its section."""
        return self.name.rpartition(".")[2]

    @property
    def secret(self) -> bool:
        """Whether the value must never be shown."""
        return self.kind == "secret"


def keys_of(model: type[BaseModel]) -> dict[str, Key]:
    """Every key of the settings class `model` by its dotted name, in the order of the class."""
    found: dict[str, Key] = {}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            for part, leaf in inner.model_fields.items():
                found[f"{name}.{part}"] = _key(f"{name}.{part}", leaf)
        else:
            found[name] = _key(name, field)
    return found


def _key(name: str, field: FieldInfo) -> Key:
    allowed = next(mark for mark in field.metadata if isinstance(mark, Allowed | Whole | Span))
    item = allowed.item if isinstance(allowed, Allowed) else ""
    live = any(isinstance(mark, Live) for mark in field.metadata)
    default = None if field.is_required() else field.default
    return Key(name, _kind(field.annotation), allowed.text, item, live, default)


def _kind(annotation: Any) -> Kind:
    return "list" if get_origin(annotation) is tuple else _KINDS.get(annotation, "str")


_KINDS: dict[Any, Kind] = {
    int: "int",
    float: "float",
    bool: "bool",
    Path: "path",
    Path | None: "path",
    SecretStr | None: "secret",
}
