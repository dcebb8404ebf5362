"""Tests for relayd.config.secrets: keys that stand in files."""

from __future__ import annotations

import pytest

from relayd.config import Settings
from tests.config.harness import ConfigHarness


def provider_key(settings: Settings) -> tuple[str | None, str]:
    """The provider's key in clear, and where it came from."""
    key = settings.openai_api_key
    return None if key is None else key.get_secret_value(), str(settings.origins["openai_api_key"])


def test_a_key_file(harness: ConfigHarness) -> None:
    """openai_api_key_file is read; a line break at its end does not count."""
    path = harness.write("key", "sk-file\r\n")
    got = harness.load("openai_api_key_file = 'key'")
    assert provider_key(got) == ("sk-file", "key")
    assert got.openai_api_key_file == path
    assert got.warnings == ()


def test_a_key_file_that_others_can_read(harness: ConfigHarness) -> None:
    """A key file open to every user of the machine works, with a warning."""
    harness.write("key", "sk-file", mode=0o644)
    got = harness.load("openai_api_key_file = 'key'")
    assert got.warnings == ("key: every user of this machine can read this key; chmod 600 it.",)


NOT_A_KEY = "key: openai_api_key must be printable ASCII characters without spaces;"
WRONG_FILES = [
    ("", f"{NOT_A_KEY} it is empty."),
    ("\n", f"{NOT_A_KEY} it is empty."),
    ("sk-1\nsk-2\n", f"{NOT_A_KEY} it contains a space or a line break."),
    (None, "relayd.toml:1: openai_api_key_file key does not exist."),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG_FILES)
def test_a_wrong_key_file(harness: ConfigHarness, text: str | None, sentence: str) -> None:
    """A key file that is absent, empty or more than a key stops the start, even if another key is set."""
    if text is not None:
        harness.write("key", text)
    assert harness.problems("openai_api_key_file = 'key'") == [sentence]
    assert harness.problems(env={"OPENAI_API_KEY": "sk-env"}) == [sentence]


def test_a_pipe_is_no_key_file(harness: ConfigHarness) -> None:
    """A pipe could block the daemon, and is empty at the next reading."""
    sentence = "environment: openai_api_key_file /dev/null is not a regular file."
    assert harness.problems(env={"RELAYD_OPENAI_API_KEY_FILE": "/dev/null"}) == [sentence]


def test_a_key_file_ranks_with_its_source(harness: ConfigHarness) -> None:
    """The file's key is as strong as the source that names the file, so the usual precedence decides."""
    harness.write("key", "sk-file")
    harness.write("key2", "sk-file2")
    toml = "openai_api_key_file = 'key'"
    assert provider_key(harness.load(toml, env={"OPENAI_API_KEY": "sk-env"}))[0] == "sk-env"
    harness.write(".env", "OPENAI_API_KEY=sk-dotenv")
    assert provider_key(harness.load(toml))[0] == "sk-dotenv"
    got = harness.load(toml, env={"RELAYD_OPENAI_API_KEY_FILE": "key2"})
    assert provider_key(got) == ("sk-file2", "key2")
    assert got.warnings == (
        "openai_api_key comes from key2; the one from .env:1 OPENAI_API_KEY is not used.",
    )


def test_both_in_one_source(harness: ConfigHarness) -> None:
    """In one source the key itself is stronger than the file's name, and the file is said to be unused."""
    harness.write("key", "sk-file")
    got = harness.load(env={"OPENAI_API_KEY": "sk-env", "RELAYD_OPENAI_API_KEY_FILE": "key"})
    assert provider_key(got)[0] == "sk-env"
    said = "openai_api_key comes from environment OPENAI_API_KEY; openai_api_key_file is not used."
    assert got.warnings == (said,)


def test_an_empty_name_switches_the_file_off(harness: ConfigHarness) -> None:
    """An empty openai_api_key_file in a stronger source means no file at all."""
    toml = "openai_api_key_file = 'absent'"
    assert provider_key(harness.load(toml, env={"RELAYD_OPENAI_API_KEY_FILE": ""}))[0] is None


def test_credentials(harness: ConfigHarness) -> None:
    """Systemd's credentials are read, each by the name of its key."""
    harness.write("creds/openai_api_key", "sk-credential\n", mode=0o400)
    harness.write("creds/authorization_key", "x" * 16 + "\n", mode=0o400)
    harness.write("creds/other", "\0")
    got = harness.load(env={"CREDENTIALS_DIRECTORY": str(harness.cwd / "creds")})
    assert provider_key(got) == ("sk-credential", "creds/openai_api_key")
    assert got.authorization_key is not None
    assert got.authorization_key.get_secret_value() == "x" * 16
    assert got.warnings == ()


def test_credentials_are_weakest(harness: ConfigHarness) -> None:
    """Any other source of a key hides the credential, and is reported for it."""
    harness.write("creds/openai_api_key", "sk-credential")
    env = {"CREDENTIALS_DIRECTORY": str(harness.cwd / "creds"), "OPENAI_API_KEY": "sk-env"}
    got = harness.load(env=env)
    assert provider_key(got)[0] == "sk-env"
    said = (
        "openai_api_key comes from environment OPENAI_API_KEY; the one from creds/openai_api_key is not used."
    )
    assert got.warnings == (said,)


TOO_SHORT = "at least 16 printable ASCII characters; it has 5."


def test_a_wrong_credential(harness: ConfigHarness) -> None:
    """A credential that is no key stops the start, named by its file."""
    harness.write("creds/authorization_key", "short")
    (harness.cwd / "creds/openai_api_key").mkdir()
    assert harness.problems(env={"CREDENTIALS_DIRECTORY": str(harness.cwd / "creds")}) == [
        "creds/authorization_key: authorization_key must be " + TOO_SHORT,
        "creds/openai_api_key: this file is not a regular file.",
    ]
