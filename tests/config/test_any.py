"""Property tests for relayd.config: whatever stands in a source, the answer is settings or a ConfigError."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.config import KEYS, ConfigError
from relayd.config.sources import VARIABLES
from tests.config.harness import ConfigHarness

CANARY = "canary-4711-do-not-show"

NAMES = [
    *KEYS,
    "server",
    "chat",
    "nope",
    "server.nope",
    "a.b.c",
    "openai_api_key",
    '"x y"',
    "[server]",
    "[[chat]]",
    'aliases."a.b"',
    "prices.m",
    "prices.m.input",
    "upstream.route.name",
]
TOML_VALUES = st.one_of(
    st.sampled_from(
        ["1", "0.5", "-0", "nan", "1e999", "true", "{}", "[]", "[[1], {a=1}]", "'''\n'''", "07:00:00"]
    ),
    st.integers(-(10**30), 10**30).map(str),
    st.text(max_size=20).map(json.dumps),
    st.lists(st.text(max_size=8), max_size=3).map(json.dumps),
)
LINES = st.one_of(
    st.builds("{} = {}".format, st.sampled_from(NAMES), TOML_VALUES),
    st.sampled_from([f"[{section}]" for section in ("server", "cors", "tls", "nope", "server.port")]),
    st.sampled_from(["[[upstream.route]]", "[aliases]", "[prices.'m.1']", "name = 'a'", "output = 1"]),
    st.text(max_size=15),
)


def outcome(harness: ConfigHarness, env: dict[str, str]) -> Iterator[str]:
    """Everything a person would see of one attempt to load."""
    try:
        got = harness.load(env=env)
    except ConfigError as error:
        yield str(error)
        yield from (f"{problem.where}{problem.message}" for problem in error.problems)
    else:
        yield repr(got)
        yield from got.warnings


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.lists(LINES, max_size=6).map("\n".join))
def test_any_toml(text: str) -> None:
    """Whatever stands in relayd.toml, loading gives settings or a ConfigError that can be printed."""
    with TemporaryDirectory() as directory:
        harness = ConfigHarness(Path(directory))
        (harness.cwd / "relayd.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
        for said in outcome(harness, {}):
            assert said.encode()
            assert all(line.isprintable() for line in said.splitlines())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(sorted(VARIABLES)), st.text(max_size=20), max_size=4))
def test_any_environment(env: dict[str, str]) -> None:
    """Whatever stands in the environment, loading gives settings or a ConfigError that can be printed."""
    with TemporaryDirectory() as directory:
        for said in outcome(ConfigHarness(Path(directory)), env):
            assert all(line.isprintable() for line in said.splitlines())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(max_size=10), st.text(max_size=10), st.booleans())
def test_no_secret_in_any_error(before: str, after: str, in_dotenv: bool) -> None:  # noqa: FBT001 - drawn
    """However malformed a secret is, and wherever it stands, no message repeats it."""
    text = f"{before}{CANARY}{after}"
    pairs = {"OPENAI_API_KEY": text, "AUTHORIZATION_KEY": text}
    with TemporaryDirectory() as directory:
        harness = ConfigHarness(Path(directory))
        if in_dotenv:
            harness.write(".env", "".join(f"{name}={value}\n" for name, value in pairs.items()))
        for said in outcome(harness, {} if in_dotenv else pairs):
            assert CANARY not in said
