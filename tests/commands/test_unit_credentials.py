"""The credentials of a unit, read from its lines as systemd reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.commands.installed_service import Credential, unit_credentials

_UNIT = Path("/etc/systemd/system/relayd.service")


def _read(*lines: str) -> dict[str, Credential]:
    return dict(unit_credentials([f"# {_UNIT}", "[Service]", *lines], "team", ["openai_api_key"]))


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("LoadCredential=a.b:/etc/file", "/etc/file"),
        ("LoadCredential = a.b:/etc/%i.file", "/etc/team.file"),
        ("LoadCredential=a.b:/etc/100%%", "/etc/100%"),
        ("LoadCredential=a.b:%h/file", None),
        ("ImportCredential=openai*", None),
    ],
)
def test_a_file_is_named_by_the_path_that_systemd_reads(line: str, file: str | None) -> None:
    """With the specifiers that are known here; None for another."""
    (found,) = _read(line).values()
    assert found.file == (Path(file) if file else None)
    assert not found.is_encrypted


@pytest.mark.parametrize(
    ("value", "text"),
    [("plain:text", "plain:text"), (r"a\x41\102\sc\\", "aAB c\\"), ("100%%", "100%"), ("", "")],
)
def test_a_text_in_the_unit_is_unescaped(value: str, text: str) -> None:
    """As in C, with the unit's file as its place."""
    found = _read(f"SetCredential=a:{value}")["a"]
    assert found.text is not None
    assert found.text.get_secret_value() == text
    assert found.file == _UNIT


def test_an_encrypted_text_goes_on_in_the_next_line() -> None:
    """White space in it counts for nothing, and a comment between its lines neither."""
    found = _read("SetCredentialEncrypted=a: \\", "; why", "  c2Vj \\", "  cmV0", "LoadCredential=b:/b")
    assert found["a"].text is not None
    assert found["a"].text.get_secret_value() == "c2VjcmV0"
    assert found["a"].is_encrypted
    assert found["b"].file == Path("/b")


def test_a_later_line_wins_and_an_empty_one_resets_its_kind() -> None:
    """Encrypted files and plain ones are one kind, texts are another."""
    found = _read(
        "LoadCredential=a:/first",
        "LoadCredentialEncrypted=a:/second",
        "LoadCredential=b:/b",
        "SetCredential=c:c",
    )
    assert (found["a"].file, found["a"].is_encrypted) == (Path("/second"), True)
    assert set(found) == {"a", "b", "c"}
    assert set(_read("LoadCredential=a:/a", "SetCredential=c:c", "LoadCredentialEncrypted=")) == {"c"}


def test_a_text_is_the_default_for_a_file_that_is_missing(tmp_path: Path) -> None:
    """Wherever the line stands; a file that is there wins."""
    there = tmp_path / "there"
    there.touch()
    for file, wins in ((there, False), (tmp_path / "missing", True)):
        lines = [f"LoadCredential=a:{file}", "SetCredential=a:text"]
        for order in (lines, lines[::-1]):
            assert (_read(*order)["a"].text is not None) == wins


def test_a_name_without_a_path_is_looked_for_in_the_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them that has it; in none, there is no such credential and the service starts."""
    stores = [tmp_path / "etc", tmp_path / "usr", tmp_path / "etc.encrypted"]
    for store in stores:
        store.mkdir()
    monkeypatch.setattr("relayd.commands.installed_service._STORES", [str(store) for store in stores[:2]])
    assert _read("LoadCredential=a") == {}
    for store in stores[1::-1]:
        (store / "a").touch()
        assert _read("LoadCredential=a")["a"].file == store / "a"
    (stores[2] / "a").touch()
    found = _read("LoadCredentialEncrypted=a")["a"]
    assert (found.file, found.is_encrypted) == (stores[2] / "a", True)
