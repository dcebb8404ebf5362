"""A private working directory in which the tests load a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from relayd.config import ConfigError, Settings, load


@dataclass(frozen=True, slots=True)
class ConfigHarness:
    """An empty directory with its own home and its own place for the system's relayd.toml."""

    cwd: Path

    def write(self, name: str, text: str, mode: int = 0o600) -> Path:
        """Put a file into the directory."""
        path = self.cwd / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        path.chmod(mode)
        return path

    def load(
        self,
        toml: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        cli: Mapping[str, object] | None = None,
        config_path: Path | None = None,
    ) -> Settings:
        """Load with `toml` as ./relayd.toml, and nothing of the real environment."""
        if toml is not None:
            self.write("relayd.toml", toml)
        return load(
            config_path=config_path,
            cli=cli or {},
            env={"HOME": str(self.cwd / "home"), **(env or {})},
            cwd=self.cwd,
            system_config=self.cwd / "etc" / "relayd.toml",
        )

    def problems(
        self,
        toml: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        cli: Mapping[str, object] | None = None,
        config_path: Path | None = None,
    ) -> list[str]:
        """Return the sentences that refuse the configuration; empty if it is accepted."""
        try:
            self.load(toml, env=env, cli=cli, config_path=config_path)
        except ConfigError as error:
            return [str(problem) for problem in error.problems]
        return []
