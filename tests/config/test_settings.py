"""Tests for relayd.config.settings: the object that the rest of relayd holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from relayd.config import KEYS, OriginKind, Settings
from relayd.config.sources import Entry, Layer, Origin


def layer(kind: OriginKind, **values: object) -> Layer:
    """A layer whose keys are written with two underscores for the dot."""
    return {
        name.replace("__", "."): Entry(value, value, Origin(kind, kind)) for name, value in values.items()
    }


def test_layers_merge_by_strength() -> None:
    """The first layer that has a key gives its value and its origin; a key without one has its default."""
    strong = layer(OriginKind.FILE, server__port=1, admin__socket=Path("/s"))
    weak = layer(OriginKind.CREDENTIAL, server__port=2, server__host="::1", state_dir=Path("/d"))
    got = Settings([strong, weak], Path("/f"), ["w"])
    assert (got.server.port, got.server.host, got.server.max_streams) == (1, "::1", 1000)
    assert (got.config_file, got.warnings) == (Path("/f"), ("w",))
    assert got.origins["server.port"].kind is OriginKind.FILE
    assert got.origins["server.host"].kind is OriginKind.CREDENTIAL
    assert got.origins["server.max_streams"].kind is OriginKind.DEFAULT
    assert set(got.origins) == set(KEYS)
    assert (got.value("server.port"), got.value("state_dir")) == (1, Path("/d"))


def test_layers_are_checked() -> None:
    """Values that were not checked before are checked here, and the error does not show them."""
    bad = layer(
        OriginKind.FILE, state_dir="/text", admin__socket=Path("/s"), upstream__base_url="hidden-value"
    )
    with pytest.raises(ValidationError) as caught:
        Settings([bad])
    assert {detail["loc"] for detail in caught.value.errors()} == {("state_dir",), ("upstream", "base_url")}
    assert "hidden-value" not in str(caught.value)


def test_the_real_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings hold their layers and nothing else, whatever the process's environment says."""
    for name in ("SERVER", "server", "STATE_DIR", "OPENAI_API_KEY", "log__level"):
        monkeypatch.setenv(name, '{"port": 9}')
    got = Settings([layer(OriginKind.FILE, state_dir=Path("/d"), admin__socket=Path("/s"))])
    assert (got.server.port, got.state_dir, got.openai_api_key) == (3666, Path("/d"), None)
